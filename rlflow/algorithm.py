"""The algorithm contract: frozen configuration, targets from a scored rollout, loss of a minibatch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from torch import Tensor

from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout, Targets


@dataclass(kw_only=True)
class Loss:
    """Named scalar terms whose sum is minimised.

    Attributes:
        terms: Differentiable scalars made by `Minibatch.mean` or `mean_rows`: parts of a mean over the optimiser batch.
        metrics: Detached scalars of the same kind (parts that add up), logged as `loss/NAME`.
    """

    terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """Sum of the terms."""
        return reduce(add, self.terms.values())


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """A learning rule on the `[B, T, K]` block; knows neither task nor policy class."""

    @property
    @abstractmethod
    def requires(self) -> frozenset[str]:
        """Capabilities asked of the policy under this configuration (see `rlflow.policy.PROTOCOLS`)."""

    @property
    def needs_groups(self) -> bool:
        """Whether rollouts are compared within a group, so that `group_size` must be at least 2."""
        return False

    @property
    def row_decisions(self) -> int:
        """Consecutive decisions that one row of a minibatch holds where decisions are independent."""
        return 1

    @property
    def drops_silent_groups(self) -> bool:
        """Whether a group whose members return the same teaches nothing, so that another may take its place."""
        return False

    @property
    def controls(self) -> dict[str, float]:
        """Scalars that change between iterations, e.g. an adaptive weight, at their start.

        The loop keeps them in the checkpoint, logs them as `update/NAME` and hands them to `targets` and `loss` as
        `rollout.controls`.
        """
        return {}

    def adjusted(self, controls: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """The controls of the next iteration, from what this one logs (the same on all ranks)."""
        return controls

    @abstractmethod
    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """Targets of a scored rollout, before any update of this iteration; called without gradient."""

    @abstractmethod
    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Loss of one minibatch of rows."""

    def note(self, policy: Policy) -> str | None:
        """A footnote that the board must carry for this pairing, or None."""
        return None
