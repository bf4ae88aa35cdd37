"""Shapes: a flow model draws coloured objects from a caption; image analysis pays for what is really there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from rlflow.task import Evaluation
from tasks.image.captioned import CaptionedImages, Graded
from tasks.image.checker import FAILURES, judge
from tasks.image.frozen import Captions
from tasks.image.guard import layout_diversity, quality
from tasks.image.prompts import (
    EVAL_GROUP_SIZE,
    EVAL_NOISE_SEED,
    KIND_WEIGHTS,
    VOCABULARY,
    catalogue,
    evaluation_prompts,
    tables,
)
from tasks.image.renderer import IMAGE_SIZE
from tasks.image.report import evaluation

BASE_FOLDER = Path(__file__).parent / "bases" / "shapes"
# Measured with `rlflow pretrain image/shapes`; a new base, checker or evaluation set is a new version.
BASE_STRICT = 0.3906
STARTS_PER_PASS = 1000


@dataclass(kw_only=True)
class Shapes(CaptionedImages):
    """Compositional text-to-image in the spirit of GenEval, from a shipped base that trusts its caption too little."""

    version: ClassVar[str] = "2"

    name: str = "image/shapes"

    def starts(self) -> Sequence[int]:
        """Prompts that are not held out, each kind with its share of `STARTS_PER_PASS`."""
        return training_starts()

    @staticmethod
    @cache
    def captions() -> Captions:
        """The catalogue of captions."""
        return Captions(
            tokens=tables().tokens,
            num_words=len(VOCABULARY),
            evaluation=evaluation_prompts(),
            evaluation_group_size=EVAL_GROUP_SIZE,
            noise_seed=EVAL_NOISE_SEED,
            image_shape=(3, IMAGE_SIZE, IMAGE_SIZE),
            base=BASE_FOLDER,
            base_score=BASE_STRICT,
        )

    def grade(self, images: Tensor, prompts: Tensor) -> Graded:
        """By the checker."""
        verdict = judge(images, prompts)
        return Graded(
            strict=verdict.strict,
            soft=verdict.soft,
            quality=quality(images, verdict.findings),
            layout_diversity=layout_diversity(verdict.findings, self.group_size) if self.group_size > 1 else None,
        )

    def caption(self, prompt: int) -> str:
        """Of the catalogue."""
        return catalogue()[prompt].caption

    def verdicts(self, images: Tensor, prompts: Tensor) -> list[str]:
        """As in the report."""
        return [FAILURES[code] for code in judge(images, prompts).failure.tolist()]

    def report(self, images: Tensor, prompts: Tensor) -> Evaluation:
        """Metrics, a row per image and a contact sheet."""
        return evaluation(images, prompts)

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its scores (`rlflow pretrain image/shapes`)."""
        from tasks.image.pretrain import pretrain_shapes

        return pretrain_shapes(out, seed)


@cache
def training_starts() -> tuple[int, ...]:
    """Training prompts, each kind `KIND_WEIGHTS` of `STARTS_PER_PASS` entries, its members as often as each other."""
    starts: list[int] = []
    for kind, weight in KIND_WEIGHTS.items():
        members = [row for row, p in enumerate(catalogue()) if p.kind == kind and not p.held_out]
        starts.extend(members[i % len(members)] for i in range(round(weight * STARTS_PER_PASS)))
    return tuple(starts)
