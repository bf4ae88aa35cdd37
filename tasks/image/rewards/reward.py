"""The contract of a reward, and the check that no answer passes without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

_SHOWN_CHARACTERS = 120
# Rounding of an upstream conversion to [0, 1]; a decoder's overshoot is a hundred times larger.
_RANGE_SLACK = 1e-3


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What an image was asked to show.

    Attributes:
        text: The prompt as the model read it.
        meta: What a reward has to know beyond the text, e.g. GenEval's include and exclude lists, the OCR target.
    """

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class RewardError(RuntimeError):
    """A reward that cannot be computed; the message names the reward and the prompt.

    Attributes:
        row: Index of the image at fault within its batch; None where the whole batch failed.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class Reward(ABC):
    """Scores images; libraries and weights open on the first call.

    Attributes:
        concurrent: True where a call mostly waits (a server) or computes on the CPU outside Python, so that the mix
            runs it on a thread of its own beside the others. False for models: they share one accelerator, and a
            second thread would only queue behind the first and hold both models' activations.
    """

    concurrent: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Score a batch.

        Args:
            images: `[n, 3, H, W]` float32 in [0, 1], on any device.
            prompts: One for each image.

        Returns:
            `[n]` float32 on the CPU, higher is better.
        """

    def close(self) -> None:  # noqa: B027 - most rewards hold nothing
        """Release models, engines and connections; called once at the end of a run."""


def check_images(images: Tensor, prompts: Sequence[Prompt]) -> None:
    """Refuse what no reward can score.

    Raises:
        ValueError: Shape, type or number.
        RewardError: A value that is not finite or outside [0, 1]; names the prompt.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise ValueError(f"images: expected float32 [n, 3, H, W], found {images.dtype} {list(images.shape)}")
    if len(images) != len(prompts):
        raise ValueError(f"one prompt per image: found {len(images)} images and {len(prompts)} prompts")
    inside = (images >= -_RANGE_SLACK) & (images <= 1 + _RANGE_SLACK)  # False for NaN
    bad = (~inside.flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        row = bad[0]
        raise RewardError(
            f"{len(bad)} of {len(images)} images are not finite or not in [0, 1]; the first is for prompt "
            f"{shown(prompts[row])}: decode to [0, 1] and clamp, or lower the learning rate if the policy diverged",
            row,
        )


def checked(name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Call a reward and refuse an answer that is not one finite number per image.

    Returns:
        `[n]` float32 on the CPU.

    Raises:
        RewardError: The reward raised, or its answer has another length or a value that is not finite; the message
            names the reward and the prompt.
    """
    try:
        answer = reward(images, prompts)
    except Exception as error:
        row = getattr(error, "row", None)
        where = f"prompt {shown(prompts[row])}" if row is not None else f"{len(prompts)} images, {_first(prompts)}"
        raise RewardError(f"reward {name!r} failed on {where}: {type(error).__name__}: {error}", row) from error
    if not isinstance(answer, Tensor) or answer.shape != (len(images),):
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise RewardError(f"reward {name!r}: expected a tensor [{len(images)}], found {found} ({_first(prompts)})")
    answer = answer.detach().float().cpu()
    bad = (~torch.isfinite(answer)).nonzero()[:, 0].tolist()
    if bad:
        raise RewardError(
            f"reward {name!r}: expected finite scores, found {answer[bad[0]].item()} for prompt "
            f"{shown(prompts[bad[0]])} and {len(bad)} such in {len(images)} images",
            bad[0],
        )
    return answer


def shown(prompt: Prompt) -> str:
    """The prompt for a message, cut to one line."""
    text = prompt.text if len(prompt.text) <= _SHOWN_CHARACTERS else prompt.text[: _SHOWN_CHARACTERS - 3] + "..."
    return repr(text)


def _first(prompts: Sequence[Prompt]) -> str:
    return f"the first for prompt {shown(prompts[0])}" if prompts else "no prompt"
