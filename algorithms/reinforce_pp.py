"""REINFORCE++: no critic, KL inside the reward, advantages whitened over the whole batch (arXiv 2501.03262)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from rlflow.advantage import episode_return, group_moments, returns_to_go, whiten, whole_rollouts
from rlflow.algorithm import Algorithm, Loss
from rlflow.loss import k1, k2
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets
from rlflow.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(Algorithm):
    r"""$A_t = \mathrm{whiten}(\sum_{s\ge t}\gamma^{s-t}(r_s - \beta k_1(s)))$ in PPO's clipped objective (eq. 3-6).

    Attributes:
        variant: `plain`, KL (k1) in the reward; `baseline`, the group's mean return is subtracted first and the KL
            (k2) moves to the loss.
        beta: KL weight. Too low: drifts from the reference; too high: no gain.
        gamma: Discount per decision (1 for single decisions and tokens).
        clip: Clip range of the ratio.
        clip_high: Upper clip range where it differs (DAPO's clip-higher); None means `clip`.
        surrogate: Ratio, trust region, weights and mean of the policy term.
        reward_clip: Limit of |reward| per decision (0 = off).
        k1_clamp: Limit of each decision's |k1|.
    """

    variant: Literal["plain", "baseline"] = "plain"
    beta: float = 0.01
    gamma: float = 1.0
    clip: float = 0.2
    clip_high: float | None = None
    surrogate: Surrogate = field(default_factory=Surrogate)
    reward_clip: float = 10.0
    k1_clamp: float = 10.0

    @property
    def needs_groups(self) -> bool:
        """Only the `baseline` variant: alone in its group, every return would be 0."""
        return self.variant == "baseline"

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods of policy and reference."""
        return self.surrogate.requires | {"reference"}

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.beta < 0 or not 0 < self.gamma <= 1:
            raise ValueError(f"expected beta >= 0 and 0 < gamma <= 1, found beta={self.beta}, gamma={self.gamma}")

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Whitened returns-to-go `[B, T]`, in the `baseline` variant relative to the group."""
        reward = rollout.reward
        if self.reward_clip > 0:
            reward = reward.clamp(-self.reward_clip, self.reward_clip)
        metrics: dict[str, torch.Tensor | float] = {}
        tensors = self.surrogate.anchors(policy, rollout)
        ref_log_prob = policy.ref_log_prob(rollout)
        if self.variant == "plain":
            penalty = k1(rollout.behaviour_log_prob, ref_log_prob).sum(-1).clamp(-self.k1_clamp, self.k1_clamp)
            reward = reward - self.beta * torch.where(rollout.mask, penalty, 0.0)
            metrics["ref_k1"] = penalty[rollout.mask].mean()
        else:
            tensors["ref_log_prob"] = ref_log_prob
        returns = returns_to_go(reward, rollout.boundary, gamma=self.gamma)
        if self.variant == "baseline":
            # Tokens behind the second-longest completion of a group would be compared with themselves.
            compared = rollout.mask if rollout.decisions_independent else whole_rollouts(rollout.mask)
            whole = returns if rollout.decisions_independent else episode_return(reward, rollout.mask)
            returns = returns - group_moments(whole, rollout.group, compared)[0]
        tensors["advantage"] = whiten(returns, rollout.mask)
        metrics["return_mean"] = returns[rollout.mask].mean()
        return Targets(tensors=tensors, metrics=metrics)

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Clipped ratio per (T, K), plus beta * k2 in the `baseline` variant."""
        clip = {"clip_low": self.clip, "clip_high": self.clip if self.clip_high is None else self.clip_high}
        log_prob = policy.log_prob(minibatch)
        term, metrics = self.surrogate.term(policy, minibatch, log_prob, **clip)
        terms = {"policy": term}
        if self.variant == "baseline" and self.beta > 0:
            kl = k2(log_prob, minibatch.targets["ref_log_prob"])
            terms["kl"] = self.beta * self.surrogate.aggregate(minibatch, kl)
            metrics["ref_k2"] = minibatch.mean(kl.detach())
        return Loss(terms=terms, metrics=metrics)
