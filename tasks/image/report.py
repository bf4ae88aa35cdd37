"""From judged evaluation images to metrics, per-item rows and a contact sheet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlflow.task import Evaluation
from tasks.image.checker import FAILURES, Verdict, judge
from tasks.image.contact_sheet import ContactSheet
from tasks.image.guard import layout_diversity, quality
from tasks.image.prompts import EVAL_GROUP_SIZE, KINDS, catalogue, tables

_SHEET_IMAGES = 48


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
