"""Flow-GRPO: group-relative advantage on every refinement step (arXiv 2505.05470). On a causal LM it is GRPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rlflow.advantage import episode_return, group_advantage, returns_to_go, whole_rollouts, zero_std_fraction
from rlflow.algorithm import Algorithm, Loss
from rlflow.distributed import masked_moments
from rlflow.kl_penalty import METRIC, WEIGHT, KlPenalty
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets
from rlflow.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class FlowGrpo(Algorithm):
    r"""$L = E[-\min(\rho \hat A, \mathrm{clip}(\rho) \hat A)] + \beta D_{KL}(\pi \| \pi_{ref})$ (eq. 5).

    Attributes:
        clip_low: Lower clip range of the ratio. Its meaning depends on the policy's reduction over dimensions: aim at
            `loss/clip_fraction` of .1-.3. Too low: nothing moves; too high: collapse.
        clip_high: Upper clip range; above `clip_low` it is DAPO's clip-higher (arXiv 2503.14476, eq. 10).
        surrogate: Ratio, trust region, weights and mean of the policy term: GSPO, GRPO-Guard, Flow-DPPO, Dr. GRPO.
        beta: Weight of the KL to the reference. Too low: reward hacking; too high: no gain.
        kl_in: `loss`, a term of its own; `reward`, taken off each decision's reward before groups are compared.
        kl: Its estimator, and a controller of the weight.
        scale: Denominator of the advantage: the group's std, the std over the batch, or none.
        credit: `episode`, one return for all decisions of a rollout; `to_go`, the discounted return from each
            decision on, compared with the group at the same time.
        gamma: Discount per decision of `to_go`; refinement steps are never discounted.
        advantage_clip: Limit of |advantage|.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    surrogate: Surrogate = field(default_factory=Surrogate)
    beta: float = 0.0
    kl_in: Literal["reward", "loss"] = "loss"
    kl: KlPenalty = field(default_factory=KlPenalty)
    scale: Literal["group", "batch", "none"] = "group"
    credit: Literal["episode", "to_go"] = "episode"
    gamma: float = 1.0
    advantage_clip: float = 5.0

    def __post_init__(self) -> None:
        """Check the penalty."""
        self.kl.check(self.kl_in, self.beta)

    @property
    def needs_groups(self) -> bool:
        """The group is the baseline."""
        return True

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods of the refinement steps, and the reference that the KL needs."""
        return self.surrogate.requires | {"reference"}

    @property
    def drops_silent_groups(self) -> bool:
        """Where a rollout has one return for all its decisions."""
        return self.credit == "episode"

    @property
    def controls(self) -> dict[str, float]:
        """The weight of the KL where it is adaptive."""
        return self.kl.controls(self.beta)

    def adjusted(self, controls: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """The controller's step."""
        return self.kl.adjusted(controls, metrics)

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Group-relative advantage `[B, T]`; groups without variance teach nothing."""
        reward, tensors = rollout.reward, self.surrogate.anchors(policy, rollout)
        metrics: dict[str, Tensor | float] = {}
        if self.beta > 0 and self.kl_in == "reward":
            penalty = self.kl.in_reward(policy, rollout)
            reward = reward - rollout.controls.get(WEIGHT, self.beta) * penalty
            metrics[METRIC] = masked_moments(penalty, rollout.mask)[0]
        elif self.beta > 0:
            tensors |= self.kl.anchors(policy, rollout)
        if self.credit == "to_go":
            returns, compared = returns_to_go(reward, rollout.boundary, gamma=self.gamma), rollout.mask
        else:
            returns, compared = episode_return(reward, rollout.mask), whole_rollouts(rollout.mask)
        advantage = group_advantage(returns, rollout.group, compared, scale=self.scale, clip=self.advantage_clip)
        advantage = torch.where(rollout.mask, advantage, 0.0)
        silent = zero_std_fraction(returns, rollout.group, compared)
        return Targets(
            tensors=tensors | {"advantage": advantage},
            metrics=metrics | {"zero_std_fraction": silent, "abs_mean": advantage[rollout.mask].abs().mean()},
        )

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Clipped ratio per (T, K) plus beta times the KL."""
        log_prob, clip = policy.log_prob(minibatch), {"clip_low": self.clip_low, "clip_high": self.clip_high}
        term, metrics = self.surrogate.term(policy, minibatch, log_prob, **clip)
        terms = {"policy": term}
        if self.beta > 0 and self.kl_in == "loss":
            kl = self.kl.in_loss(policy, minibatch, log_prob)
            terms["kl"] = minibatch.controls.get(WEIGHT, self.beta) * self.surrogate.aggregate(minibatch, kl)
            metrics[METRIC] = minibatch.mean(kl.detach())
        return Loss(terms=terms, metrics=metrics)

    def note(self, policy: Policy) -> str | None:
        """On a policy without refinement steps this is plain GRPO."""
        return "GRPO (no refinement steps on this policy)" if policy.elbo_is_tight else None
