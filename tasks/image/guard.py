"""What the reward does not see, and reward hacking would show in: picture quality and layout diversity."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.image.detector import Findings
from tasks.image.renderer import IMAGE_SIZE, PALETTE, SHAPE_SIZE, TEMPLATES, to_unit

# Root-mean-square colour error at which quality has fallen to 1/e; 6 wrong pixels of 256 give about .12.
_QUALITY_SCALE = 0.1


def redraw(findings: Findings) -> NDArray[np.int64]:
    """Palette index of every pixel if the recognised objects were drawn cleanly; [B, 16, 16]."""
    seen = np.flatnonzero(findings.recognised)
    # A template may lie one pixel outside the image, hence the border that is cut off at the end.
    canvas = np.zeros((len(findings.dirt), IMAGE_SIZE + 2 * SHAPE_SIZE, IMAGE_SIZE + 2 * SHAPE_SIZE), dtype=np.int64)
    component, row, column = np.nonzero(TEMPLATES.numpy()[findings.shape[seen]])
    chosen = seen[component]
    rows = findings.corner[chosen, 0] + row + SHAPE_SIZE
    columns = findings.corner[chosen, 1] + column + SHAPE_SIZE
    canvas[findings.image[chosen], rows, columns] = 1 + findings.colour[chosen]
    return canvas[:, SHAPE_SIZE:-SHAPE_SIZE, SHAPE_SIZE:-SHAPE_SIZE]


def quality(images: Tensor, findings: Findings) -> Tensor:
    """How close each image is to a clean drawing of what it shows, whatever was asked for.

    The checker forgives off-palette colours, ragged shapes, haze and specks up to its tolerances; here every one of
    them counts. `exp(-rms / .1)` of the colour difference to `redraw`.

    Args:
        images: [B, 3, 16, 16] in [-1, 1]; not clamped, so saturation counts too.
        findings: detections in the same images.

    Returns:
        [B] float32 in [0, 1]; 1 for clean renders, 0 where the image is not finite.
    """
    clean = PALETTE[torch.from_numpy(redraw(findings))].permute(0, 3, 1, 2)
    error = (to_unit(images.detach().float().cpu()) - clean).square().sum(1).flatten(1).mean(1).sqrt()
    return torch.exp(-error / _QUALITY_SCALE).nan_to_num(nan=0.0)


def layout_diversity(findings: Findings, group_size: int) -> Tensor:
    """How differently the images of one prompt place their objects.

    Args:
        findings: detections in [groups * group_size] images, group-major.
        group_size: images of each prompt, at least 2.

    Returns:
        [groups] float32 in [0, 1]: mean over the pairs of a group of 1 - IoU of the pixels that objects cover. Two
        images without any recognised object count as equal.

    Raises:
        ValueError: the batch does not consist of whole groups of at least 2.
    """
    cover = torch.from_numpy(redraw(findings) > 0)
    return cover_diversity(cover.view(len(findings.dirt), -1), group_size)


def cover_diversity(cover: Tensor, group_size: int) -> Tensor:
    """Mean over the pairs of a group of 1 - IoU of the covered pixels; two empty images count as equal.

    Args:
        cover: [groups * group_size, pixels] bool, group-major.
        group_size: images of each prompt, at least 2.

    Returns:
        [groups] float32 in [0, 1].

    Raises:
        ValueError: the batch does not consist of whole groups of at least 2.
    """
    batch, pixels = cover.shape
    if group_size < 2 or batch % group_size:
        raise ValueError(f"expected whole groups of at least 2 images, found {batch} images in groups of {group_size}")
    grouped = cover.float().view(-1, group_size, pixels)
    both = grouped @ grouped.transpose(1, 2)
    area = grouped.sum(2)
    union = area[:, :, None] + area[:, None] - both
    distance = torch.where(union > 0, 1 - both / union.clamp(min=1), 0.0)
    return distance.sum((1, 2)) / (group_size * (group_size - 1))
