"""Objectives as pure functions on tensors; reductions are `Minibatch.mean` and `Minibatch.mean_rows`."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp: one runaway token would otherwise make the whole loss infinite."""


def ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Importance ratio `exp(log_prob - old_log_prob)`, any shape."""
    return (log_prob - old_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_surrogate(rho: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    r"""PPO's pessimistic objective (arXiv 1707.06347, eq. 7), negated: $-\min(\rho A, \mathrm{clip}(\rho) A)$.

    Args:
        rho: `[B, T, K]` ratios.
        advantage: `[B, T]` or `[B, T, 1]`.
        clip_low: l. Too low: nothing moves; too high: the policy leaves the data.
        clip_high: h.

    Returns:
        `[B, T, K]`.
    """
    a = advantage if advantage.ndim == rho.ndim else advantage.unsqueeze(-1)
    return -torch.minimum(rho * a, rho.clamp(1.0 - clip_low, 1.0 + clip_high) * a)


def asymmetric_surrogate(rho: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    r"""PPO's clip where the advantage is positive, elsewhere a parabola that pulls the ratio back (2602.02481).

    For $A \le 0$ it is $-(\rho A - \frac{|A|}{2\epsilon} (\rho - 1)^2)$, smallest at $\rho = 1 - \epsilon$. Beyond the
    clip PPO's gradient is 0 and nothing brings such a decision back; here it turns around.

    Args:
        rho: `[B, T, K]` ratios.
        advantage: `[B, T]` or `[B, T, 1]`.
        clip: epsilon of both sides.

    Returns:
        `[B, T, K]`.
    """
    a = advantage if advantage.ndim == rho.ndim else advantage.unsqueeze(-1)
    pulled = a.abs() / (2.0 * clip) * (rho - 1.0).square() - rho * a
    return torch.where(a > 0, clipped_surrogate(rho, a, clip_low=clip, clip_high=clip), pulled)


def clip_fraction(rho: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Indicator of ratios outside the clip range, same shape as `rho`, without gradient."""
    with torch.no_grad():
        return ((rho < 1.0 - clip_low) | (rho > 1.0 + clip_high)).to(rho.dtype)


def value_error(value: Tensor, returns: Tensor, old_value: Tensor, *, clip: float) -> Tensor:
    r"""$\tfrac12 (V - R)^2$ on `[B, T]`; with `clip` > 0 the larger of it and that of V kept near the old V."""
    error = (value - returns).square()
    if clip > 0:
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


def k1(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """KL(pi, ref) estimator d = log pi - log ref: unbiased, high variance (Schulman 2020)."""
    return log_prob - ref_log_prob


def k2(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """KL estimator d^2 / 2: biased, its gradient is the gradient of KL on on-policy samples."""
    return 0.5 * (log_prob - ref_log_prob).square()


def k3(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """KL estimator exp(-d) - 1 + d: unbiased and never negative (arXiv 2402.03300, eq. 4)."""
    d = (log_prob - ref_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.exp(-d) - 1.0 + d
