"""PPO: clipped ratio per refinement step, critic and GAE (arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from rlflow.advantage import gae, next_values, whiten
from rlflow.algorithm import Algorithm, Loss
from rlflow.distributed import masked_moments
from rlflow.kl_penalty import METRIC, WEIGHT, KlPenalty
from rlflow.loss import value_error
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets
from rlflow.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Ppo(Algorithm):
    r"""$L = -L^{CLIP} + c_v L^{VF} - c_e S$ (eq. 9).

    Attributes:
        clip: Clip range of the ratio. Too low: nothing moves; too high: collapse.
        clip_high: Upper clip range where it differs (DAPO's clip-higher); None means `clip`.
        surrogate: Ratio, trust region, weights and mean of the policy term.
        gamma: Discount per decision (1 for single decisions and tokens).
        lam: GAE trace decay. 1: no bias, high variance.
        value_weight: Weight of the value loss.
        value_clip: Clip of the value around its old self (0 = off).
        entropy_weight: Weight of the entropy bonus. Too high: never commits.
        kl_weight: Weight of the divergence from the reference (0 = off). Too low: drifts; too high: no gain.
        kl_in: `reward`, a penalty of each decision of the behaviour policy; `loss`, a differentiable term.
        kl: Its estimator (k1 in the reward, exact in the loss), and a controller of the weight.
        whiten_advantage: Normalise advantages over the global batch.
    """

    clip: float = 0.2
    clip_high: float | None = None
    surrogate: Surrogate = field(default_factory=Surrogate)
    gamma: float = 0.99
    lam: float = 0.95
    value_weight: float = 0.5
    value_clip: float = 0.0
    entropy_weight: float = 0.0
    kl_weight: float = 0.0
    kl_in: Literal["reward", "loss"] = "reward"
    kl: KlPenalty = field(default_factory=KlPenalty)
    whiten_advantage: bool = True

    def __post_init__(self) -> None:
        """Check the penalty."""
        self.kl.check(self.kl_in, self.kl_weight)

    @property
    def requires(self) -> frozenset[str]:
        """Likelihoods and a critic; entropy and reference only where their weight is not 0."""
        wanted = self.surrogate.requires | {"value"}
        if self.entropy_weight != 0:
            wanted |= {"entropy"}
        if self.kl_weight != 0:
            wanted |= {"reference"}
        return wanted

    @property
    def controls(self) -> dict[str, float]:
        """The weight of the KL where it is adaptive."""
        return self.kl.controls(self.kl_weight)

    def adjusted(self, controls: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """The controller's step."""
        return self.kl.adjusted(controls, metrics)

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Advantages and returns `[B, T]`, with the true next observation behind time limits."""
        reward, tensors = rollout.reward, self.surrogate.anchors(policy, rollout)
        metrics: dict[str, Tensor | float] = {}
        if self.kl_weight != 0 and self.kl_in == "reward":
            penalty = self.kl.in_reward(policy, rollout)
            reward = reward - rollout.controls.get(WEIGHT, self.kl_weight) * penalty
            metrics[METRIC] = masked_moments(penalty, rollout.mask)[0]
        elif self.kl_weight != 0:
            tensors |= self.kl.anchors(policy, rollout)
        value: Tensor = policy.value(rollout)
        advantage = gae(
            reward, value, next_values(policy.value, rollout, value), rollout.terminated, rollout.boundary,
            gamma=self.gamma, lam=self.lam,
        )  # fmt: skip
        scaled = whiten(advantage, rollout.mask) if self.whiten_advantage else advantage
        metrics |= {"value_mean": value[rollout.mask].mean(), "raw_std": masked_moments(advantage, rollout.mask)[1]}
        tensors |= {"advantage": scaled, "returns": advantage + value, "old_value": value}
        return Targets(tensors=tensors, metrics=metrics)

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Clipped ratio, value error, entropy bonus."""
        goal = minibatch.targets
        clip = {"clip_low": self.clip, "clip_high": self.clip if self.clip_high is None else self.clip_high}
        log_prob = policy.log_prob(minibatch)
        term, metrics = self.surrogate.term(policy, minibatch, log_prob, **clip)
        value = policy.value(minibatch)
        error = minibatch.mean(value_error(value, goal["returns"], goal["old_value"], clip=self.value_clip))
        terms = {"policy": term, "value": self.value_weight * error}
        metrics["value_error"] = error.detach()
        if self.kl_weight != 0 and self.kl_in == "loss":
            kl = self.kl.in_loss(policy, minibatch, log_prob)
            terms["kl"] = minibatch.controls.get(WEIGHT, self.kl_weight) * self.surrogate.aggregate(minibatch, kl)
            metrics[METRIC] = minibatch.mean(kl.detach())
        if self.entropy_weight != 0:
            entropy = policy.entropy(minibatch)
            terms["entropy"] = -self.entropy_weight * self.surrogate.aggregate(minibatch, entropy)
            metrics["entropy"] = minibatch.mean(entropy.detach())
        return Loss(terms=terms, metrics=metrics)
