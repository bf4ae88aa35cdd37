"""MuJoCo simulators stepped by threads, with observation, reward and termination computed for all of them at once.

Transitions equal those of the Gymnasium engine, warm start and all; what is saved is Python between the simulators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import (
    MujocoEnv,
    ant_v5,
    half_cheetah_v5,
    hopper_v5,
    humanoid_v5,
    humanoidstandup_v5,
    inverted_double_pendulum_v5,
    inverted_pendulum_v5,
    pusher_v5,
    reacher_v5,
    swimmer_v5,
    walker2d_v5,
)
from numpy.typing import NDArray

from tasks.control import manipulators, walkers
from tasks.control.batches import copy
from tasks.control.dynamics import Dynamics
from tasks.control.environments import Spec, make
from tasks.control.vector import Transition, Vector, physics_of, restore, warnings_of

Array = NDArray[Any]

DYNAMICS: dict[type[MujocoEnv], type[Dynamics]] = {
    half_cheetah_v5.HalfCheetahEnv: walkers.HalfCheetah,
    swimmer_v5.SwimmerEnv: walkers.Swimmer,
    walker2d_v5.Walker2dEnv: walkers.Walker2d,
    hopper_v5.HopperEnv: walkers.Hopper,
    ant_v5.AntEnv: walkers.Ant,
    humanoid_v5.HumanoidEnv: walkers.Humanoid,
    humanoidstandup_v5.HumanoidStandupEnv: walkers.HumanoidStandup,
    inverted_pendulum_v5.InvertedPendulumEnv: manipulators.InvertedPendulum,
    inverted_double_pendulum_v5.InvertedDoublePendulumEnv: manipulators.InvertedDoublePendulum,
    reacher_v5.ReacherEnv: manipulators.Reacher,
    pusher_v5.PusherEnv: manipulators.Pusher,
}


class BatchedVector(Vector):
    """`B` copies of one model; resets go through one Gymnasium environment, so that they are Gymnasium's to the bit."""

    def __init__(self, spec: Spec, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> None:
        self._template = make(spec.env_id)
        self._dynamics = dynamics_of(self._template)
        model = self._template.model
        self._model = model
        self._data = [mujoco.MjData(model) for _ in starts]
        self._forces = "cfrc_ext" in self._dynamics.fields
        first = self._template.data
        names = ("qpos", "qvel", *self._dynamics.fields)
        self._state = {name: np.zeros((len(starts), *getattr(first, name).shape)) for name in names}
        self._control = [data.ctrl for data in self._data]
        self._copies = [[(self._state[name][i], getattr(d, name)) for name in names] for i, d in enumerate(self._data)]
        self._warnings = np.zeros((len(starts), len(warnings_of(first))), dtype=np.int64)
        for i, data in enumerate(self._data):
            self._copies[i].append((self._warnings[i], warnings_of(data)))
        chunks = min(torch.get_num_threads(), len(starts))
        self._chunks = [list(part) for part in np.array_split(np.arange(len(starts)), chunks)]
        self._threads = ThreadPoolExecutor(chunks) if chunks > 1 else None
        super().__init__(spec, starts, seed_of)

    def close(self) -> None:
        """See `Vector`."""
        if self._threads is not None:
            self._threads.shutdown()
        self._template.close()

    def pose(self, i: int) -> Array:
        """See `Vector`."""
        answer: Array = self._state["qpos"][i].copy()
        return answer

    def _advance(self, action: Array) -> Transition:
        before = copy(self._dynamics.position(self._state))
        if self._threads is None:
            self._simulate(self._chunks[0], action)
        else:
            list(self._threads.map(lambda rows: self._simulate(rows, action), self._chunks))
        outcome = self._dynamics.outcome(before, self._state, action)
        return Transition(
            observation=self._dynamics.observation(self._state).astype(np.float32),
            reward=np.asarray(outcome.reward, dtype=np.float64),
            terminated=np.asarray(outcome.terminated),
            unstable=np.asarray(self._warnings.any(axis=1)),
            terms={name: np.asarray(value, dtype=np.float64) for name, value in outcome.terms.items()},
        )

    def _simulate(self, rows: list[int], action: Array) -> None:
        for i in rows:
            self._control[i][:] = action[i]
            mujoco.mj_step(self._model, self._data[i], nstep=self._template.frame_skip)
            if self._forces:
                mujoco.mj_rnePostConstraint(self._model, self._data[i])
            self._copy(i)

    def _copy(self, i: int) -> None:
        for target, source in self._copies[i]:
            target[...] = source

    def _reset(self, rows: Array, seeds: Sequence[int]) -> Array:
        first = []
        for i, seed in zip(rows, seeds, strict=True):
            first.append(self._template.reset(seed=seed)[0])
            mujoco.mj_copyData(self._data[i], self._model, self._template.data)
            self._copy(i)
        return np.array(first, dtype=np.float32)

    def _simulators(self) -> list[Array]:
        return [physics_of(self._model, data) for data in self._data]

    def _restore(self, rows: Sequence[Array]) -> None:
        for i, row in enumerate(rows):
            restore(self._model, self._data[i], row)
            self._copy(i)


@cache
def batched_serves(env_id: str) -> bool:
    """Whether this engine knows the class behind an id."""
    env = make(env_id)
    try:
        return type(env) in DYNAMICS
    finally:
        env.close()


def dynamics_of(env: MujocoEnv, engine: str = "batched") -> Dynamics:
    """The batched form of a Gymnasium environment.

    Raises:
        ValueError: There is none for its class; names the engine that serves every class.
    """
    if type(env) not in DYNAMICS:
        known = ", ".join(sorted(kind.__name__ for kind in DYNAMICS))
        raise ValueError(
            f"task.engine={engine}: expected one of {known}, found {type(env).__name__}; use task.engine=gymnasium"
        )
    return DYNAMICS[type(env)](env)
