"""GSPO: GRPO with one likelihood ratio per sequence instead of one per token (arXiv 2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlflow.advantage import episode_return, rollout_advantage
from rlflow.algorithm import Algorithm, Loss
from rlflow.loss import clipped_surrogate, ratio
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class Gspo(Algorithm):
    r"""$s = \exp(\tfrac1{|y|}\sum_t \log\pi/\pi_{old})$ in the clipped objective (eq. 5-7).

    Attributes:
        clip_low: Lower clip range. Far smaller than PPO's, because the mean log-ratio of a sequence is.
        clip_high: Upper clip range.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    @property
    def needs_groups(self) -> bool:
        """The group is the baseline."""
        return True

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods alone."""
        return frozenset({"log_prob"})

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Group-relative return `[B, T]`."""
        returns = episode_return(rollout.reward, rollout.mask)
        return Targets(tensors={"advantage": rollout_advantage(returns, rollout.group, rollout.mask, scale="group")})

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """One clipped ratio per row."""
        change = (policy.log_prob(minibatch) - minibatch.behaviour_log_prob).mean(-1)
        length = minibatch.mask.sum(1).clamp_min(1)
        rho = ratio(torch.where(minibatch.mask, change, 0.0).sum(1) / length, torch.zeros_like(change[:, 0]))
        advantage = torch.where(minibatch.mask, minibatch.targets["advantage"], 0.0).sum(1) / length
        surrogate = clipped_surrogate(
            rho[:, None], advantage[:, None], clip_low=self.clip_low, clip_high=self.clip_high
        )
        return Loss(
            terms={"policy": minibatch.mean_rows(surrogate[:, 0])},
            metrics={"ratio": minibatch.mean_rows(rho.detach())},
        )
