"""How different the pictures of one prompt are: what a policy loses first when a reward likes one picture best."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_THUMBNAIL = 32


def thumbnails(images: Tensor) -> Tensor:
    """Pictures `[n, 3, h, w]` shrunk to at most 32 x 32 by averaging, `[n, 3 * 32 * 32]` float32 on the CPU."""
    height, width = (min(side, _THUMBNAIL) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1).cpu()


def pixel_diversity(small: Tensor, group_size: int) -> Tensor:
    """Mean over the pairs of a group of the root-mean-square difference of two thumbnails.

    Composition and colour count, texture does not, and no model is needed.

    Args:
        small: `[groups * group_size, d]` of values in [0, 1], group-major.
        group_size: Pictures of each prompt, at least 2.

    Returns:
        `[groups]` in [0, 1].

    Raises:
        ValueError: Not whole groups of at least 2.
    """
    grouped = _grouped(small, group_size)
    # torch.cdist by matrix products would lose the small distances of pictures that are nearly equal.
    distance = torch.cdist(grouped, grouped, compute_mode="donot_use_mm_for_euclid_dist") / small.shape[1] ** 0.5
    mean: Tensor = distance.sum((1, 2)) / (group_size * (group_size - 1))
    return mean


def cosine_diversity(features: Tensor, group_size: int) -> Tensor:
    """Mean over the pairs of a group of 1 - cosine of two embeddings of unit length, `[groups]`.

    Raises:
        ValueError: Not whole groups of at least 2.
    """
    grouped = _grouped(features, group_size)
    cosine = grouped @ grouped.transpose(1, 2)
    pairs = group_size * (group_size - 1)
    return 1 - (cosine.sum((1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(1)) / pairs


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or len(rows) % group_size:
        raise ValueError(f"expected whole groups of at least 2, found {len(rows)} pictures in groups of {group_size}")
    return rows.view(-1, group_size, rows.shape[1])
