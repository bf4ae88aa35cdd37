"""The one block of decisions that every stage of the loop reads: `[B, T, K]`.

Axis legend, used in every trailing shape comment of this project:

    B  rollouts (episodes or rows of a vector environment)      T  decisions of a rollout
    K  refinement steps of a decision (denoising steps; 1 for Gaussian and token policies)
    A  action dimensions      C  context dimensions      N  CFM probes of a decision      G  group (shared context)
    M  boundary decisions whose next context lies outside the block

Rewards and advantages live on `[B, T]`, likelihoods on `[B, T, K]`. There is one mask, `mask [B, T]`, True = trainable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

T_ = TypeVar("T_")
LIKELIHOODS = ("old_log_prob", "sampler_log_prob")


@dataclass(kw_only=True)
class Rollout:
    """What the policy did, where, and what it earned; rows are independent of each other.

    Attributes:
        context: What the policy conditioned on. Leaves are `[B, ...]`, or `[B, T, ...]` when `decisions_independent`.
        action: The policy's own record of its decisions. Leaves are `[B, T, ...]`; only the policy reads them.
        mask: `[B, T]` bool, True = trainable.
        group: `[B]` int64, equal where rollouts share their start.
        reward: `[B, T]` float32; zero until the task has scored the rollout.
        terminated: `[B, T]` bool, the episode ended by itself after this decision: the value that follows is 0.
        boundary: `[B, T]` bool, the trace ends after this decision (termination, time limit or end of the block).
        boundary_context: Context of the true next observation at every boundary that is not a termination, in
            row-major order of `boundary & ~terminated`. Leaves are `[M, 1, ...]`; None where there is no such boundary.
        old_log_prob: `[B, T, K]` float32 under the behaviour policy, or None where the policy gives it on replay.
        sampler_log_prob: `[B, T, K]` float32, what the rollout engine itself said of the sampled actions, where an
            engine other than the trainer's own forward made them; else None.
        controls: Scalars that the loop carries from iteration to iteration for the algorithm (`Algorithm.controls`).
        decisions_independent: True where every decision carries its own context, so that decisions may be
            evaluated apart from their rollout (control); False where a decision depends on earlier ones (tokens).
        reward_terms: Each reward component, `[B]`, logged as `reward/NAME`.
        metrics: Scalars about the rollout, logged as `rollout/NAME`.
        extras: What the task keeps for its own scoring (texts, prompts); never seen by policy or algorithm.
    """

    context: dict[str, Tensor]
    action: dict[str, Tensor]
    mask: Tensor
    group: Tensor
    reward: Tensor
    terminated: Tensor
    boundary: Tensor
    boundary_context: dict[str, Tensor] | None = None
    old_log_prob: Tensor | None = None
    sampler_log_prob: Tensor | None = None
    controls: dict[str, float] = field(default_factory=dict)
    decisions_independent: bool = False
    reward_terms: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    _memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_rollouts(self) -> int:
        """B."""
        return self.mask.shape[0]

    @property
    def num_decisions(self) -> int:
        """Number of unmasked decisions on this rank."""
        return int(self.mask.sum())

    @property
    def device(self) -> torch.device:
        """Where the block lives."""
        return self.mask.device

    @property
    def behaviour_log_prob(self) -> Tensor:
        """`old_log_prob [B, T, K]`, for algorithms that declare `log_prob` in `requires`.

        Raises:
            ValueError: Nothing was recorded: the algorithm does not require `log_prob`.
        """
        if self.old_log_prob is None:
            raise ValueError(
                "no likelihood of the behaviour policy was recorded; an algorithm that reads it has to name "
                "'log_prob' in requires"
            )
        return self.old_log_prob

    def num_windows(self, window: int) -> int:
        """Windows of `window` decisions in each rollout."""
        t = self.mask.shape[1]
        if window < 1 or t % window:
            raise ValueError(
                f"window: {t} decisions per rollout cannot be cut into windows of {window}; use a divisor of {t}"
            )
        return t // window

    def memo(self, owner: torch.nn.Module, name: str, compute: Callable[[], T_]) -> T_:
        """Share a forward pass between capabilities asked of the same block (log_prob and value of one LM trunk).

        The key holds the version counters of the owner's parameters, so an optimiser step invalidates it; a stale
        answer would show as a ratio that stays 1 through all epochs.
        """
        version = sum(p._version for p in owner.parameters())
        key = (id(owner), name, torch.is_grad_enabled(), version)
        if key not in self._memo:
            self._memo[key] = compute()
        answer: T_ = self._memo[key]
        return answer

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed and an empty memo."""
        return replace(self, **{"_memo": {}, **changes})

    def flatten(self, window: int = 1) -> Rollout:
        """Rows of `window` decisions, `[B*T/window, window, ...]`, where decisions are independent; else the block.

        Raises:
            ValueError: If T is not divisible by `window`.
        """
        if not self.decisions_independent:
            return self
        num_windows = self.num_windows(window)

        def merge(x: Tensor) -> Tensor:
            return _windows(x, window)

        return self.replace(
            context={k: merge(v) for k, v in self.context.items()},
            action={k: merge(v) for k, v in self.action.items()},
            mask=merge(self.mask),
            group=self.group.repeat_interleave(num_windows),
            reward=merge(self.reward),
            terminated=merge(self.terminated),
            boundary=merge(self.boundary),
            boundary_context=None,
            **{name: merge(x) for name in LIKELIHOODS if (x := getattr(self, name)) is not None},
        )


@dataclass(kw_only=True)
class Targets:
    """What an algorithm learns towards; carries no gradient.

    Attributes:
        tensors: Named tensors with leading `[B, T]`, cut into minibatches together with the rollout.
        metrics: Scalars, logged as `advantage/NAME`.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, Tensor | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse targets with a gradient: the loss would differentiate through its own goal."""
        for name, tensor in self.tensors.items():
            if tensor.requires_grad:
                raise ValueError(f"target {name!r} carries a gradient; compute targets under torch.no_grad()")


@dataclass(kw_only=True)
class Minibatch(Rollout):
    """Rows of a rollout with their targets, and the sizes of the whole optimiser batch they belong to.

    Attributes:
        targets: Rows of `Targets.tensors`, `[b, T, ...]`.
        global_decisions: Unmasked decisions of the optimiser batch over all micro-batches and ranks.
        global_rows: Rows of the optimiser batch over all micro-batches and ranks.
        unmasked: The mask, where it is known to be True everywhere; a mask put in its place is not.
    """

    targets: dict[str, Tensor]
    global_decisions: float
    global_rows: float
    unmasked: Tensor | None = field(default=None, repr=False, compare=False)

    def mean(self, x: Tensor) -> Tensor:
        """Sum of `x [b, T]` or `[b, T, K]` over this part, divided by the decisions of the whole optimiser batch.

        Parts (micro-batches, ranks) therefore add up to the mean over all unmasked decisions, and K is averaged.
        """
        if x.ndim == 3:
            x = x.squeeze(-1) if x.shape[-1] == 1 else x.mean(dim=-1)
        if self.unmasked is not self.mask:
            x = torch.where(self.mask, x, 0.0)
        return x.sum() / self.global_decisions

    def mean_rows(self, x: Tensor) -> Tensor:
        """Sum of `x [b]` over the rows with any trainable decision, divided by the rows of the optimiser batch."""
        return torch.where(self.mask.any(dim=1), x, 0.0).sum() / self.global_rows

    def rows_of(self, index: Tensor) -> Minibatch:
        """The part of this minibatch at `index [n]`, with the sizes of the optimiser batch kept."""
        return _take(self, index, self.targets, self.global_decisions, self.global_rows)

    def silent(self) -> Minibatch:
        """One row without trainable decisions: what a rank with no rows left brings to the gradient exchange."""
        part = self.rows_of(torch.zeros(1, dtype=torch.int64, device=self.device))
        part.mask = torch.zeros_like(part.mask)
        return part

    def split(self, micro_batch: int) -> Iterator[Minibatch]:
        """Consecutive parts of at most `micro_batch` rows."""
        if micro_batch <= 0 or micro_batch >= self.num_rollouts:
            yield self
            return
        rows = torch.arange(self.num_rollouts, device=self.device)
        for begin in range(0, self.num_rollouts, micro_batch):
            yield self.rows_of(rows[begin : begin + micro_batch])


def minibatch(
    rollout: Rollout, targets: Mapping[str, Tensor], index: Tensor, global_decisions: float, global_rows: float
) -> Minibatch:
    """Rows `index [b]` of a (flattened) rollout and its targets."""
    return _take(rollout, index, targets, global_decisions, global_rows)


def flatten_targets(targets: Targets, rollout: Rollout, window: int = 1) -> dict[str, Tensor]:
    """Targets in the row layout of `rollout.flatten(window)`.

    Raises:
        ValueError: If a target does not lead with `[B, T]`.
    """
    for name, x in targets.tensors.items():
        lead = rollout.mask.shape
        if x.shape[:2] != lead:
            raise ValueError(f"target {name!r}: expected {list(lead)} + [...], found {list(x.shape)}")
    if not rollout.decisions_independent:
        return targets.tensors
    return {k: _windows(v, window) for k, v in targets.tensors.items()}


def assert_shapes(rollout: Rollout) -> None:
    """Check the block at the stage boundary between task and algorithm.

    Raises:
        ValueError: Names the field, the expected and the found shape or dtype.
    """
    b, t = rollout.mask.shape
    for name in ("mask", "terminated", "boundary"):
        x = getattr(rollout, name)
        _expect(name, x.shape == (b, t) and x.dtype == torch.bool, f"bool [{b}, {t}]", x)
    _expect("reward", rollout.reward.shape == (b, t), f"float [{b}, {t}]", rollout.reward)
    _expect("group", rollout.group.shape == (b,), f"int64 [{b}]", rollout.group)
    for name, x in rollout.action.items():
        _expect(f"action.{name}", x.shape[:2] == (b, t), f"[{b}, {t}, ...]", x)
    lead = (b, t) if rollout.decisions_independent else (b,)
    for name, x in rollout.context.items():
        _expect(f"context.{name}", x.shape[: len(lead)] == lead, f"{list(lead)} + [...]", x)
    for name in LIKELIHOODS:
        if (x := getattr(rollout, name)) is not None:
            _expect(name, x.ndim == 3 and x.shape[:2] == (b, t), f"[{b}, {t}, K]", x)
    open_ends = int((rollout.boundary & ~rollout.terminated).sum())
    for name, x in (rollout.boundary_context or {}).items():
        _expect(f"boundary_context.{name}", x.shape[:2] == (open_ends, 1), f"[{open_ends}, 1, ...]", x)
    if bool((rollout.terminated & ~rollout.boundary).any()):
        raise ValueError("terminated decisions must also be boundaries; set boundary |= terminated")


def _expect(name: str, ok: bool, expected: str, found: Tensor) -> None:
    if not ok:
        raise ValueError(f"rollout.{name}: expected {expected}, found {found.dtype} {list(found.shape)}")


def _windows(x: Tensor, window: int) -> Tensor:
    return x.reshape(x.shape[0] * x.shape[1] // window, window, *x.shape[2:])


def _take(
    rollout: Rollout, index: Tensor, targets: Mapping[str, Tensor], global_decisions: float, global_rows: float
) -> Minibatch:
    return Minibatch(
        **leaves(rollout, lambda x: x[index]),
        controls=rollout.controls,
        decisions_independent=rollout.decisions_independent,
        targets={k: v[index] for k, v in targets.items()},
        global_decisions=global_decisions,
        global_rows=global_rows,
    )


def leaves(rollout: Rollout, pick: Callable[[Tensor], Any]) -> dict[str, Any]:
    """What of a rollout has rows that a minibatch keeps."""
    single = ("mask", "group", "reward", "terminated", "boundary", *LIKELIHOODS)
    answer: dict[str, Any] = {k: pick(x) for k in single if (x := getattr(rollout, k)) is not None}
    return answer | {k: {n: pick(x) for n, x in getattr(rollout, k).items()} for k in ("context", "action")}
