"""Micro-batches of rows that are about as long as each other, so that little padding goes through the network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlflow.rollout import LIKELIHOODS, Minibatch


def by_length(part: Minibatch, max_decisions: int) -> Iterator[Minibatch]:
    """Cut a minibatch into parts of at most `max_decisions`, padding included, each as wide as its longest row.

    Losses and gradients are those of the whole: parts keep the sizes of the optimiser batch. A row that is longer
    than the limit is a part of its own.

    Args:
        part: Rows of any length; `[b, T]`.
        max_decisions: Rows times decisions of a part. A prompt or another context comes on top.
    """
    length = lengths(part.mask)  # [b]
    order = length.argsort(descending=True, stable=True)
    begin = 0
    while begin < len(order):
        longest = int(length[order[begin]])
        rows = order[begin : begin + max(1, max_decisions // longest)]
        yield _narrowed(part.rows_of(rows), longest)
        begin += len(rows)


def lengths(mask: Tensor) -> Tensor:
    """Decisions up to the last trainable one of each row, `[B]` int64; 1 where there is none."""
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return torch.where(mask, place, 1).amax(dim=1)


def _narrowed(part: Minibatch, width: int) -> Minibatch:
    """The first `width` decisions of each row; what follows is masked in all of them."""
    contexts = part.context
    if part.decisions_independent:
        contexts = {name: leaf[:, :width] for name, leaf in contexts.items()}
    return part.replace(
        context=contexts,
        action={name: leaf[:, :width] for name, leaf in part.action.items()},
        mask=part.mask[:, :width],
        reward=part.reward[:, :width],
        terminated=part.terminated[:, :width],
        boundary=part.boundary[:, :width],
        **{name: x[:, :width] for name in LIKELIHOODS if (x := getattr(part, name)) is not None},
        targets={name: leaf[:, :width] for name, leaf in part.targets.items()},
    )
