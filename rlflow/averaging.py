"""Exponential moving average of the trained weights, which is what gets evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The average of a policy's trainable parameters; with decay 0 it keeps nothing and changes nothing."""

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.values: list[Tensor] = [p.detach().clone() for p in self.parameters] if decay > 0 else []

    def to(self, device: torch.device) -> None:
        """Follow the policy to its device."""
        self.values = [value.to(device) for value in self.values]

    @torch.no_grad()
    def update(self) -> None:
        """Value <- decay * value + (1 - decay) * parameter, after each optimiser step."""
        if self.values:
            torch._foreach_lerp_(self.values, [p.data for p in self.parameters], 1.0 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, where an average is kept."""
        if not self.values:
            yield
            return
        trained = [p.detach().clone() for p in self.parameters]
        self._assign(self.values)
        try:
            yield
        finally:
            self._assign(trained)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
