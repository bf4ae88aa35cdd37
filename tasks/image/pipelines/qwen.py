"""Qwen-Image: prompts of their own lengths from a vision-language model, guidance that keeps the velocity's norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.image.pipelines.adapter import Adapter, Rows


class Qwen(Adapter):
    """`guidance` is classifier-free guidance, two forward passes and a rescaling; latents are `[n, tokens, 4C]`."""

    pipeline_class: ClassVar[str] = "QwenImagePipeline"
    transformer_class: ClassVar[str] = "QwenImageTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)

    @property
    def latent_channels(self) -> int:
        """A quarter of the packed ones."""
        return int(self.config.in_channels) // 4

    @property
    def pooled_width(self) -> int:
        """Of the text encoder, whose tokens are averaged."""
        return int(self.config.joint_attention_dim)

    def num_tokens(self, text: str) -> int:
        """Without the system prompt around it."""
        template = self.pipeline.prompt_template_encode.format(text)
        return len(self.pipeline.tokenizer(template).input_ids) - int(self.pipeline.prompt_template_encode_start_idx)

    def _encode(self, text: str, device: torch.device) -> Rows:
        prompt, _ = self.pipeline.encode_prompt(text, device=device, max_sequence_length=self.max_tokens)
        return {"prompt": prompt, "pooled": prompt.float().mean(1)}

    def collate(self, rows: Sequence[Rows], longest: int | None) -> Rows:
        """Prompts padded to `longest` with `mask [n, L]`.

        All batches of a run are equally long: the same prompt among other lengths would round otherwise, and a replay
        would not repeat its rollout.
        """
        if longest is None:
            return super().collate(rows, longest)
        lengths = torch.tensor([len(row["prompt"]) for row in rows])
        padded = [F.pad(row["prompt"], (0, 0, 0, longest - len(row["prompt"]))) for row in rows]
        return {
            "prompt": torch.stack(padded),
            "pooled": torch.stack([row["pooled"] for row in rows]),
            "mask": (torch.arange(longest) < lengths[:, None]).long(),
        }

    def velocity(
        self, transformer: nn.Module, x: Tensor, s: Tensor, rows: Rows, negative: Rows | None, guidance: float
    ) -> Tensor:
        """With guidance the combined velocity of each token has the norm of the prompt's own."""
        given = self._forward(transformer, x, s, rows, guidance)
        if negative is None:
            return given
        without = self._forward(transformer, x, s, negative, guidance)
        combined = without + guidance * (given - without)
        norms = torch.norm(given, dim=-1, keepdim=True) / torch.norm(combined, dim=-1, keepdim=True)
        rescaled: Tensor = combined * norms
        return rescaled

    def _forward(self, transformer: Any, x: Tensor, s: Tensor, rows: Rows, guidance: float) -> Tensor:
        size = self.pixel_multiple
        v: Tensor = transformer(
            hidden_states=x,
            timestep=(s * self.pipeline.scheduler.config.num_train_timesteps).to(x.dtype) / 1000,
            guidance=torch.full((len(x),), guidance, device=x.device) if self.config.guidance_embeds else None,
            encoder_hidden_states_mask=rows.get("mask"),
            encoder_hidden_states=rows["prompt"],
            img_shapes=[[(1, self.height // size, self.width // size)]] * len(x),
            return_dict=False,
        )[0]
        return v

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        unpacked = self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, config.z_dim, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        # Divided by the inverse, as the pipeline does it: a product would differ in the last bit.
        unscaled: Tensor = unpacked / (1.0 / std) + mean
        return unscaled

    def _sequence_length(self) -> int:
        return self.shape[0]
