"""Is the asked text readable in the picture? The real RapidOCR engine reads, an edit distance pays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.image.rewards.pixels import to_uint8
from tasks.image.rewards.reward import Prompt, Reward, RewardError

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_NOT_INSTALLED = "the OCR engine is not installed; pip install 'rlflow[ocr]' (rapidocr and onnxruntime, models inside)"


@dataclass(kw_only=True)
class Ocr(Reward):
    """`1 - min(distance, len(target)) / len(target)` between the target and what is read, as in Flow-GRPO.

    The target is the prompt's `meta["target"]`, else the first text in double quotes of the prompt. The models are
    inside the engine's wheel: no network is needed. The engine releases the interpreter lock while it computes, so
    the reward runs on a thread beside rewards on an accelerator.

    Attributes:
        mode: `detect` finds lines of text anywhere and reads them; `line` reads the whole image as one line, several
            times faster and right for images that hold a word and nothing else.
        ignore_case: Compare in lower case. The engine confuses C and c by nature; False makes that the policy's fault.
        ignore_spaces: Compare without white space. The engine drops narrow spaces.
        substring: The target anywhere within the read text scores 1, whatever surrounds it. Off, extra text costs;
            on, a picture full of text can pass by chance.
        strict: 1 for an exact match and 0 otherwise, instead of the distance. Groups in which all fail teach nothing.
        upscale: Factor by which images are enlarged (bicubic) before the engine sees them. `detect` misses letters
            of less than about 10 pixels.
        batch: Lines that `line` reads at once. Too low: slow; too high: memory.
        threads: Threads of the engine; 0 takes every core.
        detector_side: Shorter side in pixels that `detect` enlarges a picture to before it looks for lines. Too low:
            small text is missed; the time grows with its square.
    """

    concurrent: ClassVar[bool] = True

    mode: Literal["detect", "line"] = "detect"
    ignore_case: bool = True
    ignore_spaces: bool = True
    substring: bool = True
    strict: bool = False
    upscale: int = 1
    batch: int = 16
    threads: int = 1
    detector_side: int = 736
    _engine: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse sizes that the engine would fail on later."""
        sizes = (self.upscale, self.batch, self.detector_side)
        if self.mode not in ("detect", "line") or min(sizes) < 1 or self.threads < 0:
            raise ValueError(
                "expected mode detect or line, upscale, batch and detector_side >= 1, threads >= 0, found "
                f"{self.mode!r}, {sizes}, {self.threads}"
            )

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]` in [0, 1].

        Raises:
            RewardError: A prompt without a target.
            ImportError: The engine is not installed.
        """
        targets = [self.normal(target(prompt, row)) for row, prompt in enumerate(prompts)]
        empty = [row for row, text in enumerate(targets) if not text]
        if empty:
            raise RewardError("the target has no characters after ignore_spaces", empty[0])
        return torch.tensor([self.grade(text, goal) for text, goal in zip(self.read(images), targets, strict=True)])

    def read(self, images: Tensor) -> list[str]:
        """The text in each image, lines joined by a space; empty where the engine sees none."""
        if not len(images):
            return []
        if self._engine is None:
            self._engine = _open_engine(self.threads, self.batch, self.detector_side)
        if self.upscale > 1:
            images = F.interpolate(images, scale_factor=self.upscale, mode="bicubic", antialias=True)
        pictures = [picture[..., ::-1].copy() for picture in to_uint8(images)]  # the engine reads BGR
        if self.mode == "line":
            return [str(text) for text in self._engine.recognize_txt(pictures).txts]
        return [" ".join(self._engine(picture, use_cls=False).txts or ()) for picture in pictures]

    def grade(self, text: str, goal: str) -> float:
        """Score of a read text against a normalised target."""
        found = self.normal(text)
        distance = 0 if self.substring and goal in found else edit_distance(found, goal)
        if self.strict:
            return float(distance == 0)
        return 1 - min(distance, len(goal)) / len(goal)

    def normal(self, text: str) -> str:
        """The text as it is compared."""
        text = "".join(text.split()) if self.ignore_spaces else " ".join(text.split())
        return text.casefold() if self.ignore_case else text

    def close(self) -> None:
        """Drop the engine."""
        self._engine = None


def target(prompt: Prompt, row: int | None = None) -> str:
    """What the picture has to show in letters.

    Raises:
        RewardError: The prompt has neither `meta["target"]` nor a text in double quotes.
    """
    if "target" in prompt.meta:
        return str(prompt.meta["target"])
    match = _QUOTED.search(prompt.text)
    if match is None:
        raise RewardError('no target: expected meta["target"] or a text in double quotes in the prompt', row)
    return str(match[1] or match[2])


def edit_distance(first: str, second: str) -> int:
    """Levenshtein: the fewest insertions, deletions and substitutions of one character."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _open_engine(threads: int, batch: int, side: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError(_NOT_INSTALLED) from error
    params = {
        # An empty picture is a reading, not worth a warning each.
        "Global.log_level": "critical",
        # The least width that a line is padded to: with the engine's own 320, a short word costs as much as a long one.
        "Rec.rec_img_shape": [3, 48, 48],
        "Rec.rec_batch_num": batch,
        "Det.limit_side_len": side,
    }
    if threads:
        params |= {f"EngineConfig.onnxruntime.{kind}_op_num_threads": threads for kind in ("intra", "inter")}
    return RapidOCR(params=params)
