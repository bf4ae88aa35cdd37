"""EnvPool's simulators: DM Control tasks, and Gymnasium's for comparison, stepped by EnvPool's own C++ threads.

EnvPool can neither save a simulator nor reseed one.  A row is seeded once by its start and draws all its episodes from
that stream; its state is the number of its episode and the actions since the reset, by which it is played again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from tasks.control.environments import Spec
from tasks.control.vector import Transition, Vector

Array = NDArray[Any]

VERSION = "1.2.5"
"""Measured with this one: partial resets in synchronous mode, which the older documentation does not promise."""


class EnvpoolVector(Vector):
    """`B` simulators in one pool; a row that has ended is reset at once, so that EnvPool never resets by itself.

    EnvPool does not tell of unstable simulators: only observations and rewards that are not finite are seen.
    """

    def __init__(self, spec: Spec, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> None:
        """Open and reset the pool; of `seed_of` only the seeds of first episodes are used."""
        self._pool = _open(spec.env_id, [seed_of(start, 0) for start in starts])
        self._actions: list[list[Array]] = [[] for _ in starts]
        super().__init__(spec, starts, seed_of)

    def close(self) -> None:
        """See `Vector`."""
        self._pool.close()

    def pose(self, i: int) -> Array:
        """The observation: EnvPool does not show positions."""
        answer: Array = self.observation[i].copy()
        return answer

    def _advance(self, action: Array) -> Transition:
        for row, taken in enumerate(action):
            self._actions[row].append(taken.copy())
        observation, reward, terminated, _, info = self._pool.step(self._cast(action))
        terms = {k.removeprefix("reward_"): v.astype(np.float64) for k, v in info.items() if k.startswith("reward_")}
        return Transition(
            observation=_flat(observation),
            reward=reward.astype(np.float64),
            terminated=terminated.copy(),
            unstable=np.zeros(len(self), dtype=bool),
            terms=terms,
        )

    def _reset(self, rows: Array, seeds: Sequence[int]) -> Array:
        first = []
        for i in rows:
            self._actions[i] = []
            first.append(_flat(self._pool.reset(np.array([i], dtype=np.int32))[0])[0])
        return np.stack(first)

    def _simulators(self) -> list[Array]:
        """The actions of each row's episode, flat, filled up with NaN to one length."""
        longest = max(len(actions) for actions in self._actions)
        rows = np.full((len(self), longest, self.spec.action_dim), np.nan, dtype=np.float32)
        for row, actions in zip(rows, self._actions, strict=True):
            row[: len(actions)] = np.reshape(actions, (-1, self.spec.action_dim))
        return list(rows.reshape(len(self), -1))

    def _restore(self, rows: Sequence[Array]) -> None:
        self._pool.close()
        self._pool = _open(self.spec.env_id, [self._seed_of(int(start), 0) for start in self.start])
        played = [row.reshape(-1, self.spec.action_dim) for row in rows]
        self._actions = [[action for action in row if not np.isnan(action).any()] for row in played]
        for i in range(len(self)):
            for _ in range(int(self.episode[i]) + 1):
                self._pool.reset(np.array([i], dtype=np.int32))
        for t in range(max(len(actions) for actions in self._actions)):
            going = np.array([i for i, actions in enumerate(self._actions) if t < len(actions)], dtype=np.int32)
            self._pool.step(self._cast(np.stack([self._actions[i][t] for i in going])), going)

    def _cast(self, action: Array) -> Array:
        answer: Array = action.astype(self._pool.action_space.dtype)
        return answer


@cache
def envpool_spec(env_id: str) -> Spec:
    """Describe an id of EnvPool.

    Raises:
        ValueError: EnvPool is not installed or of another version, the id is unknown, actions or observations are not
            flat and continuous.
    """
    package = _package()
    if env_id not in package.list_all_envs():
        near = difflib.get_close_matches(env_id, package.list_all_envs(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see envpool.list_all_envs()"
        raise ValueError(f"unknown EnvPool environment {env_id!r}; {hint}")
    pool = _open(env_id, [0])
    try:
        action, parts = pool.action_space, _parts(pool.observation_space)
        if not isinstance(action, Box) or action.shape is None or len(action.shape) != 1:
            raise ValueError(f"environment {env_id!r}: expected a flat Box of continuous actions, found {action}")
        if not all(isinstance(part, Box) and part.dtype.kind == "f" for part in parts):
            raise ValueError(
                f"environment {env_id!r}: expected numbers as observations, found {pool.observation_space}"
            )
        return Spec(
            env_id=env_id,
            engine="envpool",
            observation_dim=sum(int(np.prod(part.shape)) for part in parts),
            action_low=action.low.astype(np.float32),
            action_high=action.high.astype(np.float32),
            max_episode_steps=int(pool.config["max_episode_steps"]),
        )
    finally:
        pool.close()


def envpool_ids() -> tuple[str, ...]:
    """What EnvPool serves; nothing where it is not installed."""
    try:
        return tuple(_package().list_all_envs())
    except ValueError:
        return ()


def _package() -> ModuleType:
    try:
        found = metadata.version("envpool")
    except metadata.PackageNotFoundError:
        found = "none"
    if found != VERSION:
        raise ValueError(
            f"engine envpool: expected the package envpool {VERSION}, found {found}; pip install 'rlflow[envpool]'"
        )
    import envpool

    package: ModuleType = envpool
    return package


def _open(env_id: str, seeds: Sequence[int]) -> Any:
    return _package().make(
        env_id,
        env_type="gymnasium",
        num_envs=len(seeds),
        seed=list(seeds),
        num_threads=min(torch.get_num_threads(), len(seeds)),
    )


def _parts(space: Any) -> list[Any]:
    return list(space.spaces.values()) if isinstance(space, Dict) else [space]


def _flat(observation: Array | Mapping[str, Array]) -> Array:
    """`[B, C]` float32; the parts of a dictionary in EnvPool's order."""
    parts = list(observation.values()) if isinstance(observation, Mapping) else [observation]
    rows = [part.reshape(part.shape[0], -1).astype(np.float32) for part in parts]
    return np.concatenate(rows, axis=1) if len(rows) > 1 else rows[0].copy()
