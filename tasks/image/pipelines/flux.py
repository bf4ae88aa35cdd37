"""FLUX.1: latents packed into tokens, guidance as an input of the distilled transformer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from tasks.image.pipelines.adapter import Adapter, Rows


class Flux(Adapter):
    """`guidance` is the scale that FLUX.1-dev was distilled with as an input; latents are `[n, tokens, 4C]`."""

    pipeline_class: ClassVar[str] = "FluxPipeline"
    transformer_class: ClassVar[str] = "FluxTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    takes_negative: ClassVar[bool] = False

    @property
    def latent_channels(self) -> int:
        """A quarter of the packed ones."""
        return int(self.config.in_channels) // 4

    def num_tokens(self, text: str) -> int:
        """Of T5."""
        return len(self.pipeline.tokenizer_2(text).input_ids)

    def _encode(self, text: str, device: torch.device) -> Rows:
        prompt, pooled, _ = self.pipeline.encode_prompt(text, device=device, max_sequence_length=self.max_tokens)
        return {"prompt": prompt, "pooled": pooled}

    def velocity(
        self, transformer: nn.Module, x: Tensor, s: Tensor, rows: Rows, negative: Rows | None, guidance: float
    ) -> Tensor:
        """One forward pass; `negative` is None."""
        scale = torch.full((len(x),), guidance, device=x.device) if self.config.guidance_embeds else None
        size = self.pixel_multiple
        ids = self.pipeline._prepare_latent_image_ids(
            len(x), self.height // size, self.width // size, x.device, x.dtype
        )
        text_ids = torch.zeros(rows["prompt"].shape[1], 3, device=x.device, dtype=x.dtype)
        # In bfloat16 the pipeline rounds the time as well, and the model was distilled to be called so.
        time = (s * self.pipeline.scheduler.config.num_train_timesteps).to(x.dtype) / 1000
        v: Tensor = transformer(
            hidden_states=x,
            timestep=time,
            guidance=scale,
            pooled_projections=rows["pooled"],
            encoder_hidden_states=rows["prompt"],
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        return v

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        unpacked = self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)
        unscaled: Tensor = unpacked / config.scaling_factor + config.shift_factor
        return unscaled

    def _sequence_length(self) -> int:
        return self.shape[0]
