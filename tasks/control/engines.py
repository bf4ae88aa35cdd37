"""The engines by name: the same task and, to their precision, the same transitions in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import gymnasium

from rlflow.registry import did_you_mean
from tasks.control.batched import BatchedVector, batched_serves, dynamics_of
from tasks.control.environments import Spec, gymnasium_spec, make, mujoco_ids
from tasks.control.envpool_engine import EnvpoolVector, envpool_ids, envpool_spec
from tasks.control.vector import GymnasiumVector, Vector
from tasks.control.warp_engine import WarpVector, warp_spec

Engine = Literal["auto", "batched", "gymnasium", "envpool", "warp"]

VECTORS: dict[str, type[Vector]] = {
    "batched": BatchedVector,
    "gymnasium": GymnasiumVector,
    "envpool": EnvpoolVector,
    "warp": WarpVector,
}


def spec_of(engine: Engine, env_id: str) -> Spec:
    """Describe an environment and say which engine steps it.

    `auto` takes `batched` where it serves the id, `gymnasium` where that knows it, and else `envpool`.

    Raises:
        ValueError: No engine, or not this one, serves the id; names what does.
    """
    if engine == "envpool":
        return envpool_spec(env_id)
    if engine == "warp":
        return warp_spec(env_id)
    if engine == "auto" and ":" not in env_id and env_id not in gymnasium.registry:
        if env_id in envpool_ids():
            return envpool_spec(env_id)
        raise ValueError(
            f"unknown environment {env_id!r}{did_you_mean(env_id, mujoco_ids())}; those of DM Control, e.g. "
            "CheetahRun-v1, need pip install 'rlflow[envpool]'"
        )
    spec = gymnasium_spec(env_id)
    if engine == "batched":
        env = make(env_id)
        dynamics_of(env)
        env.close()
    is_batched = engine == "batched" or (engine == "auto" and batched_serves(env_id))
    return replace(spec, engine="batched") if is_batched else spec


def open_vector(spec: Spec, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> Vector:
    """Open and reset `len(starts)` simulators."""
    return VECTORS[spec.engine](spec, starts, seed_of)
