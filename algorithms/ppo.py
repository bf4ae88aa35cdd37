"""PPO: clipped ratio per refinement step, critic and GAE (arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rlflow.advantage import gae, next_values, whiten
from rlflow.algorithm import Algorithm, Loss
from rlflow.distributed import masked_moments
from rlflow.loss import clip_fraction, clipped_surrogate, k1, ratio, value_error
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class Ppo(Algorithm):
    r"""$L = -L^{CLIP} + c_v L^{VF} - c_e S$ (eq. 9).

    Attributes:
        clip: Clip range of the ratio. Too low: nothing moves; too high: collapse.
        gamma: Discount per decision (1 for single decisions and tokens).
        lam: GAE trace decay. 1: no bias, high variance.
        value_weight: Weight of the value loss.
        value_clip: Clip of the value around its old self (0 = off).
        entropy_weight: Weight of the entropy bonus. Too high: never commits.
        kl_weight: Weight of the divergence from the reference (0 = off). Too low: drifts; too high: no gain.
        kl_in: `reward`, the per-decision penalty -k1(pi_old, reference); `loss`, the policy's own differentiable KL.
        whiten_advantage: Normalise advantages over the global batch.
    """

    clip: float = 0.2
    gamma: float = 0.99
    lam: float = 0.95
    value_weight: float = 0.5
    value_clip: float = 0.0
    entropy_weight: float = 0.0
    kl_weight: float = 0.0
    kl_in: Literal["reward", "loss"] = "reward"
    whiten_advantage: bool = True

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods and a critic; entropy and reference only where their weight is not 0."""
        wanted = {"log_prob", "value"}
        if self.entropy_weight != 0:
            wanted.add("entropy")
        if self.kl_weight != 0:
            wanted.add("reference")
        return frozenset(wanted)

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Advantages and returns `[B, T]`, with the true next observation behind time limits."""
        reward = rollout.reward
        if self.kl_weight != 0 and self.kl_in == "reward":
            penalty = k1(rollout.behaviour_log_prob, policy.ref_log_prob(rollout)).sum(-1)
            reward = reward - self.kl_weight * penalty
        value: Tensor = policy.value(rollout)
        advantage = gae(
            reward, value, next_values(policy.value, rollout, value), rollout.terminated, rollout.boundary,
            gamma=self.gamma, lam=self.lam,
        )  # fmt: skip
        scaled = whiten(advantage, rollout.mask) if self.whiten_advantage else advantage
        return Targets(
            tensors={"advantage": scaled, "returns": advantage + value, "old_value": value},
            metrics={"value_mean": value[rollout.mask].mean(), "raw_std": masked_moments(advantage, rollout.mask)[1]},
        )

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Clipped ratio, value error, entropy bonus."""
        goal = minibatch.targets
        rho = ratio(policy.log_prob(minibatch), minibatch.behaviour_log_prob)
        clip = {"clip_low": self.clip, "clip_high": self.clip}
        value = policy.value(minibatch)
        error = minibatch.mean(value_error(value, goal["returns"], goal["old_value"], clip=self.value_clip))
        terms = {
            "policy": minibatch.mean(clipped_surrogate(rho, goal["advantage"], **clip)),
            "value": self.value_weight * error,
        }
        metrics = {
            "clip_fraction": minibatch.mean(clip_fraction(rho, **clip)),
            "ratio": minibatch.mean(rho.detach()),
            "value_error": error.detach(),
        }
        if self.kl_weight != 0 and self.kl_in == "loss":
            kl = minibatch.mean(policy.kl(minibatch))
            terms["kl"] = self.kl_weight * kl
            metrics["ref_kl"] = kl.detach()
        if self.entropy_weight != 0:
            entropy = minibatch.mean(policy.entropy(minibatch))
            terms["entropy"] = -self.entropy_weight * entropy
            metrics["entropy"] = entropy.detach()
        return Loss(terms=terms, metrics=metrics)
