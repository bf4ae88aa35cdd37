"""A point between two equally good goals: what a policy that can hold one action at a time cannot do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlflow.policies.flow_config import FlowConfig
from rlflow.policy import Policy
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, Task
from tasks.control.policies import ACTION_KEYS, PolicyKind, action_flow, build_policy

HORIZON = 8
STEP = 0.2
GOALS = ((-1.0, 0.0), (1.0, 0.0))
SHARPNESS = 4.0
START_SPREAD = 0.3
REACHED = 0.3
NUM_STARTS = 2**20
# The straight way to a goal from the middle: distances .8, .6, .4, .2, 0, 0, 0, 0.
BEST_RETURN = sum(math.exp(-SHARPNESS * max(0.0, 1.0 - STEP * t) ** 2) for t in range(1, HORIZON + 1))
UNTRAINED_RETURN = 0.858


@dataclass(kw_only=True)
class TwoGoals(Task):
    r"""Eight steps of at most .2 in the plane from near the middle; each earns $e^{-4 d^2}$, d to the nearer goal.

    Attributes:
        policy: `gaussian`, which has one mode; `flow`, which may have two.
        hidden: Width of the Gaussian mean network and of the critic.
        log_std: Initial log standard deviation of the Gaussian.
        flow: Sampler and likelihood of the flow policy.
        flow_hidden: Width of the velocity network.
        flow_depth: Hidden layers of the velocity network.
        evaluation_rollouts: Sampled ways from the exact middle. Too few: a noisy coverage.
    """

    version: ClassVar[str] = "1"
    unit: ClassVar[str] = "env_steps"
    guards: ClassVar[tuple[str, ...]] = ("mode_coverage",)
    policies: ClassVar[dict[str, str]] = {"gaussian": "gaussian", "flow": "flow"}

    name: str = "control/two_goals"
    groups_per_rollout: int = 32
    group_size: int = 8
    policy: PolicyKind = "gaussian"
    hidden: int = 64
    log_std: float = 0.0
    flow: FlowConfig = field(default_factory=action_flow)
    flow_hidden: int = 64
    flow_depth: int = 3
    evaluation_rollouts: int = 512

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing."""
        if self.evaluation_rollouts < 1:
            raise ValueError(f"task.evaluation_rollouts: expected at least 1, found {self.evaluation_rollouts}")

    @property
    def policy_kind(self) -> str:
        """`gaussian` or `flow`."""
        return self.policy

    @property
    def samples_per_rollout(self) -> int:
        """Steps of an iteration."""
        return self.groups_per_rollout * self.group_size * HORIZON

    @property
    def rows_per_rollout(self) -> int:
        """Every step is a row of its own."""
        return self.samples_per_rollout

    @property
    def anchors(self) -> Anchors:
        """Untrained Gaussian policy (measured), and the straight way to a goal."""
        return Anchors(base=UNTRAINED_RETURN, reference=BEST_RETURN)

    def starts(self) -> Sequence[int]:
        """Seeds of the place where a group starts."""
        return range(NUM_STARTS)

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """On position and the share of the time that is over."""
        return build_policy(
            self.policy,
            requires,
            observation_dim=3,
            action_dim=2,
            hidden=self.hidden,
            log_std=self.log_std,
            flow=self.flow,
            flow_hidden=self.flow_hidden,
            flow_depth=self.flow_depth,
        )

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """One episode of each row; rows of a group start at one place."""
        places = torch.stack([torch.rand(2, generator=generator(int(s), "two_goals")) for s in starts])
        position = (places * 2 - 1).mul(START_SPREAD).to(noise.device).repeat_interleave(self.group_size, 0)
        group = torch.arange(len(starts), device=noise.device).repeat_interleave(self.group_size)
        return self._play(policy, position, group, noise)

    def score(self, rollout: Rollout) -> Rollout:
        """The reward is made with the step; its sum is the return."""
        return rollout.replace(reward_terms={"goal": rollout.reward.sum(1)})

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Mean return of sampled ways from the exact middle, and how evenly they end at both goals.

        Sampled, not deterministic: the question is what the policy can do, and one way ends at one goal. A broad
        Gaussian also ends at both, by chance: `action_bimodality` tells whether the first action has two modes.
        """
        fixed = Noise(generator=generator(0, "two_goals", "evaluation"), device=noise.device)
        n = self.evaluation_rollouts
        middle = torch.zeros(n, 2, device=noise.device)
        ways = self._play(policy, middle, torch.zeros(n, dtype=torch.int64, device=noise.device), fixed)
        ends = ways.extras["end"]
        shares = [float(((ends - ends.new_tensor(goal)).norm(dim=1) < REACHED).float().mean()) for goal in GOALS]
        returns = ways.reward.sum(1)
        return Evaluation(
            metrics={
                "score": float(returns.mean()),
                "reached": sum(shares),
                "mode_coverage": 2 * min(shares),
                "action_bimodality": bimodality(ways.action[ACTION_KEYS[self.policy]][:, 0, 0]),
            },
            items=[
                {"row": i, "return": float(r), "x": float(x), "y": float(y)}
                for i, (r, (x, y)) in enumerate(zip(returns, ends, strict=True))
            ],
        )

    def _play(self, policy: Policy, position: Tensor, group: Tensor, noise: Noise) -> Rollout:
        goals = position.new_tensor(GOALS)
        observations, records, rewards = [], [], []
        for t in range(HORIZON):
            clock = position.new_full((len(position), 1), t / HORIZON)
            observations.append(torch.cat([position, clock], dim=1))
            records.append(policy.sample({"observation": observations[-1]}, noise))
            position = position + STEP * records[-1][ACTION_KEYS[self.policy]].float().clamp(-1, 1)
            nearest = torch.cdist(position, goals).min(dim=1).values
            rewards.append(torch.exp(-SHARPNESS * nearest.square()))
        reward = torch.stack(rewards, dim=1)
        last = torch.zeros_like(reward, dtype=torch.bool)
        last[:, -1] = True
        return Rollout(
            context={"observation": torch.stack(observations, dim=1)},
            action={name: torch.stack([r[name] for r in records], dim=1) for name in records[0]},
            mask=torch.ones_like(last),
            group=group,
            reward=reward,
            terminated=last,
            boundary=last.clone(),
            decisions_independent=True,
            metrics={"episode_return": float(reward.sum(1).mean())},
            extras={"end": position},
        )


def bimodality(x: Tensor) -> float:
    """Sarle's coefficient, (skewness^2 + 1) / kurtosis, of `x [n]`: 1/3 if normal, 5/9 if uniform, 1 if two points."""
    centred = x.double() - x.double().mean()
    variance = centred.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    skewness = centred.pow(3).mean() / variance**1.5
    kurtosis = centred.pow(4).mean() / variance.square()
    return float((skewness.square() + 1) / kurtosis.clamp_min(1.0))
