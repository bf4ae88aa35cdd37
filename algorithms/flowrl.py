"""FlowRL: match the policy to the reward distribution by trajectory balance (arXiv 2509.15207)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from rlflow.advantage import episode_return, gae, group_advantage, next_values
from rlflow.algorithm import Algorithm, Loss
from rlflow.loss import MAX_LOG_RATIO
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets

WEIGHTS = {"paper": (0.8, 1.2), "release": (0.0, inf), "cispo": (0.8, 1.28), "cap10": (0.0, 10.0), "none": (1.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class FlowRL(Algorithm):
    r"""$L = E[w\,(\log Z_\phi + \tfrac1{|y|}\log\pi_\theta - \beta\hat r - \tfrac1{|y|}\log\pi_{ref})^2]$ (eq. 6).

    Attributes:
        beta: Inverse temperature of the reward. Too low: stays at the reference; too high: collapses like PPO. Tied
            to the scale of the mean log-ratio.
        variant: Importance weight: `paper` clips to [.8, 1.2], `release` leaves it unclipped, `cispo` clips to
            [.8, 1.28] and stops the gradient of tokens outside, `cap10` caps at 10, `none` is 1 everywhere.
        weight_exponent: `mean` or `sum` of the log-ratio over the decisions; a sum degenerates on long sequences.
        window: Consecutive decisions over which the balance holds where every decision carries its own context; log
            Z / beta is then the soft value of the window's first context. Elsewhere it holds over the rollout.
        length_normalised: Divide the log-likelihoods by |y|, the unmasked decisions times K.
        gamma: Discount of the lambda-return of `decision` windows.
        lam: Trace decay of that return.
    """

    beta: float = 15.0
    variant: Literal["paper", "release", "cispo", "cap10", "none"] = "paper"
    weight_exponent: Literal["mean", "sum"] = "mean"
    window: int = 1
    length_normalised: bool = True
    gamma: float = 0.99
    lam: float = 0.95

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta: expected > 0, found {self.beta}; beta scales the log-reward")

    @property
    def needs_groups(self) -> bool:
        """The log-reward is normalised within the group."""
        return True

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods of policy and reference, and log Z."""
        return frozenset({"log_prob", "reference", "partition"})

    @property
    def row_decisions(self) -> int:
        """A row is one window."""
        return self.window

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Log-reward before beta, `[B, T]`, and the reference's likelihoods `[B, T, K]`."""
        ref_log_prob = policy.ref_log_prob(rollout)
        metrics: dict[str, Tensor | float] = {}
        if rollout.decisions_independent:
            soft_value = policy.log_partition(rollout) / self.beta
            following = next_values(lambda ends: policy.log_partition(ends) / self.beta, rollout, soft_value)
            ends = rollout.terminated, rollout.boundary
            advantage = gae(rollout.reward, soft_value, following, *ends, gamma=self.gamma, lam=self.lam)
            log_reward = advantage + soft_value
            metrics["soft_value_mean"] = soft_value[rollout.mask].mean()
        else:
            returns = episode_return(rollout.reward, rollout.mask)
            log_reward = group_advantage(returns, rollout.group, rollout.mask, scale="group")
        return Targets(tensors={"log_reward": log_reward, "ref_log_prob": ref_log_prob}, metrics=metrics)

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Weighted squared residual of the balance, one per row."""
        goal, mask = minibatch.targets, (minibatch.mask & _same_trace(minibatch.boundary)).unsqueeze(-1)
        log_prob: Tensor = policy.log_prob(minibatch)
        log_ratio = (log_prob - minibatch.behaviour_log_prob).detach()
        if self.variant == "cispo":
            low, high = WEIGHTS["cispo"]
            kept = (log_ratio.exp() >= low) & (log_ratio.exp() <= high)
            log_prob = torch.where(kept, log_prob, log_prob.detach())
        length = (mask.sum((1, 2)) * log_prob.shape[-1]).clamp_min(1)
        size = length if self.length_normalised else torch.ones_like(length)
        balance = torch.where(mask, log_prob - goal["ref_log_prob"], 0.0).sum((1, 2)) / size
        log_z: Tensor = policy.log_partition(minibatch)[:, 0]
        residual = log_z + balance - self.beta * _first(goal["log_reward"], minibatch.mask)
        weight = self._weight(torch.where(mask, log_ratio, 0.0).sum((1, 2)), length)
        return Loss(
            terms={"balance": minibatch.mean_rows(weight * residual.square())},
            metrics={
                "weight": minibatch.mean_rows(weight),
                "log_z": minibatch.mean_rows(log_z.detach()),
                "ref_log_ratio": minibatch.mean_rows(balance.detach()),
            },
        )

    def _weight(self, log_ratio: Tensor, length: Tensor) -> Tensor:
        exponent = log_ratio / length if self.weight_exponent == "mean" else log_ratio
        weight = exponent.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return weight.clamp(*WEIGHTS[self.variant])


def _first(x: Tensor, mask: Tensor) -> Tensor:
    """The value of each row's first trainable decision, `[b, T]` to `[b]`."""
    return x.gather(1, mask.int().argmax(dim=1, keepdim=True))[:, 0]


def _same_trace(boundary: Tensor) -> Tensor:
    """Decisions of a window up to its first boundary, `[b, T]` bool; those behind it belong to another episode."""
    return boundary.int().cumsum(dim=1) == boundary.int()
