"""A block of decisions from a vector of simulators: `[B, T]` raw rewards, boundaries and true next observations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout
from tasks.control.batches import Batch, columns, host, tensor
from tasks.control.vector import Step, Vector


class Block:
    """What the steps of one rollout leave: tensors `[B, T]` on the engine's device.

    Attributes:
        observation: `[B, T, C]`, acted on.
        next_observation: `[B, T, C]`, true; what stands in a broken place is no observation.
        reward: Raw, float32.
        terminated: Nothing follows: terminations and broken steps.
        truncated: Time limit.
        broken: No transition, to be masked.
        finished: `(return, length)` of each episode that ended.
    """

    def __init__(self, observations: Sequence[Batch], steps: Sequence[Step]) -> None:
        self.observation = columns(observations)
        self.next_observation = columns([step.next_observation for step in steps])
        self.reward = columns([step.reward for step in steps]).float()
        self.broken = columns([step.broken for step in steps])
        self.terminated = columns([step.terminated for step in steps]) | self.broken
        self.truncated = columns([step.truncated for step in steps])
        self.finished = [episode for step in steps for episode in step.finished]

    def boundary(self) -> Tensor:
        """`[B, T]`: episode ends, and where the trace is cut: before a broken step and at the last column."""
        boundary = self.terminated | self.truncated
        boundary[:, :-1] |= self.broken[:, 1:]
        boundary[:, -1] = True
        return boundary

    def boundary_observation(self) -> Tensor | None:
        """`[M, 1, C]` true next observations at open boundaries, row-major; None where there is none."""
        ends = self.next_observation[self.boundary() & ~self.terminated]
        return ends[:, None] if len(ends) else None


@torch.no_grad()
def collect(vector: Vector, policy: Policy, action_key: str, num_steps: int, group_size: int, noise: Noise) -> Rollout:
    """Act for `num_steps` in every environment of `vector`, which keeps its episodes for the next call.

    Args:
        vector: `B` simulators, group-major.
        policy: Samples one decision per observation.
        action_key: Name of the environment action `[B, A]` in the policy's record.
        num_steps: T.
        group_size: Consecutive rows that form a group.
        noise: Row noise.

    Returns:
        The block with raw rewards and `extras`: `ended [B, T]`, `reward_terms`.
    """
    observations: list[Batch] = []
    records: list[dict[str, Tensor]] = []
    steps: list[Step] = []
    for _ in range(num_steps):
        observations.append(vector.observation)
        records.append(policy.sample({"observation": tensor(observations[-1], noise.device)}, noise))
        steps.append(vector.step(records[-1][action_key].float()))
    action = {k: torch.stack([record[k] for record in records], dim=1) for k in records[0]}
    return _assemble(Block(observations, steps), action, vector, group_size, noise.device)


def _assemble(
    block: Block, action: dict[str, Tensor], vector: Vector, group_size: int, device: torch.device
) -> Rollout:
    ends = block.boundary_observation()
    return Rollout(
        context={"observation": block.observation.to(device)},
        action=action,
        mask=(~block.broken).to(device),
        group=torch.arange(len(vector), device=device) // group_size,
        reward=block.reward.to(device),
        terminated=block.terminated.to(device),
        boundary=block.boundary().to(device),
        boundary_context=None if ends is None else {"observation": ends.to(device)},
        decisions_independent=True,
        metrics=_metrics(block),
        extras={
            "ended": (block.terminated | block.truncated).to(device),
            "reward_terms": {name: tensor(total, device) for name, total in vector.take_reward_terms().items()},
        },
    )


def _metrics(block: Block) -> dict[str, float]:
    metrics = {"reward_per_step": float(host(block.reward).mean()), "episodes": float(len(block.finished))}
    metrics["broken_episodes"] = float(block.broken.sum())
    if block.finished:
        returns, lengths = zip(*block.finished, strict=True)
        metrics |= {"episode_return": float(np.mean(returns)), "episode_length": float(np.mean(lengths))}
    return metrics
