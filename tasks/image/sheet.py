"""Images with their prompts and scores on one sheet, and the rows behind it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlflow.task import SampleWriter

_COLUMNS = 4
_CELL = 256
_TEXT = 32
_GAP = 8
# Of the built-in font in one cell.
_CHARACTERS = 40
# Numbers of an item that say which it is.
_NO_SCORE = ("item", "seed")


@dataclass(frozen=True, kw_only=True)
class Sheet(SampleWriter):
    """Writes images of any size as a PNG grid of cells of 256 pixels, or of pairs of two such cells.

    Attributes:
        images: `[n, 3, h, w]` in [0, 1].
        captions: n lines.
        labels: n short texts before the captions, e.g. scores.
        before: `[n, 3, h, w]`, drawn left of each image: what it was before training.
    """

    images: Tensor
    captions: list[str]
    labels: list[str]
    before: Tensor | None = None

    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""
        from PIL import Image, ImageDraw

        pictures = [self.images] if self.before is None else [self.before, self.images]
        width = (_CELL + _GAP) * len(pictures) + _GAP
        columns = min(_COLUMNS // len(pictures), len(self.images))
        rows = -(-len(self.images) // columns)
        sheet = Image.new("RGB", (columns * width, rows * (_CELL + _TEXT + _GAP)), "white")
        draw = ImageDraw.Draw(sheet)
        for i, (caption, label) in enumerate(zip(self.captions, self.labels, strict=True)):
            x, y = i % columns * width + _GAP, i // columns * (_CELL + _TEXT + _GAP)
            for side, images in enumerate(pictures):
                sheet.paste(_picture(images[i]), (x + side * (_CELL + _GAP), y + _TEXT))
            # The built-in font has no glyph for every script; a box is better than an error after hours of training.
            text = f"{label} {caption}".encode("latin-1", "replace").decode("latin-1")
            line = _CHARACTERS * len(pictures)
            draw.text((x + 2, y + 2), "\n".join([text[:line], text[line : 2 * line]]), fill="black")
        sheet.save(path, format="PNG")


@dataclass(frozen=True, kw_only=True)
class Table(SampleWriter):
    """Writes rows as CSV.

    Attributes:
        rows: Values by column, the same columns in each.
    """

    rows: Sequence[dict[str, Any]]

    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def table_by_kind(items: Sequence[Mapping[str, Any]]) -> Table:
    """Number of images and mean of every score of each `kind` of the rows, in order of appearance; `all` at the end."""
    columns = [name for name, value in items[0].items() if isinstance(value, int | float) and name not in _NO_SCORE]
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_kind.setdefault(str(item["kind"]) or "other", []).append(item)
    parts = [*by_kind.items(), ("all", list(items))]
    return Table(
        rows=[
            {
                "kind": kind,
                "images": len(rows),
                **{name: sum(row[name] for row in rows) / len(rows) for name in columns},
            }
            for kind, rows in parts
        ]
    )


def _picture(image: Tensor) -> Any:
    """One image `[3, h, w]` as large as a cell; the pixels of a small one stay squares."""
    from PIL import Image, ImageOps

    bytes_ = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    small = max(image.shape[1:]) < _CELL
    filter_ = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return ImageOps.contain(Image.fromarray(bytes_), (_CELL, _CELL), filter_)
