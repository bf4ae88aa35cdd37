"""FPO: flow policy optimisation, PPO's clip on a ratio of evidence bounds, free of likelihoods (arXiv 2507.21053)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlflow.advantage import episode_return, gae, next_values, rollout_advantage, whiten
from rlflow.algorithm import Algorithm, Loss
from rlflow.loss import MAX_LOG_RATIO, asymmetric_surrogate, clip_fraction, clipped_surrogate, value_error
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class Fpo(Algorithm):
    r"""$\hat r = \exp(\mathrm{ELBO}_\theta - \mathrm{ELBO}_{old})$ in PPO's clipped objective (eq. 10-13).

    Both bounds use the probes stored with the rollout; fresh probes would drown the ratio in their own noise. FPO++
    (2602.02481) is `ratio=per_sample trust_region=asymmetric straight_through=true`.

    Attributes:
        ratio: `average`, one ratio per decision, the probes averaged before exp; `per_sample`, a ratio per probe, with
            the difference clamped to +-`probe_clamp`.
        probe_clamp: Clamp of `per_sample` differences.
        straight_through: Let the gradient pass that clamp, as FPO++ does; without it a probe beyond it teaches nothing.
        trust_region: `clip`, PPO's; `asymmetric`, FPO++'s, which turns back ratios that fell too far.
        clip: Range of the ratio. Too high: the bound is a poor ratio far from the data.
        baseline: `value`, GAE with a critic; `group`, the group-relative return (needs groups, no critic).
        gamma: Discount per decision.
        lam: GAE trace decay.
        value_weight: Weight of the value loss.
        value_clip: Clip of the value (0 = off).
        negative_weight: Factor of negative advantages. Pushing a bound DOWN is unbounded: below 1 it keeps image
            models from dissolving.
        beta: Weight of the distance to the reference (0 = off, then no reference is built).
    """

    ratio: Literal["average", "per_sample"] = "average"
    probe_clamp: float = 3.0
    straight_through: bool = False
    trust_region: Literal["clip", "asymmetric"] = "clip"
    clip: float = 0.05
    baseline: Literal["value", "group"] = "value"
    gamma: float = 0.99
    lam: float = 0.95
    value_weight: float = 0.5
    value_clip: float = 0.0
    negative_weight: float = 1.0
    beta: float = 0.0

    @property
    def needs_groups(self) -> bool:
        """Only where the group is the baseline."""
        return self.baseline == "group"

    drops_silent_groups = needs_groups

    @property
    def requires(self) -> frozenset[str]:
        """A bound, a critic unless the group is the baseline, a reference if beta asks for it."""
        asked = {"elbo": True, "value": self.baseline == "value", "reference": self.beta > 0}
        return frozenset(name for name, needed in asked.items() if needed)

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Old bounds `[B, T, N]` at the stored probes, advantages and returns `[B, T]`."""
        tensors: dict[str, Tensor] = {"old_elbo": policy.elbo(rollout)}
        if self.baseline == "group":
            returns = episode_return(rollout.reward, rollout.mask)
            tensors["advantage"] = rollout_advantage(returns, rollout.group, rollout.mask, scale="group")
            return Targets(tensors=tensors)
        value: Tensor = policy.value(rollout)
        advantage = gae(
            rollout.reward, value, next_values(policy.value, rollout, value), rollout.terminated, rollout.boundary,
            gamma=self.gamma, lam=self.lam,
        )  # fmt: skip
        tensors.update(advantage=whiten(advantage, rollout.mask), returns=advantage + value, old_value=value)
        return Targets(tensors=tensors, metrics={"value_mean": value[rollout.mask].mean()})

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Clipped bound ratio plus the value error."""
        goal = minibatch.targets
        rho = self._ratio(policy.elbo(minibatch) - goal["old_elbo"])
        advantage = torch.where(goal["advantage"] < 0, self.negative_weight * goal["advantage"], goal["advantage"])
        clip = {"clip_low": self.clip, "clip_high": self.clip}
        if self.trust_region == "asymmetric":
            surrogate = asymmetric_surrogate(rho, advantage, clip=self.clip)
        else:
            surrogate = clipped_surrogate(rho, advantage, **clip)
        terms = {"policy": minibatch.mean(surrogate)}
        metrics = {"clip_fraction": minibatch.mean(clip_fraction(rho, **clip)), "ratio": minibatch.mean(rho.detach())}
        if self.baseline == "value":
            value = policy.value(minibatch)
            error = minibatch.mean(value_error(value, goal["returns"], goal["old_value"], clip=self.value_clip))
            terms["value"] = self.value_weight * error
            metrics["value_error"] = error.detach()
        if self.beta > 0:
            distance = minibatch.mean(policy.kl(minibatch))
            terms["kl"] = self.beta * distance
            metrics["ref_kl"] = distance.detach()
        return Loss(terms=terms, metrics=metrics)

    def _ratio(self, difference: Tensor) -> Tensor:
        """`[B, T, N]` differences of bounds to `[B, T, 1]` or `[B, T, N]` ratios."""
        if self.ratio == "average":
            return difference.mean(-1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        clamped = difference.clamp(-self.probe_clamp, self.probe_clamp)
        if self.straight_through:
            clamped = difference + (clamped - difference).detach()
        return clamped.exp()

    def note(self, policy: Policy) -> str | None:
        """Where the bound is tight, FPO is PPO on one ratio per decision."""
        return "bound is tight on this policy: PPO-like, one ratio per decision" if policy.elbo_is_tight else None
