"""CLIPScore (arXiv 2104.08718, equation 1): does the picture fit the text?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tasks.image.rewards.clip import ClipReward, texts_of
from tasks.image.rewards.reward import Prompt


@dataclass(kw_only=True)
class ClipScore(ClipReward):
    """`scale * max(cosine, 0)`.

    Attributes:
        scale: 2.5 stretches the usual cosines to about [0, 1]; 1 gives the cosine that many papers report.
        prefix: Put before the prompt, as the paper does; empty for prompts that are whole sentences of their own.
    """

    scale: float = 2.5
    prefix: str = "A photo depicts "

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`, at least 0."""
        return self.scale * self.cosine(images, texts_of(prompts, self.prefix)).clamp(min=0)
