"""mujoco_warp's simulators: all worlds in one launch of a captured graph, state and task functions as torch tensors.

Float32: trajectories part from MuJoCo's by rounding.  A row's episodes begin where the other engines begin them:
Gymnasium itself draws and computes each first state on the host, and the rows that were reset are uploaded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray

from tasks.control.batched import dynamics_of
from tasks.control.batches import copy, flat, host, like
from tasks.control.environments import Spec, gymnasium_spec, make
from tasks.control.vector import Transition, Vector

Array = NDArray[Any]

VERSIONS = {"mujoco-warp": "4.0.0", "warp-lang": "1.19.0"}
"""mujoco-warp follows MuJoCo's releases, and captures on the CPU are recent in warp: measured with these."""

LIMIT = 1e10
"""mjMAXVAL, beyond which MuJoCo calls a state unstable."""

NUM_CONTACTS, NUM_CONSTRAINTS = 48, 128
"""Room per world.  An ant flat on the floor needs most of all that is served: 12 x 2 + 1 contacts of 4 rows and 8 joint
limits are 108 rows.  mujoco_warp's own guess is 64."""


class WarpVector(Vector):
    """`B` worlds on the current CUDA device, or on the CPU where there is none.

    A world whose contacts or constraints do not fit into their room has forces missing: it counts as unstable.
    """

    def __init__(self, spec: Spec, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> None:
        self.device = _device()
        self._wp, self._mjw = packages()
        self._template = make(spec.env_id)
        self._dynamics = dynamics_of(self._template, "warp")
        with self._wp.ScopedDevice(self._wp.device_from_torch(self.device)):
            self._open(self._template.model, len(starts))
        super().__init__(spec, starts, seed_of)

    def close(self) -> None:
        """See `Vector`."""
        self._template.close()

    def pose(self, i: int) -> Array:
        """See `Vector`."""
        return host(self._state["qpos"][i]).copy()

    def _array(self, value: Array) -> torch.Tensor:
        return torch.as_tensor(value).to(self.device)

    def _open(self, model: mujoco.MjModel, num_worlds: int) -> None:
        self._model = self._mjw.put_model(model)
        # Overflows are read from the data; printed from a kernel they would come again at every step.
        self._model.opt.warn_overflow = 0
        if torch.are_deterministic_algorithms_enabled():
            self._model.opt.deterministic = self._mjw.DeterminismType.ALL
        self._data = self._mjw.make_data(model, nworld=num_worlds, nconmax=NUM_CONTACTS, njmax=NUM_CONSTRAINTS)
        # What the next step depends on, and what the task functions read. All else is computed anew by every step.
        names = ("qpos", "qvel", "qacc_warmstart", *(("act",) if model.na else ()), *self._dynamics.fields)
        self._state = {name: self._wp.to_torch(getattr(self._data, name)) for name in names}
        self._control = self._wp.to_torch(self._data.ctrl)
        self._acceleration = self._wp.to_torch(self._data.qacc)
        self._overflow = self._wp.to_torch(self._data.overflow)
        # Kernels are compiled and loaded by the first call, which a capture does not allow on every driver.
        self._simulate()
        with self._wp.ScopedCapture() as capture:
            self._simulate()
        self._graph = capture.graph
        self._wp.synchronize_device()

    def _simulate(self) -> None:
        self._data.overflow.zero_()
        for _ in range(self._template.frame_skip):
            self._mjw.step(self._model, self._data)
        if "cfrc_ext" in self._dynamics.fields:
            self._mjw.rne_postconstraint(self._model, self._data)

    def _advance(self, action: torch.Tensor) -> Transition:
        before = copy(self._dynamics.position(self._state))
        self._control.copy_(action)
        # On torch's own stream, so that neither waits for the other by way of the host.
        stream = self._wp.stream_from_torch(self.device) if self.device.type == "cuda" else None
        self._wp.capture_launch(self._graph, stream=stream)
        outcome = self._dynamics.outcome(before, self._state, action)
        return Transition(
            observation=self._dynamics.observation(self._state),
            reward=outcome.reward,
            terminated=outcome.terminated,
            unstable=self._unstable(),
            terms=outcome.terms,
        )

    def _unstable(self) -> torch.Tensor:
        kind = self._mjw.OverflowType
        harmless = int(kind.ITERATIONS | kind.LS_ITERATIONS)
        moving = torch.cat([self._state["qpos"], self._state["qvel"], self._acceleration], 1)
        lost: torch.Tensor = (self._overflow & ~harmless) != 0
        return lost | ~(moving.abs() < LIMIT).all(1)

    def _reset(self, rows: Array, seeds: Sequence[int]) -> torch.Tensor:
        data = self._template.data
        first: list[Array] = []
        values: dict[str, list[Array]] = {name: [] for name in self._state}
        for seed in seeds:
            first.append(self._template.reset(seed=seed)[0])
            for name, rows_of in values.items():
                rows_of.append(getattr(data, name).copy())
        at = torch.from_numpy(rows).to(self.device)
        for name, state in self._state.items():
            state[at] = like(np.stack(values[name]).reshape(len(rows), *state.shape[1:]), state)
        return torch.from_numpy(np.array(first, dtype=np.float32)).to(self.device)

    def _simulators(self) -> list[Array]:
        return list(host(torch.cat([flat(state) for state in self._state.values()], 1)))

    def _restore(self, rows: Sequence[Array]) -> None:
        whole = torch.from_numpy(np.stack(rows)).to(self.device)
        sizes = [flat(state).shape[1] for state in self._state.values()]
        for state, part in zip(self._state.values(), torch.split(whole, sizes, 1), strict=True):
            state.copy_(part.reshape(state.shape))


@cache
def warp_spec(env_id: str) -> Spec:
    """Describe an id of Gymnasium whose task has a batched form and whose model mujoco_warp steps.

    Raises:
        ValueError: Packages missing or of another version; no batched form; a feature that mujoco_warp lacks.
    """
    wp, mjw = packages()
    spec = gymnasium_spec(env_id)
    env = make(env_id)
    try:
        dynamics_of(env, "warp")
        # A configuration is read in processes that have no business on the device.
        with wp.ScopedDevice("cpu"):
            mjw.put_model(env.model)
    except NotImplementedError as error:
        raise ValueError(
            f"task.engine=warp: expected a model that mujoco_warp steps, found {env_id!r}: {error} "
            "Use task.engine=batched"
        ) from error
    finally:
        env.close()
    return replace(spec, engine="warp")


@cache
def packages() -> tuple[ModuleType, ModuleType]:
    """Warp and mujoco_warp, told to print nothing but errors.

    Raises:
        ValueError: Missing or of another version.
    """
    for name, version in VERSIONS.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != version:
            raise ValueError(
                f"engine warp: expected the package {name} {version}, found {found}; pip install 'rlflow[warp]'"
            )
    import warp

    warp.config.log_level = warp.LOG_ERROR
    import mujoco_warp

    return warp, mujoco_warp


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
