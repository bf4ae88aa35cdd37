"""Vectors of MuJoCo simulators: same-step autoreset that keeps the true terminal observation, whatever the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from tasks.control.batches import Batch, copy, finite, host, like, namespace
from tasks.control.environments import Spec, make

Array = NDArray[Any]

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
"""Includes qacc_warmstart: without it the solver starts elsewhere and trajectories part after a resume."""

DERIVED = ("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "subtree_com", "cinert")
"""Quantities of the last forward pass that environments read BEFORE the next step (a body's position for its velocity);
`mj_setState` does not restore them, and recomputing them gives the current state's instead of the last pass's."""


class Step(NamedTuple):
    """What one action of every environment led to, in the arrays of the engine.

    Attributes:
        next_observation: `[B, C]` float32, the true next observation, also where the episode ended.
        reward: `[B]` raw; NaN where the action is not finite. Of the simulators' precision.
        terminated: `[B]` bool.
        truncated: `[B]` bool, time limit reached without termination.
        broken: `[B]` bool, the simulator became unstable: the transition is none, and a new episode has begun.
        finished: `(return, length)` of each episode that ended, broken ones excepted.
    """

    next_observation: Batch
    reward: Batch
    terminated: Batch
    truncated: Batch
    broken: Batch
    finished: list[tuple[float, int]]


@dataclass(kw_only=True)
class Transition:
    """What an engine returns.

    Attributes:
        observation: `[B, C]` float32.
        reward: `[B]`, raw.
        terminated: `[B]` bool.
        unstable: `[B]` bool: the simulator's state was not finite or huge. MuJoCo has then silently put the model's
            initial state in its place, so that observation and reward are of another world.
        terms: Components of the reward, `[B]` each.
    """

    observation: Batch
    reward: Batch
    terminated: Batch
    unstable: Batch
    terms: dict[str, Batch]


class Vector(ABC):
    """`B` simulators of one id whose episodes are chosen by `(start, episode number)` alone.

    Rows with equal `start` share the initial state of their k-th episode, so that a group whose members end together
    keeps sharing starts.  Observations, rewards, flags are NumPy arrays, or tensors if the engine's `_array` says so.

    Attributes:
        observation: `[B, C]` float32, what the next action conditions on. A new array after every step.
        reward_terms: Sums since the last `take_reward_terms` of the `reward_*` components, `[B]` each.
    """

    def __init__(self, spec: Spec, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> None:
        """Open and reset the simulators.

        Args:
            spec: The environment.
            starts: Start of each row.
            seed_of: `(start, episode number) -> seed` of the environment's reset.
        """
        self.spec = spec
        self._seed_of = seed_of
        size = len(starts)
        self.start = np.array(starts, dtype=np.int64)
        self.episode = np.zeros(size, dtype=np.int64)
        self.elapsed: Batch = self._array(np.zeros(size, dtype=np.int64))
        self.episode_return: Batch = self._array(np.zeros(size, dtype=np.float64))
        self._low, self._high = self._array(spec.action_low), self._array(spec.action_high)
        self.observation: Batch = self._begin(np.arange(size))
        self.reward_terms: dict[str, Batch] = {}

    def __len__(self) -> int:
        """B."""
        return len(self.start)

    def step(self, action: Batch) -> Step:
        """Clip `action [B, A]` to the action space, advance every simulator, reset those whose episode ended.

        Args:
            action: Array or tensor of any device.
        """
        action = like(action, self._low)
        where = namespace(action).where
        healthy = finite(action).all(1)
        after = self._advance(where(healthy[:, None], action, 0.0).clip(self._low, self._high))
        observation, reward = after.observation, after.reward
        broken = after.unstable | ~finite(observation).all(1) | ~finite(reward)
        terminated = after.terminated & ~broken
        observation[broken], reward[broken] = 0.0, 0.0
        reward[~healthy] = np.nan
        for name, value in after.terms.items():
            self.reward_terms[name] = self.reward_terms.get(name, 0.0) + where(broken, 0.0, value)
        self.elapsed += 1
        self.episode_return += reward
        truncated = (self.elapsed >= self.spec.max_episode_steps) & ~terminated & ~broken
        self.observation = observation
        finished = self._end_episodes(terminated | truncated | broken, broken)
        return Step(observation, reward, terminated, truncated, broken, finished)

    def take_reward_terms(self) -> dict[str, Batch]:
        """The summed reward components since the last call, by name without its `reward_` prefix."""
        taken, self.reward_terms = self.reward_terms, {}
        return taken

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on; every reset is seeded, so no generator is part of it."""
        arrays = {
            "simulator": np.stack(self._simulators()),
            "observation": self.observation,
            "start": self.start,
            "episode": self.episode,
            "elapsed": self.elapsed,
            "episode_return": self.episode_return,
        }
        return {name: torch.from_numpy(host(array).copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: If the number of rows differs.
        """
        if state["start"].shape[0] != len(self):
            raise ValueError(
                f"control state: expected {len(self)} environments, found {state['start'].shape[0]} in the checkpoint; "
                "resume with the same groups_per_rollout and group_size"
            )
        for name in ("observation", "start", "episode", "elapsed", "episode_return"):
            setattr(self, name, copy(like(state[name], getattr(self, name))))
        self._restore(list(state["simulator"].numpy()))

    def _begin(self, rows: Array) -> Batch:
        return self._reset(rows, [self._seed_of(int(self.start[i]), int(self.episode[i])) for i in rows])

    def _end_episodes(self, ended: Batch, broken: Batch) -> list[tuple[float, int]]:
        rows = np.flatnonzero(host(ended))
        if not len(rows):
            return []
        total, length, lost = host(self.episode_return), host(self.elapsed), host(broken)
        finished = [(float(total[i]), int(length[i])) for i in rows if not lost[i]]
        self.episode[rows] += 1
        self.elapsed[ended], self.episode_return[ended] = 0, 0.0
        self.observation = copy(self.observation)
        self.observation[ended] = self._begin(rows)
        return finished

    def _array(self, value: Array) -> Batch:
        """What this engine computes with, and where."""
        return value

    @abstractmethod
    def close(self) -> None:
        """Release the simulators."""

    @abstractmethod
    def pose(self, i: int) -> Array:
        """Generalised positions `[nq]` of simulator `i`, e.g. to render it later."""

    @abstractmethod
    def _advance(self, action: Batch) -> Transition:
        """Step every simulator by the clipped `action [B, A]` float32, without resets."""

    @abstractmethod
    def _reset(self, rows: Array, seeds: Sequence[int]) -> Batch:
        """Reset these simulators as Gymnasium does with these seeds; first observations `[n, C]` float32."""

    @abstractmethod
    def _simulators(self) -> list[Array]:
        """Whole state of each simulator as one array."""

    @abstractmethod
    def _restore(self, rows: Sequence[Array]) -> None:
        """Set the state that `_simulators` gave."""


class GymnasiumVector(Vector):
    """One Gymnasium environment after the other: serves every id."""

    def __init__(self, spec: Spec, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> None:
        self.envs: list[MujocoEnv] = [make(spec.env_id) for _ in starts]
        super().__init__(spec, starts, seed_of)

    def close(self) -> None:
        """See `Vector`."""
        for env in self.envs:
            env.close()

    def pose(self, i: int) -> Array:
        """See `Vector`."""
        answer: Array = self.envs[i].data.qpos.copy()
        return answer

    def _advance(self, action: Array) -> Transition:
        size = len(self)
        after = Transition(
            observation=np.empty_like(self.observation),
            reward=np.empty(size),
            terminated=np.zeros(size, dtype=bool),
            unstable=np.zeros(size, dtype=bool),
            terms={},
        )
        for i, env in enumerate(self.envs):
            after.observation[i], after.reward[i], after.terminated[i], _, info = env.step(action[i])
            for name, value in info.items():
                if name.startswith("reward_"):
                    after.terms.setdefault(name.removeprefix("reward_"), np.zeros(size))[i] = value
            after.unstable[i] = warnings_of(env.data).any()
        return after

    def _reset(self, rows: Array, seeds: Sequence[int]) -> Array:
        first = [self.envs[i].reset(seed=seed)[0] for i, seed in zip(rows, seeds, strict=True)]
        return np.array(first, dtype=np.float32)

    def _simulators(self) -> list[Array]:
        return [physics_of(env.model, env.data) for env in self.envs]

    def _restore(self, rows: Sequence[Array]) -> None:
        for env, row in zip(self.envs, rows, strict=True):
            restore(env.model, env.data, row)


def warnings_of(data: mujoco.MjData) -> Array:
    """View of the counts of unstable states since the last reset: bad positions, velocities, accelerations."""
    first, last = mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQACC
    view: Array = data.warning.number[int(first) : int(last) + 1]
    return view


def physics_of(model: mujoco.MjModel, data: mujoco.MjData) -> Array:
    """Everything that the next step of a simulator depends on, and what is read before it."""
    state = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, state, PHYSICS)
    return np.concatenate([state, *(getattr(data, name).ravel() for name in DERIVED)])


def restore(model: mujoco.MjModel, data: mujoco.MjData, row: Array) -> None:
    """Undo `physics_of`."""
    size = mujoco.mj_stateSize(model, PHYSICS)
    mujoco.mj_setState(model, data, row[:size], PHYSICS)
    for name in DERIVED:
        array = getattr(data, name)
        array[...] = row[size : size + array.size].reshape(array.shape)
        size += array.size
