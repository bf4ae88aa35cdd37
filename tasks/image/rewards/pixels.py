"""Pictures as the models and libraries behind the rewards want them, in torch alone.

torchvision is not installed with rlflow: its builds follow torch's release by release, and one that does not fit
breaks transformers' CLIP. The image processors of the checkpoints are therefore done by hand; all of them use CLIP's
mean and standard deviation, and the size stands in the model's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop or pad, and normalise as a CLIP image processor does, batched on any device.

    Attributes:
        size: Side of the square that the model reads.
        mean: Subtracted, per channel.
        std: Divided by, per channel.
        fit: `crop`, the short side becomes `size` and the middle is kept (CLIP); `pad`, the long side becomes `size`
            and black fills the rest (HPSv2). Equal for square pictures.
    """

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"

    def __call__(self, images: Tensor) -> Tensor:
        """`[n, 3, H, W]` in [0, 1] to `[n, 3, size, size]` normalised."""
        height, width = images.shape[-2:]
        side = min(height, width) if self.fit == "crop" else max(height, width)
        # A side that does not come out even is cut off when it is cropped and rounded when it is padded.
        even = int if self.fit == "crop" else round
        target = (even(self.size * height / side), even(self.size * width / side))
        if target != (height, width):
            # With antialias torch uses the same cubic kernel (a = -.5) as PIL; without, another one.
            images = F.interpolate(images, target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        if self.fit == "crop":
            top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
            images = images[..., top : top + self.size, left : left + self.size]
        else:
            below, right = self.size - target[0], self.size - target[1]
            images = F.pad(images, (right // 2, right - right // 2, below // 2, below - below // 2))
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (self.mean, self.std))
        return (images - mean) / std


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """`[n, 3, H, W]` in [0, 1] to `[n, H, W, 3]` bytes, rounded to the nearest."""
    pictures: NDArray[np.uint8] = (
        (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return np.ascontiguousarray(pictures)
