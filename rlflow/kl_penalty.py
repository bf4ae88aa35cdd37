"""The divergence from the reference as a penalty: which estimator, in the reward or in the loss, at which weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlflow.loss import k1, k2, k3
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
WEIGHT, METRIC = "kl_weight", "ref_kl"
REFERENCE = "ref_log_prob"
ERROR_LIMIT = 0.2


@dataclass(frozen=True, kw_only=True)
class KlPenalty:
    """How the divergence from the reference is measured, and whether its weight follows a target.

    Attributes:
        estimator: `exact`, the policy's own `kl`; `k1`, `k2`, `k3` (Schulman 2020), estimates from the log-probs of the
            sampled decisions alone; `auto`, k1 in the reward and exact in the loss. k2 has the KL's gradient in the
            loss, k3 has not (it is unbiased as a value); k1's is zero on average, and is refused there.
        controller: `fixed`; `doubling`, halve or double the weight where the KL is 1.5 times below or above the
            target (arXiv 1707.06347, section 4); `proportional`, times 1 + gain * error, the relative error clipped
            to +-.2 (arXiv 1909.08593, section 2.2).
        target: KL per decision that a controller aims at. Too low: no gain; too high: drifts.
        gain: Of `proportional`. Too low: lags; too high: oscillates.
    """

    estimator: Literal["auto", "exact", "k1", "k2", "k3"] = "auto"
    controller: Literal["fixed", "doubling", "proportional"] = "fixed"
    target: float = 0.0
    gain: float = 0.1

    def check(self, where: str, weight: float) -> None:
        """Refuse an estimator without a gradient, and a controller that cannot move.

        Args:
            where: `reward` or `loss`.
            weight: The weight at the start.

        Raises:
            ValueError: Says what to set.
        """
        if self.estimator == "k1" and where == "loss" and weight != 0:
            raise ValueError(
                "kl.estimator: expected exact, k2 or k3 for a KL in the loss, found k1, whose gradient there is zero "
                "on average; set kl.estimator=k2, or kl_in=reward"
            )
        if self.controller != "fixed" and (self.target <= 0 or self.gain <= 0 or weight <= 0):
            raise ValueError(
                f"kl.controller={self.controller}: expected a target, a gain and a first weight above 0, found "
                f"kl.target={self.target}, kl.gain={self.gain} and the weight {weight}; e.g. kl.target=0.05 with .01"
            )

    def controls(self, weight: float) -> dict[str, float]:
        """What the loop has to carry: the weight where a controller moves it."""
        return {} if self.controller == "fixed" else {WEIGHT: weight}

    def adjusted(self, controls: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        """The weight after an iteration that measured `loss/ref_kl` or `advantage/ref_kl`."""
        if WEIGHT not in controls:
            return dict(controls)
        found = metrics.get(f"loss/{METRIC}", metrics.get(f"advantage/{METRIC}", self.target))
        error = found / self.target - 1.0
        if self.controller == "doubling":
            factor = 2.0 if found > 1.5 * self.target else 0.5 if found < self.target / 1.5 else 1.0
        else:
            factor = 1.0 + self.gain * min(max(error, -ERROR_LIMIT), ERROR_LIMIT)
        return {**controls, WEIGHT: controls[WEIGHT] * factor}

    def in_reward(self, policy: Policy, rollout: Rollout) -> Tensor:
        """`[B, T]` penalty of each decision of the behaviour policy, summed over K; 0 where masked."""
        if self.estimator == "exact":
            penalty = policy.kl(rollout)
        else:
            estimate = ESTIMATORS["k1" if self.estimator == "auto" else self.estimator]
            penalty = estimate(rollout.behaviour_log_prob, policy.ref_log_prob(rollout))
        return torch.where(rollout.mask, penalty.sum(-1), 0.0)

    def anchors(self, policy: Policy, rollout: Rollout) -> dict[str, Tensor]:
        """Targets that `in_loss` compares with: the reference's likelihoods, where an estimate reads them."""
        return {REFERENCE: policy.ref_log_prob(rollout)} if self.estimator in ESTIMATORS else {}

    def in_loss(self, policy: Policy, part: Minibatch, log_prob: Tensor) -> Tensor:
        """`[b, T, K]` penalty of the current policy, whose `log_prob` is `[b, T, K]`; differentiable."""
        if self.estimator in ESTIMATORS:
            return ESTIMATORS[self.estimator](log_prob, part.targets[REFERENCE])
        return policy.kl(part)
