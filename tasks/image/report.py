"""From judged evaluation images to metrics, per-item rows and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlflow.task import Evaluation, SampleWriter
from tasks.image.checker import FAILURES, Verdict, judge
from tasks.image.guard import layout_diversity, quality
from tasks.image.prompts import EVAL_GROUP_SIZE, KINDS, catalogue, tables
from tasks.image.renderer import to_unit

_SHEET_COLUMNS = 8
_SHEET_IMAGES = 48


@dataclass(frozen=True, kw_only=True)
class ContactSheet(SampleWriter):
    """Writes images as a PNG grid, each with its caption and verdict.

    Attributes:
        images: [n, 3, h, w] in [-1, 1].
        captions: n lines.
        verdicts: n lines; `none` is drawn in green, the kind of failure in red.
    """

    images: Tensor
    captions: list[str]
    verdicts: list[str]

    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""
        from matplotlib.figure import Figure  # Figure, not pyplot: no global state, no display needed.

        pictures = to_unit(self.images).nan_to_num(nan=0.0).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        n, height, width = pictures.shape[:3]
        rows = -(-n // _SHEET_COLUMNS)
        # One canvas for all: an axis per image takes seconds, more than judging all of them.
        pitch = height + height // 2  # the image, and above it three lines of text
        sheet = np.ones((rows * pitch, _SHEET_COLUMNS * width, 3), dtype=np.float32)
        figure = Figure(figsize=(2.0 * _SHEET_COLUMNS, 3.0 * rows))
        axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axis.axis("off")
        for i, (picture, caption, verdict) in enumerate(zip(pictures, self.captions, self.verdicts, strict=True)):
            row, column = divmod(i, _SHEET_COLUMNS)
            bottom = (row + 1) * pitch
            sheet[bottom - height : bottom, column * width : (column + 1) * width] = picture
            right = verdict == FAILURES[0]
            label = f"{_wrapped(caption)}\n{'correct' if right else verdict}"
            place = ((column + 0.5) * width - 0.5, bottom - height - 1.0)
            axis.text(*place, label, fontsize=9, ha="center", color="darkgreen" if right else "darkred")
        axis.imshow(sheet, interpolation="nearest", aspect="auto")
        for column in range(1, _SHEET_COLUMNS):
            axis.axvline(column * width - 0.5, color="white", linewidth=8)
        figure.savefig(path, format="png", dpi=80)


def _wrapped(caption: str) -> str:
    for link in (" and ", " left of ", " above "):
        if link in caption:
            return caption.replace(link, f"{link.rstrip()}\n", 1)
    return caption


def evaluation(images: Tensor, prompts: Tensor) -> Evaluation:
    """Judge images [n, 3, 16, 16] of prompts [n], whole groups of `EVAL_GROUP_SIZE`, all on the CPU.

    Returns:
        Metrics: `score` (strict accuracy, which the board ranks), `soft`, `accuracy_KIND`, the guards `quality`,
        `quality_correct` (over the images that pass; absent where none does) and `layout_diversity`, and
        `failure_KIND` as shares. Items: a row per image. Files: `images.png`.
    """
    images = images.detach()
    verdict = judge(images, prompts)
    fidelity = quality(images, verdict.findings)
    metrics = {
        "score": verdict.strict.float().mean().item(),
        "soft": verdict.soft.mean().item(),
        "quality": fidelity.mean().item(),
        "layout_diversity": layout_diversity(verdict.findings, EVAL_GROUP_SIZE).mean().item(),
    }
    if bool(verdict.strict.any()):
        metrics["quality_correct"] = fidelity[verdict.strict].mean().item()
    kinds = tables().kind[prompts]
    for index, kind in enumerate(KINDS):
        chosen = verdict.strict[kinds == index]
        if len(chosen):
            metrics[f"accuracy_{kind}"] = chosen.float().mean().item()
    shares = torch.bincount(verdict.failure, minlength=len(FAILURES)) / len(prompts)
    metrics |= {f"failure_{name}": share for name, share in zip(FAILURES[1:], shares[1:].tolist(), strict=True)}
    return Evaluation(
        metrics=metrics,
        items=_items(verdict, fidelity, prompts),
        files={"images.png": _sheet(images, verdict, prompts)},
    )


def _items(verdict: Verdict, fidelity: Tensor, prompts: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "item": row,
            "kind": catalogue()[prompt].kind,
            "caption": catalogue()[prompt].caption,
            "strict": int(strict),
            "soft": round(soft, 4),
            "failure": FAILURES[failure],
            "quality": round(fine, 4),
        }
        for row, (prompt, strict, soft, failure, fine) in enumerate(
            zip(
                prompts.tolist(),
                verdict.strict.tolist(),
                verdict.soft.tolist(),
                verdict.failure.tolist(),
                fidelity.tolist(),
                strict=True,
            )
        )
    ]


def _sheet(images: Tensor, verdict: Verdict, prompts: Tensor) -> ContactSheet:
    """The first images of evenly spread groups."""
    stride = max(1, len(prompts) // _SHEET_IMAGES)
    chosen = torch.arange(0, len(prompts), stride)[:_SHEET_IMAGES]
    return ContactSheet(
        images=images[chosen],
        captions=[catalogue()[row].caption for row in prompts[chosen].tolist()],
        verdicts=[FAILURES[code] for code in verdict.failure[chosen].tolist()],
    )
