"""The engines by name: the same task and the same transitions in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from tasks.control.batched import BatchedVector, batched_serves
from tasks.control.vector import GymnasiumVector, Vector

Engine = Literal["auto", "batched", "gymnasium"]


def open_vector(engine: Engine, env_id: str, starts: Sequence[int], seed_of: Callable[[int, int], int]) -> Vector:
    """Open and reset `len(starts)` simulators of `env_id`; `auto` takes `batched` where it serves the id.

    Raises:
        ValueError: The engine does not serve the id; names the one that does.
    """
    if engine == "gymnasium" or (engine == "auto" and not batched_serves(env_id)):
        return GymnasiumVector(env_id, starts, seed_of)
    return BatchedVector(env_id, starts, seed_of)
