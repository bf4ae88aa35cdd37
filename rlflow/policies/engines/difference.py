"""How far an engine's likelihoods are from the trainer's."""

from __future__ import annotations

from torch import Tensor


def engine_difference(log_prob: Tensor, sampler_log_prob: Tensor, mask: Tensor) -> dict[str, float]:
    """Scalars over the unmasked tokens.

    Args:
        log_prob: `[B, T, 1]` of the trainer's forward.
        sampler_log_prob: `[B, T, 1]` that the engine reported.
        mask: `[B, T]`.

    Returns:
        `engine_difference_mean` and `engine_difference_max` of `|log pi - log mu|` in nats, and `engine_kl`, the
        estimate `mean(r - 1 - log r)`, `r = pi / mu`, of KL(mu, pi) by tokens of mu (k3 of Schulman, "Approximating
        KL divergence", 2020), which is never negative.
    """
    delta = (log_prob - sampler_log_prob).squeeze(-1)[mask].detach().double()
    return {
        "engine_difference_mean": float(delta.abs().mean()),
        "engine_difference_max": float(delta.abs().max()),
        "engine_kl": float((delta.expm1() - delta).mean()),
    }
