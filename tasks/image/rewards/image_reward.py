"""ImageReward (arXiv 2304.05977): BLIP reads text and picture together, and a head tuned on rankings scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tasks.image.rewards.mlp import linear_head
from tasks.image.rewards.pixels import Preprocessing
from tasks.image.rewards.reward import Prompt, Reward
from tasks.image.rewards.weights import pretrained, read_state, weights_file

# Mean and standard deviation of the raw score over the authors' training pictures.
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_TOKENS = 35
_PREFIXES = {"blip.visual_encoder.": "vision_model.", "blip.text_encoder.": "text_encoder."}
_PARTS = {
    "vision_model.blocks.": "vision_model.encoder.layers.",
    "vision_model.norm.": "vision_model.post_layernorm.",
    "vision_model.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "vision_model.pos_embed": "vision_model.embeddings.position_embedding",
    "vision_model.cls_token": "vision_model.embeddings.class_embedding",
    ".attn.proj.": ".self_attn.projection.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}


@dataclass(kw_only=True)
class ImageReward(Reward):
    """The released score, about -2 to 2 with mean 0 over the authors' data.

    Attributes:
        weights: The release: a path, or `OWNER/REPOSITORY:FILE`.
        tokenizer: Folder or hub id of the BERT tokenizer.
        config: Folder or hub id with the `BlipConfig` that the weights fit; empty builds that of the release (a ViT-L
            of 224 pixels and BERT-base).
        device: Where it runs; empty takes the images' device.
        dtype: Of the weights.
        batch: Images of one forward. Too low: slow; too high: memory.
    """

    weights: str = "THUDM/ImageReward:ImageReward.pt"
    tokenizer: str = "bert-base-uncased"
    config: str = ""
    device: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: int = 16
    _blip: Any = field(default=None, init=False, repr=False)
    _words: Any = field(default=None, init=False, repr=False)
    _head: Any = field(default=None, init=False, repr=False)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """`[n]`."""
        if self._blip is None:
            self._open(images.device)
        prepare = Preprocessing(size=int(self._blip.config.vision_config.image_size))
        features = []
        with torch.inference_mode():
            for i in range(0, len(images), self.batch):
                pixels = prepare(images[i : i + self.batch].to(self._blip.device)).to(self._blip.dtype)
                features.append(self._joint(pixels, [prompt.text for prompt in prompts[i : i + self.batch]]))
            raw: Tensor = self._head(torch.cat(features)).squeeze(1)
        return (raw - _MEAN) / _STD

    def close(self) -> None:
        """Drop the model."""
        self._blip = self._words = self._head = None

    def _joint(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """`[n, d]` float32 on the CPU: the first token after every layer has looked at the picture."""
        seen = self._blip.vision_model(pixel_values=pixels).last_hidden_state
        words = self._words(texts, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt")
        words = words.to(self._blip.device)
        read = self._blip.text_encoder(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        first: Tensor = read.last_hidden_state[:, 0].float().cpu()
        return first

    def _open(self, device: torch.device) -> None:
        from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval

        config = pretrained(BlipConfig.from_pretrained, self.config, "config") if self.config else _released(BlipConfig)
        state = read_state(weights_file(self.weights, "weights"))
        blip = BlipForImageTextRetrieval(config)
        # The retrieval heads are no part of the release, nor read here; everything else has to be there.
        missing, unexpected = blip.load_state_dict(_blip_state(state), strict=False)
        missing = [name for name in missing if not name.startswith(("vision_proj", "text_proj", "itm_head"))]
        if missing or unexpected:
            raise ValueError(
                f"weights: {self.weights} is not the ImageReward of this config; missing {missing[:5]}, unexpected "
                f"{list(unexpected)[:5]}"
            )
        blip = blip.requires_grad_(False).eval()
        self._words = pretrained(AutoTokenizer.from_pretrained, self.tokenizer, "tokenizer")
        head = {name.removeprefix("mlp."): value for name, value in state.items() if name.startswith("mlp.")}
        self._head = linear_head(head, self.weights)
        self._blip = blip.to(device=self.device or device, dtype=getattr(torch, self.dtype))


def _released(config: Any) -> Any:
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    return config(vision_config=vision, text_config={"num_attention_heads": 12, "encoder_hidden_size": 1024})


def _blip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The BLIP part of the release under the names of transformers."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None or name.endswith("position_ids"):
            continue
        target = _PREFIXES[prefix] + name.removeprefix(prefix)
        if prefix == "blip.visual_encoder.":
            for old, new in _PARTS.items():
                target = target.replace(old, new)
        renamed[target] = value
    return renamed
