"""The policy term of ratio-based algorithms: which ratio, which trust region, which weights, which mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlflow.loss import (
    bounded_exp,
    clip_fraction,
    clipped_surrogate,
    dual_clipped,
    leaving,
    recentred_log_ratio,
    sequence_log_ratio,
    truncated_weight,
)
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout

MOMENTS = "old_moments"


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Options of a policy term, by name; the defaults are PPO's clipped ratio per decision, averaged over decisions.

    Attributes:
        ratio: `token`, one per refinement step of a decision; `sequence`, the length-normalised ratio of the row
            (GSPO, arXiv 2507.18071, eq. 7), which needs clip ranges near 3e-4; `sequence_token`, its value with each
            decision's own gradient (GSPO-token, eq. 14).
        ratio_norm: GRPO-Guard's RatioNorm (arXiv 2510.22319, eq. 8): re-centre each step's log-ratio by its
            divergence and scale it by its noise, so that the clip binds alike on both sides and at all steps. It
            shrinks log-ratios by the step's std: lower the clip ranges.
        step_weight: `inverse_dt`, weigh each step by 1 / |dt| (GRPO-Guard's gradient re-weighting), so that steps of
            a long stride do not make the whole gradient. The term grows by that factor: beta has to grow with it.
        trust_region: `clip`, PPO's; `divergence`, drop a step that leaves AND whose KL from the behaviour policy is
            at least `divergence_limit` (Flow-DPPO, arXiv 2606.11025, eq. 18); `none`.
        divergence_limit: Limit of each step's KL, in the policy's reduction over dimensions. Too low: every step
            but the first is dropped; too high: no trust region.
        dual_clip: c of dual-clip PPO (arXiv 1912.09729, eq. 5; 0 = off, usual 3). Too low: bad decisions are not
            pushed down; too high: never binds.
        sampler_weight_cap: Cap of the truncated importance weight between trainer and rollout engine (0 = off,
            usual 2). Too low: no correction; too high: a few tokens make the update.
        aggregation: `token`, mean over all unmasked decisions of the batch; `sequence`, mean over rows of each
            row's mean, in which a token of a long row counts less; `constant`, sum divided by rows times `horizon`
            (Dr. GRPO, arXiv 2503.20783, section 3.2; with the advantage unscaled).
        horizon: Decisions per row that `constant` divides by, e.g. the longest completion. Too low: larger steps.
    """

    ratio: Literal["token", "sequence", "sequence_token"] = "token"
    ratio_norm: bool = False
    step_weight: Literal["none", "inverse_dt"] = "none"
    trust_region: Literal["clip", "divergence", "none"] = "clip"
    divergence_limit: float = 1e-5
    dual_clip: float = 0.0
    sampler_weight_cap: float = 0.0
    aggregation: Literal["token", "sequence", "constant"] = "token"
    horizon: int = 0

    def __post_init__(self) -> None:
        """Refuse limits that cannot limit and a mean without its denominator."""
        if self.dual_clip != 0 and self.dual_clip <= 1:
            raise ValueError(f"surrogate.dual_clip: expected 0 (off) or above 1, found {self.dual_clip}; use 3")
        if self.sampler_weight_cap != 0 and self.sampler_weight_cap < 1:
            raise ValueError(
                f"surrogate.sampler_weight_cap: expected 0 (off) or at least 1, found {self.sampler_weight_cap}; use 2"
            )
        if self.divergence_limit <= 0:
            raise ValueError(f"surrogate.divergence_limit: expected > 0, found {self.divergence_limit}; use 1e-5")
        if (self.aggregation == "constant") != (self.horizon > 0):
            raise ValueError(
                f"surrogate.horizon: expected the decisions of the longest row for aggregation=constant and 0 for any "
                f"other, found {self.horizon} for {self.aggregation}; e.g. horizon=32 aggregation=constant"
            )

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods; divergence and step sizes only where an option needs them."""
        wanted = {"log_prob"}
        if self._needs_moments:
            wanted.add("divergence")
        if self.ratio_norm or self.step_weight != "none":
            wanted.add("steps")
        return frozenset(wanted)

    @property
    def _needs_moments(self) -> bool:
        return self.ratio_norm or self.trust_region == "divergence"

    def anchors(self, policy: Policy, rollout: Rollout) -> dict[str, Tensor]:
        """Targets `[B, T, ...]` that the term compares with; refuses a rollout that lacks what an option reads.

        Raises:
            ValueError: `sampler_weight_cap` without the engine's likelihoods.
        """
        if self.sampler_weight_cap > 0 and rollout.sampler_log_prob is None:
            raise ValueError(
                "surrogate.sampler_weight_cap: expected rollout.sampler_log_prob of a rollout engine, found none: the "
                "policy's own forward has sampled, so that there is nothing to correct; set sampler_weight_cap=0, or "
                "sample with an engine that gives its log-probs"
            )
        return {MOMENTS: policy.moments(rollout)} if self._needs_moments else {}

    def term(
        self, policy: Policy, part: Minibatch, log_prob: Tensor, *, clip_low: float, clip_high: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy loss of a minibatch with the target `advantage [b, T]`, and its metrics.

        Args:
            policy: Asked for divergence and step sizes.
            part: Minibatch.
            log_prob: `[b, T, K]` of the current policy.
            clip_low: Lower clip range of the ratio.
            clip_high: Upper clip range.

        Returns:
            A part of the mean over the optimiser batch, and parts of metrics: `clip_fraction` is the share of steps
            outside the trust region, `ratio` their mean ratio.
        """
        metrics: dict[str, Tensor] = {}
        advantage = part.targets["advantage"]
        divergence = policy.divergence(part, part.targets[MOMENTS]) if self._needs_moments else None
        rho = self._ratio(policy, part, log_prob, divergence)
        clip = {"clip_low": clip_low, "clip_high": clip_high}
        outside = clip_fraction(rho, **clip)
        if self.trust_region == "clip":
            loss = clipped_surrogate(rho, advantage, **clip)
        else:
            loss = -rho * advantage.unsqueeze(-1)
        if divergence is not None:
            metrics["divergence"] = part.mean(divergence.detach())
        if self.trust_region == "divergence":
            assert divergence is not None
            dropped = leaving(rho, advantage) & (divergence.detach() >= self.divergence_limit)
            loss, outside = torch.where(dropped, 0.0, loss), dropped.to(loss.dtype)
        if self.dual_clip > 0:
            bounded = dual_clipped(loss, advantage, limit=self.dual_clip)
            metrics["dual_clip_fraction"] = part.mean((bounded < loss).to(loss.dtype))
            loss = bounded
        if self.sampler_weight_cap > 0:
            weight = self._sampler_weight(part)
            metrics["sampler_weight"] = part.mean(weight)
            loss = loss * weight
        if self.step_weight == "inverse_dt":
            loss = loss / policy.step_length(part)
        metrics |= {"clip_fraction": part.mean(outside), "ratio": part.mean(rho.detach())}
        return self.aggregate(part, loss), metrics

    def aggregate(self, part: Minibatch, x: Tensor) -> Tensor:
        """Reduce `x [b, T]` or `[b, T, K]` to this part of the mean that `aggregation` names; K is averaged."""
        if self.aggregation == "token":
            return part.mean(x)
        if x.ndim == 3:
            x = x.mean(dim=-1)
        total = torch.where(part.mask, x, 0.0).sum(dim=1)  # [b]
        if self.aggregation == "sequence":
            return part.mean_rows(total / part.mask.sum(dim=1).clamp_min(1))
        return part.mean_rows(total / self.horizon)

    def _ratio(self, policy: Policy, part: Minibatch, log_prob: Tensor, divergence: Tensor | None) -> Tensor:
        """`[b, T, K]`."""
        log_ratio = log_prob - part.behaviour_log_prob
        if self.ratio_norm:
            assert divergence is not None
            log_ratio = recentred_log_ratio(log_ratio, divergence, policy.step_std(part))
        if self.ratio != "token":
            through = self.ratio == "sequence_token"
            log_ratio = sequence_log_ratio(log_ratio, part.mask, straight_through=through)
        return bounded_exp(log_ratio)

    def _sampler_weight(self, part: Minibatch) -> Tensor:
        assert part.sampler_log_prob is not None, "checked by anchors()"
        return truncated_weight(part.behaviour_log_prob, part.sampler_log_prob, part.mask, cap=self.sampler_weight_cap)
