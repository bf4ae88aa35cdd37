"""Pictures as the models and libraries behind the rewards want them, in torch alone.

torchvision is not installed with rlflow: its builds follow torch's release by release, and one that does not fit
breaks transformers' CLIP. The image processors of a checkpoint are therefore only read for their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalise as a CLIP image processor does, differentiable and batched on any device.

    Attributes:
        size: Side of the square that the model reads.
        mean: Subtracted, per channel.
        std: Divided by, per channel.
        crop: True: the short side becomes `size` and the middle is kept (CLIP). False: both sides are stretched to
            `size` (BLIP as released).
    """

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    crop: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """`[n, 3, H, W]` in [0, 1] to `[n, 3, size, size]` normalised."""
        height, width = images.shape[-2:]
        target = (self.size, self.size)
        if self.crop:
            short = min(height, width)
            # The long side is cut off, not rounded, as the processors do.
            target = (int(self.size * height / short), int(self.size * width / short))
        if target != (height, width):
            # With antialias torch uses the same cubic kernel (a = -.5) as PIL; without, another one.
            images = F.interpolate(images, target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        images = images[..., top : top + self.size, left : left + self.size]
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (self.mean, self.std))
        return (images - mean) / std


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """`[n, 3, H, W]` in [0, 1] to `[n, H, W, 3]` bytes, rounded to the nearest."""
    pictures: NDArray[np.uint8] = (
        (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return np.ascontiguousarray(pictures)
