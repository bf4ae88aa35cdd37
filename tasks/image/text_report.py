"""From read evaluation images of words to metrics, per-item rows and a contact sheet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlflow.task import Evaluation
from tasks.image.contact_sheet import ContactSheet
from tasks.image.guard import cover_diversity
from tasks.image.text_reader import FAILURES, Verdict, judge, quality
from tasks.image.text_words import EVAL_GROUP_SIZE, LENGTHS, catalogue, tokens

_SHEET_IMAGES = 48


def layout_diversity(images: Tensor, group_size: int) -> Tensor:
    """How differently the images of one word place their ink (darker than the middle grey); [groups] in [0, 1]."""
    return cover_diversity(images.detach().cpu().flatten(1) < 0, group_size)


def evaluation(images: Tensor, words: Tensor) -> Evaluation:
    """Judge images [n, 1, H, W] of words [n], whole groups of `EVAL_GROUP_SIZE`, all on the CPU.

    Returns:
        Metrics: `score` (share of words read exactly, which the board ranks), `soft`, `accuracy_NUM_letters`, the
        guards `quality`, `quality_correct` (over the images that pass; absent where none does) and
        `layout_diversity`, and `failure_KIND` as shares. Items: a row per image. Files: `images.png`.
    """
    images = images.detach()
    verdict = judge(images, words)
    fidelity = quality(images, verdict.texts)
    metrics = {
        "score": verdict.strict.float().mean().item(),
        "soft": verdict.soft.mean().item(),
        "quality": fidelity.mean().item(),
        "layout_diversity": layout_diversity(images, EVAL_GROUP_SIZE).mean().item(),
    }
    if bool(verdict.strict.any()):
        metrics["quality_correct"] = fidelity[verdict.strict].mean().item()
    lengths = (tokens()[words] > 0).sum(1)
    for length in LENGTHS:
        chosen = verdict.strict[lengths == length]
        if len(chosen):
            metrics[f"accuracy_{length}_letters"] = chosen.float().mean().item()
    shares = torch.bincount(verdict.failure, minlength=len(FAILURES)) / len(words)
    metrics |= {f"failure_{name}": share for name, share in zip(FAILURES[1:], shares[1:].tolist(), strict=True)}
    return Evaluation(
        metrics=metrics, items=_items(verdict, fidelity, words), files={"images.png": _sheet(images, verdict, words)}
    )


def _items(verdict: Verdict, fidelity: Tensor, words: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "item": row,
            "kind": f"{len(catalogue()[word])}_letters",
            "word": catalogue()[word],
            "read": verdict.texts[row],
            "strict": int(verdict.strict[row]),
            "soft": round(float(verdict.soft[row]), 4),
            "failure": FAILURES[int(verdict.failure[row])],
            "quality": round(float(fidelity[row]), 4),
        }
        for row, word in enumerate(words.tolist())
    ]


def _sheet(images: Tensor, verdict: Verdict, words: Tensor) -> ContactSheet:
    """The first images of evenly spread groups."""
    stride = max(1, len(words) // _SHEET_IMAGES)
    chosen = torch.arange(0, len(words), stride)[:_SHEET_IMAGES]
    return ContactSheet(
        images=images[chosen].expand(-1, 3, -1, -1),
        captions=[catalogue()[row] for row in words[chosen].tolist()],
        verdicts=[FAILURES[code] for code in verdict.failure[chosen].tolist()],
    )
