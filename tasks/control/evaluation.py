"""Judging a control policy: fixed seeds, raw reward, one deterministic episode per environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlflow.policy import Policy
from rlflow.random import Noise, generator
from tasks.control.batches import host, tensor
from tasks.control.engines import open_vector
from tasks.control.environments import Spec

Array = NDArray[Any]

NUM_EVAL_SEEDS = 1_000_000
"""Reset seeds below this belong to evaluation; training never uses them."""


@dataclass(kw_only=True)
class Episodes:
    """First episodes of `n` environments.

    Attributes:
        seeds: Reset seed of each.
        returns: `[n]` raw, undiscounted.
        lengths: `[n]` steps.
        terminated: `[n]` bool, ended by itself and not by the time limit.
        broken: `[n]` bool, ended because the simulator became unstable.
        poses: qpos of the first environment before every step, for the video.
        rewards: Raw reward of the first environment at every step.
    """

    seeds: list[int]
    returns: Array
    lengths: Array
    terminated: Array
    broken: Array
    poses: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def items(self) -> list[dict[str, Any]]:
        """One row per episode."""
        return [
            {"seed": seed, "return": float(self.returns[i]), "length": int(self.lengths[i]),
             "terminated": bool(self.terminated[i]), "broken": bool(self.broken[i])}
            for i, seed in enumerate(self.seeds)
        ]  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """`score`, the mean raw return, with its spread over episodes."""
        return {
            "score": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "return_min": float(self.returns.min()),
            "episode_length": float(self.lengths.mean()),
            "terminated_fraction": float(self.terminated.mean()),
            "broken_fraction": float(self.broken.mean()),
        }


def eval_seed(start: int, episode: int) -> int:
    """Evaluation resets with the start itself; only episode 0 of each environment counts."""
    return start if episode == 0 else NUM_EVAL_SEEDS - 1


@torch.no_grad()
def play(spec: Spec, policy: Policy, action_key: str, num_episodes: int, device: torch.device) -> Episodes:
    """Play the episodes of seeds `0..num_episodes-1` together, without exploration.

    A flow policy starts from fixed noise (or zero, `flow.eval_start`); its noise has a seed of its own here, so that
    two evaluations of the same weights agree to the last bit.
    """
    vector = open_vector(spec, range(num_episodes), eval_seed)
    noise = Noise(generator=generator(0, "control", "evaluation"), device=device)
    alive = np.ones(num_episodes, dtype=bool)
    result = Episodes(
        seeds=list(range(num_episodes)),
        returns=np.zeros(num_episodes),
        lengths=np.zeros(num_episodes, dtype=np.int64),
        terminated=np.zeros(num_episodes, dtype=bool),
        broken=np.zeros(num_episodes, dtype=bool),
    )
    while alive.any():
        pose = vector.pose(0)
        context = {"observation": tensor(vector.observation, device)}
        step = vector.step(policy.sample(context, noise, train=False)[action_key].float())
        reward, terminated, truncated, broken = map(host, step[1:5])
        if alive[0]:
            result.poses.append(pose)
            result.rewards.append(float(reward[0]))
        result.returns[alive] += reward[alive]
        result.lengths[alive] += 1
        result.terminated |= alive & terminated
        result.broken |= alive & broken
        alive &= ~(terminated | truncated | broken)
    vector.close()
    return result
