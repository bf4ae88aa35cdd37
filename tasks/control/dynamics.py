"""What a MuJoCo task is to an engine: observation, reward and termination of whole batches of simulators.

Pure functions of batched simulator state: NumPy arrays and torch tensors alike, so that engines on the CPU and on CUDA
share them.  Derived quantities (`xpos`, `cinert`, ...) are those that the last step left behind, as in Gymnasium.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gymnasium.envs.mujoco import MujocoEnv

from tasks.control.batches import Batch

State = Mapping[str, Batch]
"""`mjData` fields by name, `[B, ...]`; `qpos`, `qvel` and the task's `fields`."""


@dataclass(kw_only=True)
class Outcome:
    """What a step was worth.

    Attributes:
        reward: `[B]`.
        terms: The components that Gymnasium reports as `reward_*`, `[B]` each.
        terminated: `[B]` bool.
    """

    reward: Batch
    terms: dict[str, Batch]
    terminated: Batch


class Dynamics(ABC):
    """One task; weights and ranges are read from the Gymnasium environment, so that registered variants keep theirs.

    Attributes:
        fields: What is read of `mjData` besides `qpos` and `qvel`; `cfrc_ext` needs `mj_rnePostConstraint`.
    """

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, env: MujocoEnv) -> None:
        self.env: Any = env
        self.dt = float(env.dt)

    def position(self, s: State) -> Batch:
        """What is remembered from before the step, to measure velocity: `[B]` or `[B, 2]`."""
        return s["qpos"][:, 0]

    @abstractmethod
    def observation(self, s: State) -> Batch:
        """`[B, C]`."""

    @abstractmethod
    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """Of a step from `position` `before` to the state `s` by the clipped `action [B, A]`."""

    def _visible(self, s: State, num_hidden: int) -> Batch:
        """Positions, where the environment hides its first ones without these."""
        return s["qpos"][:, num_hidden * bool(self.env._exclude_current_positions_from_observation) :]

    def _speed(self, before: Batch, s: State) -> Batch:
        return (self.position(s) - before) / self.dt
