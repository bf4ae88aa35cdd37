"""Small images with their captions and verdicts on one sheet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rlflow.task import SampleWriter
from tasks.image.renderer import to_unit

_COLUMNS = 8
# Pixels: side of an image, room for three lines of text above it, space between images.
_CELL, _TEXT, _GAP = 144, 44, 16
_CORRECT = "none"


@dataclass(frozen=True, kw_only=True)
class ContactSheet(SampleWriter):
    """Writes images as a PNG grid, each with its caption and verdict.

    Attributes:
        images: [n, 3, h, w] in [-1, 1].
        captions: n lines.
        verdicts: n lines; `none` is drawn in green, the kind of failure in red.
        names: n words before the verdicts, e.g. which policy drew the image; none where this is empty.
    """

    images: Tensor
    captions: list[str]
    verdicts: list[str]
    names: list[str] = field(default_factory=list)

    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""
        # Pillow, not matplotlib: a figure of this many texts takes a second of every evaluation.
        from PIL import Image, ImageDraw

        pictures = (to_unit(self.images).nan_to_num(nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8)
        height, width = pictures.shape[2:]
        scale = _CELL // max(height, width)
        rows = -(-len(pictures) // _COLUMNS)
        tall = _TEXT + scale * height + _GAP
        sheet = Image.new("RGB", (_COLUMNS * (_CELL + _GAP), rows * tall), "gainsboro")
        draw = ImageDraw.Draw(sheet)
        for i, (picture, caption, verdict) in enumerate(zip(pictures, self.captions, self.verdicts, strict=True)):
            x, y = i % _COLUMNS * (_CELL + _GAP) + _GAP // 2, i // _COLUMNS * tall
            large = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(large.resize((scale * width, scale * height), Image.Resampling.NEAREST), (x, y + _TEXT))
            right = verdict == _CORRECT
            name = f"{self.names[i]}: " if self.names else ""
            label = f"{_wrapped(caption)}\n{name}{'correct' if right else verdict}"
            draw.multiline_text((x, y + _TEXT - 2), label, fill="darkgreen" if right else "darkred", anchor="ld")
        sheet.save(path, format="PNG")


def beside(before: Tensor, after: Tensor, captions: list[str], verdicts: tuple[list[str], list[str]]) -> ContactSheet:
    """Pairs of images of one noise, the untrained policy's on the left.

    Args:
        before: [n, 3, h, w] in [-1, 1].
        after: Of the policy that is judged.
        captions: n lines.
        verdicts: Of `before`, of `after`.
    """
    return ContactSheet(
        images=torch.stack([before, after], dim=1).flatten(0, 1).detach(),
        captions=[caption for caption in captions for _ in range(2)],
        verdicts=[verdict for pair in zip(*verdicts, strict=True) for verdict in pair],
        names=["base", "trained"] * len(captions),
    )


def _wrapped(caption: str) -> str:
    for link in (" and ", " left of ", " above "):
        if link in caption:
            return caption.replace(link, f"{link.rstrip()}\n", 1)
    return caption
