"""Flow-GRPO: group-relative advantage on every refinement step (arXiv 2505.05470). On a causal LM it is GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlflow.advantage import episode_return, group_advantage, returns_to_go, zero_std_fraction
from rlflow.algorithm import Algorithm, Loss
from rlflow.loss import clip_fraction, clipped_surrogate, ratio
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class FlowGrpo(Algorithm):
    r"""$L = E[-\min(\rho \hat A, \mathrm{clip}(\rho) \hat A)] + \beta D_{KL}(\pi \| \pi_{ref})$ (eq. 5).

    Attributes:
        clip_low: Lower clip range of the ratio. Its meaning depends on the policy's reduction over dimensions: aim at
            `loss/clip_fraction` of .1-.3. Too low: nothing moves; too high: collapse.
        clip_high: Upper clip range.
        beta: Weight of the KL to the reference. Too low: reward hacking; too high: no gain.
        scale: Denominator of the advantage: the group's std, the std over the batch, or none.
        credit: `episode`, one return for all decisions of a rollout; `to_go`, the discounted return from each
            decision on, compared with the group at the same time.
        gamma: Discount per decision of `to_go`; refinement steps are never discounted.
        advantage_clip: Limit of |advantage|.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    scale: Literal["group", "batch", "none"] = "group"
    credit: Literal["episode", "to_go"] = "episode"
    gamma: float = 1.0
    advantage_clip: float = 5.0

    @property
    def needs_groups(self) -> bool:
        """The group is the baseline."""
        return True

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods of the refinement steps, and the reference that the KL needs."""
        return frozenset({"log_prob", "reference"})

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Group-relative advantage `[B, T]`; groups without variance teach nothing."""
        if self.credit == "to_go":
            returns = returns_to_go(rollout.reward, rollout.boundary, gamma=self.gamma)
        else:
            returns = episode_return(rollout.reward, rollout.mask)
        advantage = group_advantage(returns, rollout.group, rollout.mask, scale=self.scale, clip=self.advantage_clip)
        silent = zero_std_fraction(returns, rollout.group, rollout.mask)
        return Targets(
            tensors={"advantage": advantage},
            metrics={"zero_std_fraction": silent, "abs_mean": advantage[rollout.mask].abs().mean()},
        )

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Clipped ratio per (T, K) plus beta times the KL."""
        rho = ratio(policy.log_prob(minibatch), minibatch.behaviour_log_prob)
        clip = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        terms = {"policy": minibatch.mean(clipped_surrogate(rho, minibatch.targets["advantage"], **clip))}
        metrics = {"clip_fraction": minibatch.mean(clip_fraction(rho, **clip)), "ratio": minibatch.mean(rho.detach())}
        if self.beta > 0:
            kl = minibatch.mean(policy.kl(minibatch))
            terms["kl"] = self.beta * kl
            metrics["ref_kl"] = kl.detach()
        return Loss(terms=terms, metrics=metrics)

    def note(self, policy: Policy) -> str | None:
        """On a policy without refinement steps this is plain GRPO."""
        return "GRPO (no refinement steps on this policy)" if policy.elbo_is_tight else None
