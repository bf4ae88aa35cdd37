"""How few, or how many, bytes the picture takes as JPEG: a reward without any model, from DDPO (arXiv 2305.13301)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from tasks.image.rewards.pixels import to_uint8
from tasks.image.rewards.reward import Prompt, Reward


@dataclass(kw_only=True)
class JpegCompressibility(Reward):
    """Minus the size of the JPEG file, in units of `scale_kb`.

    Attributes:
        quality: Of the encoder, 1-95. Too low: every picture is small; too high: noise decides.
        scale_kb: Kilobytes (1000 bytes) that count as 1. DDPO counts in kilobytes; 500 brings 512 px near 1.
    """

    concurrent: ClassVar[bool] = True

    quality: int = 95
    scale_kb: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what the encoder would clamp."""
        if not 1 <= self.quality <= 95 or self.scale_kb <= 0:
            raise ValueError(f"expected quality 1-95 and scale_kb > 0, found {self.quality} and {self.scale_kb}")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`; the prompts do not matter."""
        return -_kilobytes(images, self.quality) / self.scale_kb


@dataclass(kw_only=True)
class JpegIncompressibility(Reward):
    """The size of the JPEG file, in units of `scale_kb`.

    Attributes:
        quality: Of the encoder, 1-95. Too low: every picture is small; too high: noise decides.
        scale_kb: Kilobytes (1000 bytes) that count as 1.
    """

    concurrent: ClassVar[bool] = True

    quality: int = 95
    scale_kb: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what the encoder would clamp."""
        JpegCompressibility(quality=self.quality, scale_kb=self.scale_kb)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`; the prompts do not matter."""
        return _kilobytes(images, self.quality) / self.scale_kb


def _kilobytes(images: Tensor, quality: int) -> Tensor:
    sizes = []
    for picture in to_uint8(images):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="JPEG", quality=quality)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes)
