"""What task functions and engines do to batches, NumPy arrays and torch tensors alike.

NumPy 2 and torch share the array API's names for all that is used here, so that choosing the module is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Batch = Any
"""NumPy array or torch tensor, rows first."""


def namespace(x: Batch) -> Any:
    """The module whose functions take `x`."""
    return torch if isinstance(x, torch.Tensor) else np


def concatenate(*parts: Batch) -> Batch:
    """`[B, m]` and `[B, n]` to `[B, m + n]`."""
    return namespace(parts[0]).concat(parts, 1)


def sin(x: Batch) -> Batch:
    """Elementwise."""
    return namespace(x).sin(x)


def cos(x: Batch) -> Batch:
    """Elementwise."""
    return namespace(x).cos(x)


def finite(x: Batch) -> Batch:
    """Elementwise bool."""
    return namespace(x).isfinite(x)


def like(value: Batch, x: Batch) -> Batch:
    """`value` as the kind and type of `x` and on its device; not copied where it is all that."""
    if isinstance(x, torch.Tensor):
        return torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return np.asarray(host(value), dtype=x.dtype)


def host(x: Batch) -> np.ndarray:
    """A NumPy array; shares memory with `x` on the CPU, and else waits for the device."""
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def tensor(x: Batch, device: torch.device) -> torch.Tensor:
    """A tensor on `device`; shares memory with `x` where that lies there."""
    return (x if isinstance(x, torch.Tensor) else torch.from_numpy(x)).to(device)


def copy(x: Batch) -> Batch:
    """New memory."""
    return x.clone() if isinstance(x, torch.Tensor) else x.copy()


def columns(parts: Sequence[Batch]) -> torch.Tensor:
    """T batches `[B, ...]` as one tensor `[B, T, ...]`."""
    if isinstance(parts[0], torch.Tensor):
        return torch.stack(list(parts), 1)
    return torch.from_numpy(np.stack(parts, 1))


def flat(x: Batch) -> Batch:
    """`[B, ...]` to `[B, n]`."""
    return x.reshape(x.shape[0], -1)


def squares(x: Batch) -> Batch:
    """Sum of squares of each row, `[B, n]` to `[B]`."""
    return (x * x).sum(1)


def length(x: Batch) -> Batch:
    """Euclidean norm of each row, `[B, n]` to `[B]`."""
    return squares(x) ** 0.5


def inside(x: Batch, limits: tuple[float, float]) -> Batch:
    """Elementwise bool: strictly between the limits."""
    return (limits[0] < x) & (x < limits[1])


def never(x: Batch) -> Batch:
    """False for each element of `x`."""
    return (x == x) & False
