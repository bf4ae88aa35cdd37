"""Gaussian policy: one Normal decision per context, K = 1; the bound of its likelihood is the likelihood itself."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlflow.policies.heads import RunningNorm, seen, with_seen
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout


class DiagonalGaussian(nn.Module):
    """Mean network and a log standard deviation that does not depend on the state."""

    def __init__(self, mean: nn.Module, action_dim: int, log_std: float = 0.0) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std)))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """`[n, C]` to mean `[n, A]` and log std `[A]`."""
        return self.mean(observation), self.log_std


class GaussianPolicy(Policy):
    """Reads `context["observation"]`, records `action["action"]`; log-prob is summed over the action's dimensions."""

    elbo_is_tight: ClassVar[bool] = True
    actor: DiagonalGaussian

    def __init__(
        self,
        actor: DiagonalGaussian,
        *,
        requires: frozenset[str],
        critic: nn.Module | None = None,
        partition: nn.Module | None = None,
        normaliser: RunningNorm | None = None,
        reference: str = "behaviour",
    ) -> None:
        """Wrap networks.

        Args:
            actor: Mean and log std.
            requires: Capabilities that the algorithm asks for.
            critic: `[n, C]` to `[n, 1]`.
            partition: `[n, C]` to `[n, 1]`, log Z.
            normaliser: Observation statistics, updated once at the end of each iteration.
            reference: See `Policy`.
        """
        super().__init__(requires, reference)
        self.actor = actor
        self.critic = critic
        self.partition = partition
        self.normaliser = normaliser
        self.freeze_reference()

    def sample(self, context: dict[str, Tensor], noise: Noise, *, train: bool = True) -> dict[str, Tensor]:
        """`observation [n, C]` to `action [n, A]`; the mean when not training."""
        mean, log_std = self.actor(self._seen(context))
        return {"action": mean + log_std.exp() * noise.normal(mean.shape) if train else mean}

    def log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` log Normal density, summed over A."""
        return self._log_prob(self.actor, rollout)

    def ref_log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` under the reference."""
        with self.referenced_actor() as actor:
            return self._log_prob(actor, rollout)

    def elbo(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]`: the log-likelihood, since the bound is tight."""
        return self.log_prob(rollout)

    def kl(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1]` closed-form KL(policy, reference), summed over A."""
        observation = self._seen(rollout.context)
        with self.referenced_actor() as actor:
            ref_mean, ref_log_std = actor(observation)
        mean, log_std = self.actor(observation)
        return normal_kl(mean, log_std, ref_mean, ref_log_std).sum(-1, keepdim=True)

    def entropy(self, rollout: Rollout) -> Tensor:
        """`[B, T]` differential entropy, the same in every state."""
        per_dimension = self.actor.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return per_dimension.sum().expand(rollout.mask.shape)

    def moments(self, rollout: Rollout) -> Tensor:
        """`[B, T, 1, 2A]` mean and log std of each decision."""
        mean, log_std = self.actor(self._seen(rollout.context))
        return torch.cat([mean, log_std.expand_as(mean)], dim=-1).unsqueeze(2)

    def divergence(self, rollout: Rollout, old_moments: Tensor) -> Tensor:
        """`[B, T, 1]` closed-form KL(old, policy), summed over A."""
        mean, log_std = self.moments(rollout).chunk(2, dim=-1)
        old_mean, old_log_std = old_moments.chunk(2, dim=-1)
        return normal_kl(old_mean, old_log_std, mean, log_std).sum(-1)

    def value(self, rollout: Rollout) -> Tensor:
        """`[B, T]` critic."""
        assert self.critic is not None, "built without 'value'"
        answer: Tensor = self.critic(self._seen(rollout.context))
        return answer.squeeze(-1)

    def log_partition(self, rollout: Rollout) -> Tensor:
        """`[B, T]` log Z of each state."""
        assert self.partition is not None, "built without 'partition'"
        answer: Tensor = self.partition(self._seen(rollout.context))
        return answer.squeeze(-1)

    def prepared(self, rows: Rollout) -> Rollout:
        """Observations normalised once."""
        return with_seen(self.normaliser, rows)

    def end_iteration(self, rollout: Rollout) -> None:
        """Move the behaviour reference and take the rollout's observations into the statistics."""
        super().end_iteration(rollout)
        if self.normaliser is not None:
            self.normaliser.update(rollout.context["observation"])

    def _seen(self, context: dict[str, Tensor]) -> Tensor:
        return seen(self.normaliser, context).float()

    def _log_prob(self, actor: nn.Module, rollout: Rollout) -> Tensor:
        mean, log_std = actor(self._seen(rollout.context))
        total: Tensor = LogDensity.apply(rollout.action["action"].float(), mean, log_std)  # type: ignore[no-untyped-call]
        return total


class LogDensity(torch.autograd.Function):
    r"""$\sum_A \log N(a; \mu, \sigma)$ as one node of the graph: nine small ones take longer than a layer of 64.

    With $z = (a - \mu) / \sigma$: $\partial_\mu = z / \sigma$, $\partial_{\log\sigma} = z^2 - 1$, in the order in which
    autograd would round them.
    """

    @staticmethod
    def forward(ctx: Any, action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """`action` and `mean [..., A]`, `log_std [A]` to `[..., 1]`; there is no gradient for the action."""
        inverse = (-log_std).exp()
        difference = action - mean
        z = difference * inverse
        ctx.save_for_backward(difference, z, inverse)
        density = z.square().mul_(-0.5).sub_(log_std).sub_(0.5 * math.log(2 * math.pi))
        return density.sum(-1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        """Gradients of mean and log std."""
        difference, z, inverse = ctx.saved_tensors
        pull = gradient * z  # [..., A]
        scaled = (pull * difference).sum_to_size(inverse.shape) * inverse
        return None, pull * inverse, scaled + gradient.expand_as(z).neg().sum_to_size(inverse.shape)


def normal_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(Normal, other Normal) of each dimension."""
    variance_ratio = (2 * (log_std - other_log_std)).exp()
    distance = ((mean - other_mean) / other_log_std.exp()).square()
    return 0.5 * (variance_ratio + distance - 1 - 2 * (log_std - other_log_std))
