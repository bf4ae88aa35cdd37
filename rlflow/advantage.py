"""Credit assignment on `[B, T]`: pure functions on tensors, no configuration, no gradient of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlflow.distributed import all_sum, masked_moments
from rlflow.rollout import Rollout

STD_FLOOR = 1e-4
"""Added to a group's standard deviation, as in Flow-GRPO (arXiv 2505.05470, eq. 4) and its code."""

SILENT = 1e-8
"""Up to this standard deviation the returns of a group count as equal: what is left is rounding."""


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, boundary: Tensor, *, gamma: float, lam: float
) -> Tensor:
    r"""Generalised advantage estimation (arXiv 1506.02438, eq. 16) with time limits bootstrapped.

    $\delta_t = r_t + \gamma (1 - \mathrm{terminated}_t) V(s_{t+1}) - V(s_t)$,
    $A_t = \delta_t + \gamma\lambda (1 - \mathrm{boundary}_t) A_{t+1}$.

    Args:
        reward: `[B, T]`.
        value: `[B, T]`, V(s_t).
        next_value: `[B, T]`, V of the TRUE next observation, also at a time limit; ignored where terminated.
        terminated: `[B, T]` bool.
        boundary: `[B, T]` bool; no trace crosses a boundary.
        gamma: Discount per decision.
        lam: Trace decay; 1 = Monte-Carlo, 0 = one step.

    Returns:
        `[B, T]` advantages; value targets are `advantage + value`.
    """
    delta = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    decay = gamma * lam * (~boundary).to(delta.dtype)
    advantage = torch.empty_like(delta)
    trace = torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        trace = delta[:, t] + decay[:, t] * trace
        advantage[:, t] = trace
    return advantage


def returns_to_go(reward: Tensor, boundary: Tensor, *, gamma: float) -> Tensor:
    r"""$G_t = r_t + \gamma (1 - \mathrm{boundary}_t) G_{t+1}$ on `[B, T]`; nothing is bootstrapped."""
    zero = torch.zeros_like(reward)
    return gae(reward, zero, zero, boundary, boundary, gamma=gamma, lam=1.0)


def next_values(value_of: Callable[[Rollout], Tensor], rollout: Rollout, value: Tensor) -> Tensor:
    """V of the state after each decision, `[B, T]`: the next column, or that of the true next context."""
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    open_end = rollout.boundary & ~rollout.terminated
    if rollout.boundary_context is None:
        return torch.where(open_end, 0.0, following)
    ends = boundary_block(rollout)
    following = following.clone()
    following[open_end] = value_of(ends)[:, 0].to(following.dtype)
    return following


def boundary_block(rollout: Rollout) -> Rollout:
    """The next contexts at open boundaries as a block `[M, 1]` of their own, for heads that read only the context."""
    assert rollout.boundary_context is not None
    m = next(iter(rollout.boundary_context.values())).shape[0]
    flags = torch.ones(m, 1, dtype=torch.bool, device=rollout.device)
    return Rollout(
        context=rollout.boundary_context,
        action={},
        mask=flags,
        group=torch.zeros(m, dtype=torch.int64, device=rollout.device),
        reward=torch.zeros(m, 1, device=rollout.device),
        terminated=flags,
        boundary=flags,
        decisions_independent=rollout.decisions_independent,
    )


def group_moments(x: Tensor, group: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation over the members of each row's group, column by column.

    Args:
        x: `[B, T]`.
        group: `[B]` int64 ids; the members of a group are on one rank.
        mask: `[B, T]` bool; members without a trainable decision in a column do not count there.

    Returns:
        Two `[B, T]` tensors.
    """
    _, index = torch.unique(group, return_inverse=True)
    num_groups = int(index.max()) + 1
    weight = mask.to(x.dtype)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(num_groups, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, index, values)

    count = total(weight).clamp_min(1.0)
    mean = (total(x * weight) / count)[index]
    deviation = (x - mean) * weight
    std = (total(deviation.square()) / count).sqrt()[index]
    return mean, std


def group_advantage(x: Tensor, group: Tensor, mask: Tensor, *, scale: str, clip: float = 5.0) -> Tensor:
    r"""Group-relative score $(x - \mathrm{mean}_G) / (\mathrm{std} + 10^{-4})$, clipped (arXiv 2505.05470, eq. 4).

    Groups of zero variance get exactly 0 instead of amplified rounding.

    Args:
        x: `[B, T]` returns.
        group: `[B]`.
        mask: `[B, T]`.
        scale: `group` (its own std), `batch` (std of the centred returns of the global batch) or `none`.
        clip: Limit of the absolute value (0 = off).
    """
    mean, std = group_moments(x, group, mask)
    centred = torch.where(mask & (std > SILENT), x - mean, 0.0)
    if scale == "group":
        centred = centred / (std + STD_FLOOR)
    elif scale == "batch":
        centred = centred / (masked_moments(centred, mask)[1] + STD_FLOOR)
    elif scale != "none":
        raise ValueError(f"scale: expected group, batch or none, found {scale!r}")
    return centred.clamp(-clip, clip) if clip > 0 else centred


def rollout_advantage(returns: Tensor, group: Tensor, mask: Tensor, *, scale: str, clip: float = 5.0) -> Tensor:
    """`group_advantage` of whole rollouts, as GRPO has it (arXiv 2402.03300, section 4.1.2).

    Compared decision by decision, the tokens behind a group's second-longest completion would have nothing to compare
    with and learn nothing.

    Args:
        returns: `[B, T]`, one value per rollout in all its columns.
        group: `[B]`.
        mask: `[B, T]`.
        scale: As `group_advantage`; the batch's std weighs every rollout the same, whatever its length.
        clip: As `group_advantage`.
    """
    advantage = group_advantage(returns, group, whole_rollouts(mask), scale=scale, clip=clip)
    return torch.where(mask, advantage, 0.0)


def whole_rollouts(mask: Tensor) -> Tensor:
    """`[B, T]`, True in all columns of a rollout that has a trainable decision."""
    return mask.any(dim=1, keepdim=True).expand_as(mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean, unit population variance over ALL unmasked decisions of the global batch (arXiv 2501.03262, eq. 5)."""
    mean, std = masked_moments(x, mask)
    return torch.where(mask, (x - mean) / (std + 1e-8), 0.0)


def episode_return(reward: Tensor, mask: Tensor) -> Tensor:
    """Sum of a rollout's rewards, given to each of its decisions: `[B, T]`."""
    total = torch.where(mask, reward, 0.0).sum(dim=1, keepdim=True)
    return total.expand_as(reward)


def zero_std_fraction(x: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Share of unmasked decisions whose group gives no learning signal, over all ranks."""
    _, std = group_moments(x, group, mask)
    silent = all_sum(torch.stack([((std <= SILENT) & mask).sum().double(), mask.sum().double()]))
    return silent[0] / silent[1].clamp_min(1)
