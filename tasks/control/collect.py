"""A block of decisions from a vector of simulators: `[B, T]` raw rewards, boundaries and true next observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout
from tasks.control.vector import Step, Vector

Array = NDArray[Any]


class Block:
    """Arrays that the steps of one rollout fill."""

    def __init__(self, num_envs: int, num_steps: int, observation_dim: int) -> None:
        lead = (num_envs, num_steps)
        self.observation = np.empty((*lead, observation_dim), dtype=np.float32)
        self.reward = np.empty(lead, dtype=np.float32)
        self.terminated = np.zeros(lead, dtype=bool)
        self.truncated = np.zeros(lead, dtype=bool)
        self.broken = np.zeros(lead, dtype=bool)
        self.cut = np.zeros(lead, dtype=bool)
        self.records: list[dict[str, Tensor]] = []
        self.ends: dict[tuple[int, int], Array] = {}
        self.finished: list[tuple[float, int]] = []

    def add(self, t: int, observation: Array, record: dict[str, Tensor], step: Step) -> None:
        """Write column `t`."""
        self.observation[:, t] = observation
        self.reward[:, t] = step.reward
        # A broken step is no transition: it is masked, nothing follows from it, and what came before ends before it.
        self.terminated[:, t], self.truncated[:, t] = step.terminated | step.broken, step.truncated
        self.broken[:, t] = step.broken
        self.records.append(record)
        self.finished += step.finished
        is_last = t == self.reward.shape[1] - 1
        for row in np.flatnonzero(~self.terminated[:, t] if is_last else step.truncated):
            self.ends[int(row), t] = step.next_observation[row]
        for row in np.flatnonzero(step.broken):
            if t > 0 and not (self.terminated[row, t - 1] or self.truncated[row, t - 1]):
                self.cut[row, t - 1] = True
                self.ends[int(row), t - 1] = observation[row]

    def boundary(self) -> Array:
        """`[B, T]`: episode ends, and where the trace is cut: before a broken step and at the last column."""
        boundary: Array = self.terminated | self.truncated | self.cut
        boundary[:, -1] = True
        return boundary

    def boundary_observation(self) -> Array | None:
        """`[M, 1, C]` true next observations at open boundaries, row-major; None where there is none."""
        if not self.ends:
            return None
        return np.stack([self.ends[place] for place in sorted(self.ends)])[:, None]


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
    block = Block(len(vector), num_steps, vector.spec.observation_dim)
    for t in range(num_steps):
        observation = vector.observation
        record = policy.sample({"observation": torch.from_numpy(observation).to(noise.device)}, noise)
        step = vector.step(record[action_key].float().cpu().numpy())
        block.add(t, observation, record, step)
    return _assemble(block, vector, group_size, noise.device)


def _assemble(block: Block, vector: Vector, group_size: int, device: torch.device) -> Rollout:
    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(array).to(device)

    ends = block.boundary_observation()
    return Rollout(
        context={"observation": tensor(block.observation)},
        action={k: torch.stack([r[k] for r in block.records], dim=1) for k in block.records[0]},
        mask=tensor(~block.broken),
        group=torch.arange(len(vector), device=device) // group_size,
        reward=tensor(block.reward),
        terminated=tensor(block.terminated),
        boundary=tensor(block.boundary()),
        boundary_context=None if ends is None else {"observation": tensor(ends)},
        decisions_independent=True,
        metrics=_metrics(block),
        extras={
            "ended": tensor(block.terminated | block.truncated),
            "reward_terms": {name: tensor(total) for name, total in vector.take_reward_terms().items()},
        },
    )


def _metrics(block: Block) -> dict[str, float]:
    metrics = {"reward_per_step": float(block.reward.mean()), "episodes": float(len(block.finished))}
    metrics["broken_episodes"] = float(block.broken.sum())
    if block.finished:
        returns, lengths = zip(*block.finished, strict=True)
        metrics |= {"episode_return": float(np.mean(returns)), "episode_length": float(np.mean(lengths))}
    return metrics
