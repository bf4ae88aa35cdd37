"""Epochs over a rollout: its rows in random order, gathered together where they are small, cut into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlflow import distributed
from rlflow.rollout import LIKELIHOODS, Minibatch, Rollout, leaves, minibatch

MAX_GATHERED_BYTES = 2**28
"""Rollouts up to this size are put in order as a whole, which costs their memory once more; others part by part."""


def minibatches(
    rows: Rollout, goals: Mapping[str, Tensor], num_parts: int, generator: torch.Generator
) -> Iterator[Minibatch]:
    """One epoch: the global rows in random order, of which this rank takes its own.

    Args:
        rows: This rank's rows (`Rollout.flatten`); ranks have equally many.
        goals: Their targets (`flatten_targets`).
        num_parts: Minibatches of an epoch.
        generator: In the same state on every rank.

    Yields:
        Minibatches with the sizes of the optimiser batch over all ranks; silent ones where this rank has no row.
    """
    n, world, rank = rows.num_rollouts, distributed.world_size(), distributed.rank()
    chunks = torch.randperm(n * world, generator=generator).chunk(num_parts)
    own = [c[(c >= rank * n) & (c < (rank + 1) * n)] - rank * n if world > 1 else c for c in chunks]
    decisions = _decisions(rows.mask, own)
    # A rank without a row of a minibatch still takes part in its gradient exchange.
    index = [c if len(c) else torch.zeros(1, dtype=torch.int64) for c in own]
    together = len(index) if _bytes(rows, goals) <= MAX_GATHERED_BYTES else 1
    for begin in range(0, len(index), together):
        group = index[begin : begin + together]
        gathered = minibatch(rows, goals, torch.cat(group).to(rows.device), 1.0, 1.0)
        for i, part in enumerate(_cut(gathered, [len(c) for c in group]), begin):
            part.global_decisions, part.global_rows = max(decisions[i], 1.0), float(len(chunks[i]))
            yield part if len(own[i]) else part.silent()


def _cut(whole: Minibatch, sizes: list[int]) -> Iterator[Minibatch]:
    """Consecutive parts of these numbers of rows, which share the memory of the whole."""

    def pick(x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, sizes)

    split = leaves(whole, pick) | {"targets": {name: pick(x) for name, x in whole.targets.items()}}
    unmasked = bool(whole.mask.all())
    for i in range(len(sizes)):
        leaf: dict[str, Any] = {
            k: {n: x[i] for n, x in v.items()} if isinstance(v, dict) else v[i] for k, v in split.items()
        }
        yield Minibatch(
            **leaf,
            controls=whole.controls,
            decisions_independent=whole.decisions_independent,
            global_decisions=whole.global_decisions,
            global_rows=whole.global_rows,
            unmasked=leaf["mask"] if unmasked else None,
        )


def _decisions(mask: Tensor, index: list[Tensor]) -> list[float]:
    """Unmasked decisions of each minibatch over all ranks."""
    per_row = mask.sum(1)[torch.cat(index).to(mask.device)]
    counts = torch.stack([part.sum() for part in torch.split(per_row, [len(i) for i in index])])
    answer: list[float] = distributed.all_sum(counts.float()).tolist()
    return answer


def _bytes(rows: Rollout, goals: Mapping[str, Tensor]) -> int:
    leaves = [*rows.context.values(), *rows.action.values(), *goals.values()]
    leaves += [x for name in LIKELIHOODS if (x := getattr(rows, name)) is not None]
    return sum(x.numel() * x.element_size() for x in leaves)
