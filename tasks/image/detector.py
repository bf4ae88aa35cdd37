"""Finds the objects of an image by segmentation, connected components and template matching.

Nothing here knows the prompt: the checker compares these findings with it, the guards re-render them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from tasks.image.prompts import COLOURS
from tasks.image.renderer import IMAGE_SIZE, PALETTE, SHAPE_SIZE, TEMPLATES, to_unit

# Distances in RGB [0, 1]. The background's ball is smaller: at .35 a whole object painted at 40 % of its contrast
# counted as background, so a picture could hide objects that the checker did not count.
COLOUR_DISTANCE = 0.32
BACKGROUND_DISTANCE = 0.18
# Beyond this the image is not a picture but a way to saturate the segmentation.
MAX_ABS_VALUE = 1.5
MIN_COMPONENT_PX = 5
BOX_PX = (4, 6)
MIN_IOU = 0.75

_CANVAS = 8
_PLANE = np.zeros((3, 3, 3), dtype=bool)
_PLANE[1] = True


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a batch of B images holds: n components over all of them.

    Attributes:
        invalid: [B] bool, not finite or outside +-`MAX_ABS_VALUE`.
        dirt: [B] int64 pixels that belong to no palette colour or to a speck below `MIN_COMPONENT_PX`.
        image: [n] int64 row of the image that the component lies in.
        colour: [n] int64 index into COLOURS.
        shape: [n] int64 index into SHAPES of the best template; meaningful where `iou` >= `MIN_IOU`.
        iou: [n] float32 intersection over union with that template, 0 where the box is not 4 to 6 px.
        centre: [n, 2] float32 (y, x) centre of the box.
        corner: [n, 2] int64 (y, x) of the matched template's top left pixel; may lie one pixel outside.
    """

    invalid: NDArray[np.bool_]
    dirt: NDArray[np.int64]
    image: NDArray[np.int64]
    colour: NDArray[np.int64]
    shape: NDArray[np.int64]
    iou: NDArray[np.float32]
    centre: NDArray[np.float32]
    corner: NDArray[np.int64]

    @property
    def recognised(self) -> NDArray[np.bool_]:
        """[n] components that match a template."""
        found: NDArray[np.bool_] = self.iou >= MIN_IOU
        return found


def classify(images: Tensor) -> NDArray[np.int64]:
    """Nearest palette colour of every pixel; 0 background, 1 + i colour i, -1 none.

    Args:
        images: [B, 3, 16, 16] in [-1, 1]; values beyond are clamped as a picture file would, NaN is -1.
    """
    unit = to_unit(images.detach().float().cpu()).clamp(0, 1).permute(0, 2, 3, 1)
    distance = torch.cdist(unit.reshape(-1, 3), PALETTE, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, index = distance.min(dim=1)
    limit = torch.full((len(PALETTE),), COLOUR_DISTANCE)
    limit[0] = BACKGROUND_DISTANCE
    index = torch.where(nearest <= limit[index], index, -1)
    labels: NDArray[np.int64] = index.view(-1, IMAGE_SIZE, IMAGE_SIZE).numpy()
    return labels


def find(images: Tensor) -> Findings:
    """Detect objects in images [B, 3, 16, 16].

    Raises:
        ValueError: wrong shape.
    """
    if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"images must be [B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}], found {list(images.shape)}")
    invalid = ~(images.detach().abs() <= MAX_ABS_VALUE).flatten(1).all(1).cpu().numpy()
    labels = classify(images)
    planes = np.stack([labels == 1 + c for c in range(len(COLOURS))], axis=1).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    numbered, _ = ndimage.label(planes, structure=_PLANE)
    plane, row, column = np.nonzero(planes)
    number = numbered[plane, row, column]
    order = np.argsort(number, kind="stable")
    plane, row, column, number = plane[order], row[order], column[order], number[order]
    starts = np.flatnonzero(np.diff(number, prepend=0))
    area = np.diff(np.append(starts, len(number)))
    dirt = (labels < 0).sum(axis=(1, 2))
    speck = area < MIN_COMPONENT_PX
    np.add.at(dirt, plane[starts[speck]] // len(COLOURS), area[speck])
    kept = np.repeat(~speck, area)
    return _describe(invalid, dirt, plane[kept], row[kept], column[kept], area[~speck])


def _describe(
    invalid: NDArray[np.bool_],
    dirt: NDArray[np.int64],
    plane: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    area: NDArray[np.int64],
) -> Findings:
    """Findings from the pixels of all components, given one component after the other."""
    starts = np.cumsum(area) - area
    component = np.repeat(np.arange(len(area)), area)
    top, left = (_extreme(np.minimum, axis, starts) for axis in (row, column))
    bottom, right = (_extreme(np.maximum, axis, starts) for axis in (row, column))
    height, width = bottom - top + 1, right - left + 1
    fits = (np.minimum(height, width) >= BOX_PX[0]) & (np.maximum(height, width) <= BOX_PX[1])
    canvas = np.zeros((len(area), _CANVAS, _CANVAS), dtype=np.float32)
    inside = fits[component]
    canvas[
        component[inside],
        (row - top[component])[inside] + 1,
        (column - left[component])[inside] + 1,
    ] = 1
    iou, shape, shift = _match(canvas)
    return Findings(
        invalid=invalid,
        dirt=dirt,
        image=plane[starts] // len(COLOURS),
        colour=plane[starts] % len(COLOURS),
        shape=shape,
        iou=np.where(fits, iou, 0).astype(np.float32),
        centre=(np.stack([top + bottom, left + right], axis=1) / 2).astype(np.float32),
        corner=np.stack([top, left], axis=1) - 1 + shift,
    )


def _extreme(ufunc: np.ufunc, values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    # reduceat refuses an empty index on an empty array only on some versions; an image batch may hold no component.
    return ufunc.reduceat(values, starts) if len(starts) else np.zeros(0, dtype=np.int64)


def _template_bank() -> NDArray[np.float32]:
    """Every template at every shift of -1, 0, 1 pixels; [S * 9, 64]."""
    bank = np.zeros((len(TEMPLATES), 3, 3, _CANVAS, _CANVAS), dtype=np.float32)
    for shape, template in enumerate(TEMPLATES.numpy()):
        for dy in range(3):
            for dx in range(3):
                bank[shape, dy, dx, dy : dy + SHAPE_SIZE, dx : dx + SHAPE_SIZE] = template
    return bank.reshape(-1, _CANVAS * _CANVAS)


_BANK = _template_bank()


def _match(canvas: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Best IoU [n], its shape [n] and its shift (dy, dx) [n, 2] in 0..2 for component masks [n, 8, 8]."""
    flat = canvas.reshape(-1, _CANVAS * _CANVAS)
    both = flat @ _BANK.T
    union = flat.sum(1, keepdims=True) + _BANK.sum(1) - both
    iou = both / union
    best = iou.argmax(1)
    return iou.max(1, initial=0), best // 9, np.stack([best % 9 // 3, best % 3], axis=1)
