"""The few operations on batches that NumPy arrays and torch tensors spell differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Batch = Any
"""NumPy array or torch tensor, rows first."""


def concatenate(*parts: Batch) -> Batch:
    """`[B, m]` and `[B, n]` to `[B, m + n]`."""
    return torch.cat(parts, 1) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts, 1)


def sin(x: Batch) -> Batch:
    """Elementwise."""
    return x.sin() if isinstance(x, torch.Tensor) else np.sin(x)


def cos(x: Batch) -> Batch:
    """Elementwise."""
    return x.cos() if isinstance(x, torch.Tensor) else np.cos(x)


def finite(x: Batch) -> Batch:
    """Elementwise bool."""
    return torch.isfinite(x) if isinstance(x, torch.Tensor) else np.isfinite(x)


def like(constant: np.ndarray, x: Batch) -> Batch:
    """A NumPy constant of the kind, type and device of `x`."""
    return torch.as_tensor(constant, dtype=x.dtype, device=x.device) if isinstance(x, torch.Tensor) else constant


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
