"""Is the word readable? The OCR engine's reading as a strict verdict with the kind of failure, and a soft score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.image.renderer import to_unit
from tasks.image.rewards.ocr import Ocr
from tasks.image.text_words import (
    ALPHABET,
    CAPTION_LENGTH,
    GLYPH_HEIGHT,
    GLYPH_WIDTH,
    HEIGHT,
    PITCH,
    WIDTH,
    catalogue,
    strips,
)

FAILURES = ("none", "invalid", "unread", "missing", "extra", "letters")
# The reader sees pictures of 48 x 112 pixels: its own height, so that it does not resize them once more.
UPSCALE = 4
_VALID_RANGE = 1.5
_QUALITY_SCALE = 0.1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Judgement of B images.

    Attributes:
        strict: [B] bool, the asked word was read and nothing else.
        soft: [B] float32 in [0, 1], 1 - edit distance / letters of the word, at least 0.
        failure: [B] int64 index into `FAILURES`, the first in that order that applies.
        texts: what was read, upper case without spaces.
    """

    strict: Tensor
    soft: Tensor
    failure: Tensor
    texts: tuple[str, ...]


@cache
def reader() -> Ocr:
    """The engine of this process: one line, no detection; case is ignored, since X and x look alike."""
    return Ocr(mode="line", upscale=UPSCALE, substring=False, batch=32)


def judge(images: Tensor, words: Tensor) -> Verdict:
    """Read images and compare.

    Args:
        images: [B, 1, HEIGHT, WIDTH] in [-1, 1], on any device.
        words: [B] int64 indices into the catalogue.

    Raises:
        ValueError: batch sizes differ.
    """
    if len(images) != len(words):
        raise ValueError(f"one word per image: found {len(images)} images and {len(words)} words")
    images = images.detach().float().cpu()
    invalid = ~((images.abs() <= _VALID_RANGE).flatten(1).all(1))  # True for NaN
    pictures = to_unit(images).nan_to_num(nan=1.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    texts = [reader().normal(text) for text in reader().read(pictures.expand(-1, 3, -1, -1))]
    targets = [reader().normal(catalogue()[row]) for row in words.tolist()]
    grades = [reader().grade(text, target) for text, target in zip(texts, targets, strict=True)]
    soft = torch.tensor(grades).masked_fill(invalid, 0.0)
    failure = [_failure(text, target) for text, target in zip(texts, targets, strict=True)]
    codes = torch.tensor(failure).masked_fill(invalid, FAILURES.index("invalid"))
    return Verdict(strict=codes == 0, soft=soft, failure=codes, texts=tuple(text.upper() for text in texts))


def _failure(text: str, target: str) -> int:
    if text == target:
        return FAILURES.index("none")
    if not text:
        return FAILURES.index("unread")
    if len(text) != len(target):
        return FAILURES.index("missing" if len(text) < len(target) else "extra")
    return FAILURES.index("letters")


def quality(images: Tensor, texts: tuple[str, ...]) -> Tensor:
    """How near each picture is to a clean redrawing of what was read in it, at the best position.

    What the reader forgives lowers it: grey smears, specks, ragged or invented letters. A reading that the task's
    letters cannot write is compared with an empty sheet.

    Returns:
        [B] float32 in [0, 1], exp(-rms / .1) of the grey values in [0, 1]; 0 where the picture is not finite.
    """
    images = images.detach().float().cpu()
    unit = to_unit(images)[:, 0]
    ink = torch.stack([_ink(text) for text in texts]).float()  # [B, h, L * PITCH]
    # Squared error at every position: sum over paper of (1 - x)^2, and under the letters x^2 instead of it.
    paper, gain = (1 - unit).square(), unit.square() - (1 - unit).square()
    border = (CAPTION_LENGTH * PITCH, CAPTION_LENGTH * PITCH, GLYPH_HEIGHT, GLYPH_HEIGHT)
    change = F.conv2d(F.pad(gain, border)[None], ink[:, None], groups=len(texts))[0]
    error = (paper.flatten(1).sum(1) + change.flatten(1).min(1).values).clamp(min=0) / (HEIGHT * WIDTH)
    return torch.exp(-error.sqrt() / _QUALITY_SCALE).nan_to_num(nan=0.0)


def _ink(text: str) -> Tensor:
    writable = len(text) <= CAPTION_LENGTH and all(letter in ALPHABET for letter in text)
    ids = [1 + ALPHABET.index(letter) for letter in text] if writable else []
    strip: Tensor = strips(torch.tensor([ids + [0] * (CAPTION_LENGTH - len(ids))]))[0]
    assert strip.shape == (GLYPH_HEIGHT, CAPTION_LENGTH * (GLYPH_WIDTH + 1))
    return strip
