"""Images with their prompts and scores on one sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlflow.task import SampleWriter

_COLUMNS = 4
_CELL = 256
_TEXT = 32


@dataclass(frozen=True, kw_only=True)
class Sheet(SampleWriter):
    """Writes images of any size as a PNG grid of cells of 256 pixels.

    Attributes:
        images: `[n, 3, h, w]` in [0, 1].
        captions: n lines.
        labels: n short texts before the captions, e.g. scores.
    """

    images: Tensor
    captions: list[str]
    labels: list[str]

    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""
        from PIL import Image, ImageDraw

        columns = min(_COLUMNS, len(self.images))
        rows = -(-len(self.images) // columns)
        sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _TEXT)), "white")
        draw = ImageDraw.Draw(sheet)
        bytes_ = (self.images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for i, (pixels, caption, label) in enumerate(zip(bytes_, self.captions, self.labels, strict=True)):
            x, y = i % columns * _CELL, i // columns * (_CELL + _TEXT)
            picture = Image.fromarray(pixels)
            picture.thumbnail((_CELL, _CELL))
            sheet.paste(picture, (x, y + _TEXT))
            # The built-in font has no glyph for every script; a box is better than an error after hours of training.
            text = f"{label} {caption}".encode("latin-1", "replace").decode("latin-1")
            draw.text((x + 2, y + 2), "\n".join([text[:40], text[40:80]]), fill="black")
        sheet.save(path, format="PNG")
