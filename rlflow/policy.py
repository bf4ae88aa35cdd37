"""What an algorithm may ask of a policy: capability protocols, the check that names what is missing, the reference.

A policy answers questions about a whole block of decisions (`rlflow.rollout`). All likelihoods are float32.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlflow.random import Noise
from rlflow.rollout import Rollout

REFERENCES = ("initial", "behaviour")


class MissingCapabilityError(ValueError):
    """An algorithm asks something that the task's policy cannot answer."""


@runtime_checkable
class LogProb(Protocol):
    """Exact log-likelihood of every refinement step."""

    def log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]`, differentiable."""


@runtime_checkable
class Elbo(Protocol):
    """A lower bound of each decision's log-likelihood, one term per stored probe."""

    elbo_is_tight: ClassVar[bool]

    def elbo(self, rollout: Rollout) -> Tensor:
        """`[B, T, N]`, differentiable; its mean over N is the bound, N = 1 where the bound is tight."""


@runtime_checkable
class Value(Protocol):
    """A critic."""

    def value(self, rollout: Rollout) -> Tensor:
        """`[B, T]` expected return before each decision, differentiable."""


@runtime_checkable
class Partition(Protocol):
    """The log-partition function of FlowRL (arXiv 2509.15207, section 3)."""

    def log_partition(self, rollout: Rollout) -> Tensor:
        """`[B, T]` log Z of each context where decisions are independent, else `[B, 1]`; differentiable."""


@runtime_checkable
class Referenced(Protocol):
    """Comparison with a frozen reference policy."""

    def kl(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` divergence from the reference at the visited points, differentiable."""

    def ref_log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` under the reference, without gradient."""


@runtime_checkable
class Entropy(Protocol):
    """Entropy of each decision's distribution."""

    def entropy(self, rollout: Rollout) -> Tensor:
        """`[B, T]`, differentiable."""


@runtime_checkable
class Divergence(Protocol):
    """Closed-form divergence of each refinement step from the distribution that it was drawn from."""

    def moments(self, rollout: Rollout) -> Tensor:
        """`[B, T, K, ...]` parameters of each step's distribution, as `divergence` wants them."""

    def divergence(self, rollout: Rollout, old_moments: Tensor) -> Tensor:
        """`[B, T, K]` KL(old, policy) of each step, reduced like `log_prob`, differentiable."""


@runtime_checkable
class Steps(Protocol):
    """Refinement steps that follow a time grid and add noise of a known size."""

    def step_std(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` standard deviation of each step's noise."""

    def step_length(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` time that each step covers, positive."""


PROTOCOLS: dict[str, type] = {
    "log_prob": LogProb,
    "elbo": Elbo,
    "value": Value,
    "partition": Partition,
    "reference": Referenced,
    "entropy": Entropy,
    "divergence": Divergence,
    "steps": Steps,
}


def capabilities(policy_class: type) -> frozenset[str]:
    """Names of the protocols that a policy class implements, without building it."""
    wanted = {"reference": "kl", "partition": "log_partition", "steps": "step_std"}
    return frozenset(name for name in PROTOCOLS if hasattr(policy_class, wanted.get(name, name)))


def check_capabilities(policy_class: type, requires: frozenset[str], algorithm: str, task: str) -> None:
    """Refuse an impossible pairing before any work.

    Raises:
        MissingCapabilityError: Names what the algorithm asks and the policy lacks.
    """
    unknown = requires - PROTOCOLS.keys()
    if unknown:
        raise MissingCapabilityError(
            f"algorithm {algorithm!r} requires unknown capabilities {sorted(unknown)}; known are {sorted(PROTOCOLS)}"
        )
    missing = requires - capabilities(policy_class)
    if missing:
        raise MissingCapabilityError(
            f"algorithm {algorithm!r} cannot run on task {task!r}: it requires {sorted(missing)}, which policy "
            f"{policy_class.__name__} does not offer (it offers {sorted(capabilities(policy_class))}); "
            "choose another policy of the task or another algorithm (see `rlflow list`)"
        )


class Policy(nn.Module, ABC):
    """An actor with the heads that one algorithm asked for.

    Attributes:
        requires: Capabilities this instance was built for; heads that nobody asked for do not exist.
        actor: The trained network whose copy is the reference.
        reference_kind: `initial`, the weights at construction (or the adapter switched off where the actor has
            one); `behaviour`, the weights at the start of the iteration (mirror descent, where no pretrained
            reference exists).
    """

    elbo_is_tight: ClassVar[bool] = False
    actor: nn.Module

    if TYPE_CHECKING:
        # Only for the type checker: a subclass that does not define one of these lacks the capability.
        def log_prob(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def elbo(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def value(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def log_partition(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def kl(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def ref_log_prob(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def entropy(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def moments(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def divergence(self, rollout: Rollout, old_moments: Tensor) -> Tensor: ...  # noqa: D102
        def step_std(self, rollout: Rollout) -> Tensor: ...  # noqa: D102
        def step_length(self, rollout: Rollout) -> Tensor: ...  # noqa: D102

    def __init__(self, requires: frozenset[str], reference: str = "initial") -> None:
        super().__init__()
        if reference not in REFERENCES:
            raise ValueError(f"reference: expected one of {REFERENCES}, found {reference!r}")
        self.requires = requires
        self.reference_kind = reference
        self.reference_actor: nn.Module | None = None

    @abstractmethod
    def sample(self, context: dict[str, Tensor], noise: Noise, *, train: bool = True) -> dict[str, Tensor]:
        """Draw one decision (or one whole completion) per row; returns the policy's own action record."""

    @property
    def trunk(self) -> nn.Module:
        """The network whose forward passes are counted as cost."""
        return self.actor

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role: `actor`, and `critic` / `partition` where those heads exist."""
        heads = {"critic": getattr(self, "critic", None), "partition": getattr(self, "partition", None)}
        groups = {"actor": [p for p in self.actor.parameters() if p.requires_grad]}
        for name, head in heads.items():
            if isinstance(head, nn.Module):
                groups[name] = [p for p in head.parameters() if p.requires_grad]
        known = {id(p) for group in groups.values() for p in group}
        groups["actor"] += [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return groups

    def sharded_parts(self) -> Sequence[nn.Module]:
        """Layers of this policy's networks, which `trainer.strategy=fsdp` gathers one at a time.

        Raises:
            ValueError: This policy, or this configuration of it, needs whole weights.
        """
        raise ValueError(
            f"trainer.strategy=fsdp: expected a policy of layers (a language model), found {type(self).__name__}; "
            "take trainer.strategy=ddp"
        )

    def record_behaviour(self, rollout: Rollout) -> None:
        """Fix the old likelihoods, so that the ratio starts at exactly 1.

        They are the sampler's where replay repeats its batches exactly, else those of one replay.
        """
        given = rollout.action.pop("log_prob", None)
        if "log_prob" in self.requires and rollout.old_log_prob is None:
            rollout.old_log_prob = self.log_prob(rollout) if given is None else given

    def prepared(self, rows: Rollout) -> Rollout:
        """Rows with what every pass over them would compute anew although no update moves it; asked once an iteration.

        Nothing may be left out, and likelihoods have to stay the same to the bit.
        """
        return rows

    def end_iteration(self, rollout: Rollout) -> None:
        """Called after the last update of an iteration; moves a behaviour reference to the new weights.

        Statistics of observations change here and nowhere else: changing them between the old and the new likelihood
        would move the ratio off 1 before any update.
        """
        if self.reference_kind == "behaviour" and self.reference_actor is not None:
            self.reference_actor.load_state_dict(self.actor.state_dict())

    def freeze_reference(self) -> None:
        """Keep a frozen copy of the actor where one is asked for; call at the end of a subclass's constructor."""
        if "reference" not in self.requires or self._has_adapter():
            return
        self.reference_actor = copy.deepcopy(self.actor).requires_grad_(False).eval()

    @contextmanager
    def referenced_actor(self) -> Iterator[nn.Module]:
        """The reference network, without gradient: the frozen copy, or the actor with its LoRA adapter off."""
        with torch.no_grad():
            if self.reference_actor is not None:
                yield self.reference_actor
            elif self._has_adapter():
                with self.actor.disable_adapter():  # type: ignore[operator]
                    yield self.actor
            else:
                raise MissingCapabilityError("this policy was built without 'reference'; add it to `requires`")

    def _has_adapter(self) -> bool:
        return hasattr(self.actor, "disable_adapter") and self.reference_kind == "initial"
