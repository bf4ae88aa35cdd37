"""Text: a flow model writes short words; the real OCR engine pays for what it can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from rlflow.task import Evaluation
from tasks.image.captioned import CaptionedImages, Graded
from tasks.image.frozen import Captions
from tasks.image.text_reader import FAILURES, judge, quality
from tasks.image.text_report import evaluation, layout_diversity
from tasks.image.text_words import (
    EVAL_GROUP_SIZE,
    EVAL_NOISE_SEED,
    HEIGHT,
    VOCABULARY_SIZE,
    WIDTH,
    catalogue,
    evaluation_words,
    held_out,
    tokens,
)

BASE_FOLDER = Path(__file__).parent / "bases" / "text"
# Measured with `rlflow pretrain image/text`; a new base, engine or evaluation set is a new version.
BASE_STRICT = 0.3916


@dataclass(kw_only=True)
class TextImages(CaptionedImages):
    """Visual text rendering after Flow-GRPO's OCR task, on 12 x 28 grey pixels, read by RapidOCR."""

    version: ClassVar[str] = "2"

    name: str = "image/text"

    def starts(self) -> Sequence[int]:
        """Words that are not held out; half of them have three letters."""
        return training_starts()

    @staticmethod
    @cache
    def captions() -> Captions:
        """The catalogue of words."""
        return Captions(
            tokens=tokens(),
            num_words=VOCABULARY_SIZE,
            evaluation=evaluation_words(),
            evaluation_group_size=EVAL_GROUP_SIZE,
            noise_seed=EVAL_NOISE_SEED,
            image_shape=(1, HEIGHT, WIDTH),
            base=BASE_FOLDER,
            base_score=BASE_STRICT,
        )

    def grade(self, images: Tensor, prompts: Tensor) -> Graded:
        """By the OCR engine."""
        verdict = judge(images, prompts)
        return Graded(
            strict=verdict.strict,
            soft=verdict.soft,
            quality=quality(images, verdict.texts),
            layout_diversity=layout_diversity(images, self.group_size) if self.group_size > 1 else None,
        )

    def caption(self, prompt: int) -> str:
        """Of the catalogue."""
        return catalogue()[prompt]

    def verdicts(self, images: Tensor, prompts: Tensor) -> list[str]:
        """As in the report."""
        return [FAILURES[code] for code in judge(images, prompts).failure.tolist()]

    def report(self, images: Tensor, prompts: Tensor) -> Evaluation:
        """Metrics, a row per image and a contact sheet."""
        return evaluation(images, prompts)

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its scores (`rlflow pretrain image/text`)."""
        from tasks.image.text_pretrain import pretrain_text

        return pretrain_text(out, seed)


@cache
def training_starts() -> tuple[int, ...]:
    """Every word that is not held out, once."""
    return tuple((~held_out()).nonzero()[:, 0].tolist())
