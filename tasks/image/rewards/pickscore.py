"""PickScore (arXiv 2305.01569): a CLIP ViT-H tuned on which of two pictures people picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tasks.image.rewards.clip import ClipReward, texts_of
from tasks.image.rewards.reward import Prompt


@dataclass(kw_only=True)
class PickScore(ClipReward):
    """`exp(logit_scale) * cosine / divisor`.

    Attributes:
        model: The released checkpoint is a `CLIPModel` of transformers.
        tokenizer: The released checkpoint's own.
        divisor: 26 brings good pictures near 1, as Flow-GRPO uses it; 1 gives the released score of about 20.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    divisor: float = 26.0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`."""
        cosine = self.cosine(images, texts_of(prompts))
        scale = float(self.open(images.device).logit_scale.detach().float().exp())
        return scale * cosine / self.divisor
