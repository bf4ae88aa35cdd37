"""HPSv2 (arXiv 2306.09341): a CLIP ViT-H tuned on ranked pictures; the release is an open_clip file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from tasks.image.rewards.clip import ClipReward, texts_of
from tasks.image.rewards.open_clip import to_transformers
from tasks.image.rewards.reward import Prompt
from tasks.image.rewards.weights import read_state, weights_file


@dataclass(kw_only=True)
class HpsV2(ClipReward):
    """The cosine between picture and prompt, about .2 to .35, as the release reports it.

    Attributes:
        model: Architecture and tokenizer; its weights are replaced.
        tokenizer: See `ClipReward`.
        weights: The release: a path, or `OWNER/REPOSITORY:FILE`. `HPS_v2_compressed.pt` is version 2.0. Without it
            the score would silently be that of an untuned CLIP, so an empty name is refused.
    """

    fit: ClassVar[Literal["crop", "pad"]] = "pad"

    model: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    weights: str = "xswu/HPSv2:HPS_v2.1_compressed.pt"

    def __post_init__(self) -> None:
        """Refuse an untuned model."""
        if not self.weights:
            raise ValueError("hpsv2: expected weights, found none; an untuned CLIP is the reward clip_score")

    def adapt(self, clip: nn.Module) -> None:
        """Load the released weights, all of them."""
        state = to_transformers(read_state(weights_file(self.weights, "weights")))
        clip.load_state_dict(state, strict=True)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`."""
        return self.cosine(images, texts_of(prompts))
