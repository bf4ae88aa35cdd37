"""LAION's aesthetic predictor: how much people would like the picture, whatever it was asked to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tasks.image.rewards.clip import ClipReward
from tasks.image.rewards.mlp import linear_head
from tasks.image.rewards.reward import Prompt
from tasks.image.rewards.weights import read_state, weights_file


@dataclass(kw_only=True)
class Aesthetic(ClipReward):
    """The head on the unit image embedding, about 1 to 10, divided by `divisor`.

    Attributes:
        head: Weights of the head on CLIP ViT-L/14: the five linear layers of the improved predictor, or LAION's first
            single one; a path, or `OWNER/REPOSITORY:FILE`.
        divisor: 1 gives the released score; 10 brings it to about [0, 1] beside other rewards.
    """

    head: str = "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth"
    divisor: float = 1.0
    _head: Any = field(default=None, init=False, repr=False)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`; the prompts do not matter."""
        if self._head is None:
            self._head = linear_head(read_state(weights_file(self.head, "head")), self.head)
        with torch.inference_mode():
            score: Tensor = self._head(self.image_features(images)).squeeze(1) / self.divisor
        return score

    def close(self) -> None:
        """Drop the model and the head."""
        super().close()
        self._head = None
