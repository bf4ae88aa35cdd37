"""Sums of named scalars over the steps of an update, read once at its end: each reading waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from rlflow import distributed


class Totals:
    """Adds up rows of scalars without looking at them.

    Attributes:
        first: The scalars of the first row.
    """

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add one row; rows need not have the same names."""
        self.first = self.first or scalars
        names, row = tuple(scalars), torch.stack(list(scalars.values()))
        if names in self._sums:
            self._sums[names].add_(row)
        else:
            self._sums[names] = row

    def read(self) -> dict[str, float]:
        """The sums over all rows and ranks, which have to have added the same names."""
        answer: dict[str, float] = {}
        for names, row in self._sums.items():
            for name, value in zip(names, distributed.all_sum(row.double()).tolist(), strict=True):
                answer[name] = answer.get(name, 0.0) + value
        return answer
