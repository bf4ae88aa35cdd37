"""Which starts each iteration takes: the only thing that the data loader yields."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rlflow.random import generator
from rlflow.settings import Config


class Starts(Dataset[Tensor]):
    """Start ids of each iteration `[groups]`, over all ranks: shuffled passes, from the seed alone."""

    def __init__(self, config: Config, first: int) -> None:
        self.ids = config.task.starts()
        self.groups = config.task.groups_per_rollout
        self.seed = config.trainer.seed
        self.first = first
        self.last = config.num_iterations
        self.ahead = 0
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Iterations left; without a length Lightning prefetches a rollout made by stale weights."""
        return max(self.last - self.first, 0)

    def __getitem__(self, index: int) -> Tensor:
        """Starts of iteration `first + index`, or later ones where refills have run `ahead`."""
        return self.of(self.first + index + self.ahead)

    def of(self, rollout: int) -> Tensor:
        """Starts of the rollout of that number, counted from 0 over the whole run."""
        begin = rollout * self.groups
        return torch.tensor([self._id(position) for position in range(begin, begin + self.groups)])

    def _id(self, position: int) -> int:
        size = len(self.ids)
        if size > 1_000_000:
            return self.ids[int(torch.randint(size, (1,), generator=generator(self.seed, "start", position)))]
        epoch, place = divmod(position, size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(size, generator=generator(self.seed, "starts", epoch))
        return self.ids[int(self._order[1][place])]
