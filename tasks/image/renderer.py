"""Clean pictures of the prompts: what the base is trained on and what the checker must accept."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.image.prompts import SHAPES, tables

IMAGE_SIZE = 16
SHAPE_SIZE = 5
MAX_OBJECTS = 3
# RGB in [0, 1]; row 0 is the background, row 1 + i is COLOURS[i]. Any two rows are more than .7 apart, so the
# checker's balls of radius .35 do not overlap.
PALETTE = torch.tensor(
    [[0.10, 0.10, 0.10], [0.90, 0.15, 0.15], [0.15, 0.75, 0.20], [0.20, 0.30, 0.95], [0.95, 0.85, 0.15]]
)
_ROWS = {
    "square": ("#####", "#####", "#####", "#####", "#####"),
    "diamond": ("..#..", ".###.", "#####", ".###.", "..#.."),
    "triangle": ("..#..", "..#..", ".###.", ".###.", "#####"),
}
TEMPLATES = torch.tensor([[[char == "#" for char in row] for row in _ROWS[shape]] for shape in SHAPES])  # [3, 5, 5]


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] model range to [0, 1] RGB, not clamped."""
    return (images + 1) / 2


def _valid(top_left: Tensor, present: Tensor, relation: Tensor) -> Tensor:
    """Which layouts leave a gap of one pixel between any two boxes and keep the relation; [B] bool."""
    reach = SHAPE_SIZE + 1
    delta = top_left[:, :, None] - top_left[:, None]  # [B, M, M, 2]
    apart = (delta.abs() >= reach).any(-1)
    both = present[:, :, None] & present[:, None] & ~torch.eye(MAX_OBJECTS, dtype=torch.bool)
    ok = (apart | ~both).flatten(1).all(1)
    step = top_left[:, 1] - top_left[:, 0]  # [B, 2] (y, x)
    ok &= (relation != 1) | (step[:, 1] >= reach)
    return ok & ((relation != 2) | (step[:, 0] >= reach))


def sample_layouts(prompts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform positions that satisfy each prompt, by rejection.

    Args:
        prompts: [B] indices into the catalogue.
        generator: source of randomness (CPU).

    Returns:
        top_left [B, MAX_OBJECTS, 2] int64 (y, x), and object types [B, MAX_OBJECTS] int64, -1 where absent,
        in the order of the caption.
    """
    table = tables()
    types = _object_types()[prompts]
    present = types >= 0
    relation = table.relation[prompts]
    top_left = torch.zeros(len(prompts), MAX_OBJECTS, 2, dtype=torch.int64)
    pending = torch.arange(len(prompts))
    while len(pending):
        shape = (len(pending), MAX_OBJECTS, 2)
        top_left[pending] = torch.randint(0, IMAGE_SIZE - SHAPE_SIZE + 1, shape, generator=generator)
        pending = pending[~_valid(top_left[pending], present[pending], relation[pending])]
    return top_left, types


def _object_types() -> Tensor:
    table = tables()
    types = torch.full((len(table.required), MAX_OBJECTS), -1)
    counts = table.required.sum(1)
    types[:, 0] = table.ends[:, 0]
    types[:, 1] = torch.where(counts >= 2, table.ends[:, 1], -1)
    types[:, 2] = torch.where(counts >= 3, table.ends[:, 1], -1)
    return types


def paint(top_left: Tensor, types: Tensor) -> Tensor:
    """Draw objects on the background.

    Args:
        top_left: [B, M, 2] int64 corners (y, x) of the 5 x 5 boxes.
        types: [B, M] int64 colour * len(SHAPES) + shape, -1 where there is no object.

    Returns:
        [B, 3, 16, 16] float32 in [-1, 1].
    """
    batch = len(types)
    index = torch.zeros(batch, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.int64)
    for slot in range(types.shape[1]):
        here = types[:, slot]
        mask = TEMPLATES[here.clamp(min=0) % len(SHAPES)] & (here >= 0)[:, None, None]
        image, row, column = mask.nonzero(as_tuple=True)
        rows, columns = top_left[image, slot, 0] + row, top_left[image, slot, 1] + column
        index[image, rows, columns] = 1 + here[image] // len(SHAPES)
    return PALETTE[index].permute(0, 3, 1, 2).contiguous() * 2 - 1


def render(prompts: Tensor, generator: torch.Generator) -> Tensor:
    """Clean images of prompts [B] at random valid positions; [B, 3, 16, 16] in [-1, 1]."""
    return paint(*sample_layouts(prompts, generator))
