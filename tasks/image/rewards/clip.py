"""What the rewards on CLIP share: one model, opened on first use, that embeds pictures and texts."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.image.rewards.pixels import Preprocessing
from tasks.image.rewards.reward import Prompt, Reward
from tasks.image.rewards.weights import pretrained


@dataclass(kw_only=True)
class ClipReward(Reward, ABC):
    """A score from the embeddings of a transformers `CLIPModel`; subclasses say which.

    Runs on the calling thread: it shares the accelerator with the policy.

    Attributes:
        fit: How a picture that is not square becomes one; see `Preprocessing`.
        model: Folder or hub id of a `CLIPModel`.
        tokenizer: Folder or hub id of its tokenizer; empty takes the model's.
        device: Where it runs; empty takes the images' device.
        dtype: Of the weights; half precision moves scores in the third digit.
        batch: Images of one forward. Too low: slow; too high: memory.
    """

    fit: ClassVar[Literal["crop", "pad"]] = "crop"

    model: str = "openai/clip-vit-large-patch14"
    tokenizer: str = ""
    device: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: int = 32
    _clip: Any = field(default=None, init=False, repr=False)
    _words: Any = field(default=None, init=False, repr=False)

    def image_features(self, images: Tensor) -> Tensor:
        """`[n, d]` float32 embeddings of unit length, on the CPU."""
        clip = self.open(images.device)
        prepare = Preprocessing(size=int(clip.config.vision_config.image_size), fit=self.fit)
        embedded = []
        with torch.inference_mode():
            for part in torch.split(images, self.batch):
                pixels = prepare(part.to(clip.device)).to(clip.dtype)
                embedded.append(_unit(clip.get_image_features(pixel_values=pixels).pooler_output))
        return torch.cat(embedded)

    def text_features(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """`[n, d]` float32 embeddings of unit length, on the CPU; equal texts are embedded once."""
        clip = self.open(device)
        unique = list(dict.fromkeys(texts))
        limit = int(clip.config.text_config.max_position_embeddings)
        embedded = []
        with torch.inference_mode():
            for i in range(0, len(unique), self.batch):
                tokens = self._words(
                    unique[i : i + self.batch], padding="max_length", truncation=True, max_length=limit,
                    return_tensors="pt",
                ).to(clip.device)  # fmt: skip
                ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
                embedded.append(_unit(clip.get_text_features(**ids).pooler_output))
        table = torch.cat(embedded)
        return table[torch.tensor([unique.index(text) for text in texts])]

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """`[n]` cosine between each image and its text."""
        return (self.image_features(images) * self.text_features(texts, images.device)).sum(1)

    def open(self, device: torch.device) -> Any:
        """The model, opened on the first call."""
        if self._clip is None:
            from transformers import AutoTokenizer, CLIPModel

            clip: nn.Module = pretrained(CLIPModel.from_pretrained, self.model, "model")
            self.adapt(clip)
            clip = clip.requires_grad_(False).eval()
            self._clip = clip.to(device=self.device or device, dtype=getattr(torch, self.dtype))
            self._words = pretrained(AutoTokenizer.from_pretrained, self.tokenizer or self.model, "tokenizer")
        return self._clip

    def adapt(self, clip: nn.Module) -> None:
        """Change the weights after loading; most rewards take them as they are."""

    def close(self) -> None:
        """Drop the model."""
        self._clip = self._words = None


def texts_of(prompts: Sequence[Prompt], prefix: str = "") -> list[str]:
    """The texts, each after `prefix`."""
    return [prefix + prompt.text for prompt in prompts]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1).cpu()
