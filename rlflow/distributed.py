"""The few collective operations of the loop; identities when no process group runs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if _running() else 1


def all_sum(x: Tensor) -> Tensor:
    """Sum over all ranks, without gradient; the same tensor when alone."""
    if not _running():
        return x
    total = x.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def averaged(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Mean over ranks of each named scalar; every rank has to bring the same names."""
    if not _running() or not values:
        return values
    means = all_sum(torch.tensor(list(values.values()), device=device)) / world_size()
    return dict(zip(values, means.tolist(), strict=True))


def all_max(value: int, device: torch.device) -> int:
    """Largest of one integer per rank."""
    if not _running():
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of `x` over `mask` of the same shape, over all ranks (float64 sums)."""
    value = torch.where(mask, x, 0.0).double()
    count, total = all_sum(torch.stack([mask.sum().double(), value.sum()])).unbind()
    mean = total / count.clamp_min(1)
    deviation = torch.where(mask, x.double() - mean, 0.0)
    variance = all_sum(deviation.square().sum()[None])[0] / count.clamp_min(1)
    return mean.to(x.dtype), variance.sqrt().to(x.dtype)


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
