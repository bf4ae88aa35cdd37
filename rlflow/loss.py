"""Objectives as pure functions on tensors; reductions are `Minibatch.mean` and `Minibatch.mean_rows`."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp: one runaway token would otherwise make the whole loss infinite."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """Exponential of a log-ratio within +-`MAX_LOG_RATIO`, any shape."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Importance ratio `exp(log_prob - old_log_prob)`, any shape."""
    return bounded_exp(log_prob - old_log_prob)


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor, *, straight_through: bool) -> Tensor:
    r"""One log-ratio per row, $\tfrac1{|y|} \sum_t \log\rho_t$ (GSPO, arXiv 2507.18071, eq. 7), at every decision.

    A sum instead of the mean would leave any clip range within a few tokens of a long row.

    Args:
        log_ratio: `[B, T, K]`.
        mask: `[B, T]`; |y| is its unmasked decisions times K.
        straight_through: Keep that value, but let each decision have the gradient of its own log-prob (GSPO-token,
            eq. 14). It is the same gradient where all decisions of a row share one advantage.

    Returns:
        `[B, T, K]`.
    """
    length = (mask.sum(dim=1) * log_ratio.shape[-1]).clamp_min(1)
    mean = (torch.where(mask.unsqueeze(-1), log_ratio, 0.0).sum((1, 2)) / length)[:, None, None]  # [B, 1, 1]
    if straight_through:
        return mean.detach() + (log_ratio - log_ratio.detach())
    return mean.expand_as(log_ratio)


def recentred_log_ratio(log_ratio: Tensor, divergence: Tensor, step_std: Tensor) -> Tensor:
    r"""$(\log\rho + D_{KL}(\pi_{old} \| \pi))\,\sigma$ per step: GRPO-Guard's RatioNorm (arXiv 2510.22319, eq. 8).

    The mean of a Gaussian step's log-ratio is -KL, below 0, and its spread goes with 1 / std, so that a clip around 1
    binds on bad samples only and at other steps differently. What is left here is $\epsilon \cdot (\mu - \mu_{old})$.
    The correction is each sample's own; public code averages it over the batch, which shifts ratios by those of others.

    Args:
        log_ratio: `[B, T, K]`.
        divergence: `[B, T, K]`, reduced over dimensions like `log_ratio`, differentiable.
        step_std: `[B, T, K]`, std of the step with sqrt(-dt).
    """
    return (log_ratio + divergence) * step_std


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


def dual_clipped(surrogate: Tensor, advantage: Tensor, *, limit: float) -> Tensor:
    r"""The loss of a negative advantage kept below $c|A|$ (dual-clip PPO, arXiv 1912.09729, eq. 5).

    PPO's clip leaves $-\rho A$ unbounded where A < 0 and the ratio is large: one such token makes the whole update.

    Args:
        surrogate: `[B, T, K]` losses.
        advantage: `[B, T]` or `[B, T, 1]`.
        limit: c > 1. Too low: bad decisions are no longer pushed down; too high: never binds.
    """
    a = advantage if advantage.ndim == surrogate.ndim else advantage.unsqueeze(-1)
    return torch.where(a < 0, torch.minimum(surrogate, -limit * a), surrogate)


def leaving(rho: Tensor, advantage: Tensor) -> Tensor:
    """Where a step along the advantage moves the ratio further from 1, `[B, T, K]` bool (arXiv 2606.11025, eq. 18)."""
    a = advantage if advantage.ndim == rho.ndim else advantage.unsqueeze(-1)
    return ((rho > 1.0) & (a > 0)) | ((rho < 1.0) & (a < 0))


def truncated_weight(log_prob: Tensor, sampler_log_prob: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    r"""$\min(\pi_{trainer} / \pi_{sampler}, C)$ of each decision, without gradient; 1 where masked.

    Corrects for a rollout engine whose numbers differ from the trainer's (TIS; Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training").

    Args:
        log_prob: `[B, T, K]` of the behaviour policy by the trainer.
        sampler_log_prob: `[B, T, K]` by the engine.
        mask: `[B, T]`.
        cap: C. Too low: biased towards no correction; too high: a few tokens make the update.
    """
    weight = ratio(log_prob, sampler_log_prob).clamp(max=cap)
    return torch.where(mask.unsqueeze(-1), weight, 1.0).detach()


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
