"""Keys and values of rows that are sampled together: written in place, shared by equal prompts, dropped with rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from rlflow.policies.engines.weights import plain_model

ROOM = 64
"""Tokens for which a layer takes memory at a time. Too few: it is copied often; too many: it lies unused."""


def roomy_cache(actor: nn.Module) -> Any:
    """The cache that transformers makes for this model, whose layers of full attention are `RoomyLayer`s.

    Layers of another kind (sliding windows, linear attention) stay as they are.
    """
    cache = DynamicCache(config=plain_model(actor).config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that holds room for tokens to come, where transformers' copies all that it has for each new one.

    Attributes:
        room: `[2, n, heads, size, width]` keys and values, of which the first `length` places are filled.
        length: Tokens so far.
    """

    # Cutting would have to shorten `length` too.
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.room: Tensor | None = None
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **more: object) -> tuple[Tensor, Tensor]:
        """Append `[n, heads, t, width]`; the views `[n, heads, length, width]` of everything."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self.length + key_states.shape[-2]
        if self.room is None or end > self.room.shape[-2]:
            self._grow(key_states, end)
        assert self.room is not None
        self.room[0, :, :, self.length : end] = key_states
        self.room[1, :, :, self.length : end] = value_states
        self.length = end
        return self._filled()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows `beam_idx [m]` of the rows so far, in that order, which may be more."""
        assert self.room is not None
        self.room = self.room.index_select(1, beam_idx)
        self._filled()

    def _grow(self, like: Tensor, end: int) -> None:
        rows, heads, _, width = like.shape
        grown = like.new_empty(2, rows, heads, -(-end // ROOM) * ROOM, width)
        if self.room is not None:
            grown[:, :, :, : self.length] = self.room[:, :, :, : self.length]
        self.room = grown

    def _filled(self) -> tuple[Tensor, Tensor]:
        assert self.room is not None
        self.keys, self.values = self.room[:, :, :, : self.length].unbind()
        return self.keys, self.values


def distinct_rows(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that differ from the row before them in any of `tensors [n, ...]`, and which of these each row equals.

    Returns:
        Indices `[m]` of such rows, and `[n]` into them.
    """
    first = torch.ones(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    first[1:] = torch.stack([(x[1:] != x[:-1]).flatten(1).any(dim=1) for x in tensors]).any(dim=0)
    return first.nonzero()[:, 0], first.long().cumsum(0) - 1
