"""Gymnasium's MuJoCo environments as one task family; a decision is an environment step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal

import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor

from rlflow import distributed
from rlflow.policies.flow_config import FlowConfig
from rlflow.policy import Policy
from rlflow.random import Noise, derived_seed
from rlflow.rollout import Rollout
from rlflow.task import Acting, Anchors, Evaluation, Task
from tasks.control.acting import acting_policy
from tasks.control.collect import collect
from tasks.control.engines import Engine, open_vector, spec_of
from tasks.control.evaluation import NUM_EVAL_SEEDS, play
from tasks.control.policies import ACTION_KEYS, PolicyKind, action_flow, build_policy
from tasks.control.reward import ReturnScaler
from tasks.control.vector import Vector
from tasks.control.video import sample_files

SEED_RANGE = 2**31 - NUM_EVAL_SEEDS


@dataclass(kw_only=True)
class GymnasiumMujoco(Task):
    """Any MuJoCo id as `control/ID` (`control/Hopper-v5`, `control/CheetahRun-v1`); episodes run on across rollouts.

    A rollout is `groups_per_rollout * group_size` environments times `num_steps` steps. Rows of a group start from one
    seed, and their k-th episodes too. Observations are normalised inside the policy, rewards by `score`.

    Attributes:
        env_id: Gymnasium's or EnvPool's id; given by the name, or by the preset of a short name.
        engine: What steps the simulators, with equal transitions: `batched`, threads and vectorised rewards;
            `gymnasium`, any id, slower; `envpool` (extra), DM Control too, no videos; `auto`, the first of these that
            serves the id; `warp` (extra), thousands of environments on a CUDA device, in float32.
        policy: `gaussian`, a state-independent Normal; `flow`, a velocity field over actions.
        num_steps: T, environment steps per environment and rollout. Too few: the critic biases the advantage; too many:
            few updates for the same budget.
        hidden: Width of the Gaussian mean network and of the critic (two tanh layers each).
        log_std: Initial log standard deviation of the Gaussian. Too low: no exploration; too high: only noise.
        flow: Sampler and likelihood of the flow policy.
        flow_hidden: Width of the velocity network.
        flow_depth: Hidden SiLU layers of the velocity network.
        reward_scaling: `return_std`, divide by the running std of the discounted return; `constant`, multiply by
            `reward_factor`.
        reward_factor: Factor of `constant` (1 = raw rewards). Too high: the critic's error drowns the policy's.
        reward_clip: Limit of |training reward| after scaling (0 = off).
        reward_gamma: Discount of the return whose std is the scale.
        eval_episodes: Episodes of an evaluation, at most 1,000. Too few: noisy scores; too many: slow.
        video: Whether evaluations leave rollout videos behind.
        video_every: Evaluations from one video to the next, the first included; 5 hits the first and the last point of
            grids of 11 and 21. Too low: rendering (about 1.5 s each) outweighs short runs.
    """

    version: ClassVar[str] = "2"
    unit: ClassVar[str] = "env_steps"
    policies: ClassVar[dict[str, str]] = {"gaussian": "gaussian", "flow": "flow"}
    name_field: ClassVar[str | None] = "env_id"

    groups_per_rollout: int = 1
    group_size: int = 8
    env_id: str
    engine: Engine = "auto"
    policy: PolicyKind = "gaussian"
    num_steps: int = 256
    hidden: int = 64
    log_std: float = 0.0
    flow: FlowConfig = field(default_factory=action_flow)
    flow_hidden: int = 64
    flow_depth: int = 3
    reward_scaling: Literal["return_std", "constant"] = "return_std"
    reward_factor: float = 1.0
    reward_clip: float = 10.0
    reward_gamma: float = 0.99
    eval_episodes: int = 10
    video: bool = True
    video_every: int = 5

    def __post_init__(self) -> None:
        """Refuse an environment or sizes that cannot run, before anything else is built."""
        self._spec = spec_of(self.engine, self.env_id)
        if min(self.num_steps, self.video_every) < 1 or not 1 <= self.eval_episodes <= 1000:
            raise ValueError(
                f"task: expected num_steps and video_every of at least 1 and eval_episodes in [1, 1000], found "
                f"{self.num_steps}, {self.video_every} and {self.eval_episodes}"
            )
        if not 0 <= self.reward_gamma < 1:
            raise ValueError(f"task.reward_gamma: expected a discount in [0, 1), found {self.reward_gamma}")
        self._evaluations = 0
        self._vector: Vector | None = None
        self._scaler = ReturnScaler(self.reward_gamma)

    @property
    def policy_kind(self) -> str:
        """`gaussian` or `flow`."""
        return self.policy

    @property
    def samples_per_rollout(self) -> int:
        """Environment steps of an iteration."""
        return self.groups_per_rollout * self.group_size * self.num_steps

    @property
    def rows_per_rollout(self) -> int:
        """Every environment step is a row of its own."""
        return self.samples_per_rollout

    @property
    def anchors(self) -> Anchors:
        """Measured untrained score and published reference of the environment (`anchors.yaml`).

        An id without a row gets 0 and 1: its normalised score is then the raw return.
        """
        row = _anchors().get(self.env_id, {"base": 0.0, "reference": 1.0})
        return Anchors(base=float(row["base"]), reference=float(row["reference"]))

    def starts(self) -> Sequence[int]:
        """Training seeds; those below belong to evaluation."""
        return range(NUM_EVAL_SEEDS, NUM_EVAL_SEEDS + SEED_RANGE)

    def evaluation_starts(self) -> Sequence[int]:
        """The seeds that `evaluate` plays."""
        return range(self.eval_episodes)

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """Gaussian or flow policy with the heads that `requires` names."""
        return build_policy(
            self.policy,
            requires,
            observation_dim=self._spec.observation_dim,
            action_dim=self._spec.action_dim,
            hidden=self.hidden,
            log_std=self.log_std,
            flow=self.flow,
            flow_hidden=self.flow_hidden,
            flow_depth=self.flow_depth,
        )

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """`num_steps` steps of every environment; `starts` seed the first call, later episodes follow from them."""
        if self._vector is None:
            self._open(starts.repeat_interleave(self.group_size).tolist())
        assert self._vector is not None
        if len(self._vector) != len(starts) * self.group_size:
            raise ValueError(f"control: expected {len(self._vector) // self.group_size} starts, found {len(starts)}")
        return collect(self._vector, policy, ACTION_KEYS[self.policy], self.num_steps, self.group_size, noise)

    def score(self, rollout: Rollout) -> Rollout:
        """Scale and clip the raw reward; each component of the environment's reward is logged per step."""
        raw = rollout.reward
        if self.reward_scaling == "return_std":
            reward = self._scaler(raw, rollout.extras["ended"])
            rollout.metrics["reward_divisor"] = self._scaler.std
        else:
            reward = raw * self.reward_factor
        if self.reward_clip > 0:
            reward = reward.clamp(-self.reward_clip, self.reward_clip)
        terms = {name: total / self.num_steps for name, total in rollout.extras["reward_terms"].items()}
        return rollout.replace(reward=reward, reward_terms={"raw": raw.mean(1), "training": reward.mean(1), **terms})

    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Raw return of `eval_episodes` fixed seeds under the deterministic policy."""
        episodes = play(self._spec, policy, ACTION_KEYS[self.policy], self.eval_episodes, noise.device)
        shown = self.video and self._evaluations % self.video_every == 0
        self._evaluations += 1
        files = sample_files(self._spec, episodes) if shown else {}
        return Evaluation(metrics=episodes.metrics(), items=episodes.items(), files=files)

    def acting(self, policy: Policy) -> Acting:
        """Raw observation to clipped action, without exploration."""
        return acting_policy(policy, self.policy, self.flow, self._spec)

    def state_dict(self) -> dict[str, Any]:
        """Simulators, unfinished episodes and the reward scale of every rank; all ranks have to call it.

        Observation statistics are in the policy.
        """
        own = {
            "vector": None if self._vector is None else self._vector.state_dict(),
            "scaler": self._scaler.state_dict(),
            "evaluations": self._evaluations,
        }
        if distributed.world_size() == 1:
            return {"ranks": [own]}
        everyone: list[Any] = [None] * distributed.world_size()
        dist.all_gather_object(everyone, own)
        return {"ranks": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue every episode of this rank exactly where it was.

        Raises:
            ValueError: If the checkpoint was written by another number of processes.
        """
        if len(state["ranks"]) != distributed.world_size():
            raise ValueError(
                f"control state: expected environments of {distributed.world_size()} processes, found "
                f"{len(state['ranks'])} in the checkpoint; resume with trainer.devices={len(state['ranks'])}"
            )
        state = state["ranks"][distributed.rank()]
        self._scaler.load_state_dict(state["scaler"])
        self._evaluations = state["evaluations"]
        if state["vector"] is not None:
            self._open(state["vector"]["start"].tolist())
            assert self._vector is not None
            self._vector.load_state_dict(state["vector"])

    def close(self) -> None:
        """Release the simulators."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None

    def _open(self, starts: list[int]) -> None:
        self.close()
        self._vector = open_vector(self._spec, starts, train_seed)


def train_seed(start: int, episode: int) -> int:
    """Reset seed of a row's k-th episode: the start itself, then seeds derived from it; never an evaluation seed."""
    if episode == 0:
        return start
    return NUM_EVAL_SEEDS + derived_seed(start, "episode", episode) % SEED_RANGE


@cache
def _anchors() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("tasks.control").joinpath("anchors.yaml").read_text(encoding="utf-8")
    loaded = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(loaded, dict)
    return {str(k): v for k, v in loaded.items()}
