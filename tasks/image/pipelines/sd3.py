"""Stable Diffusion 3 and 3.5 (medium, large): latents as images, guidance in one doubled batch."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tasks.image.pipelines.adapter import Adapter, Rows


class Sd3(Adapter):
    """`guidance` is classifier-free guidance; latents are `[n, C, height/8, width/8]`."""

    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    transformer_class: ClassVar[str] = "SD3Transformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")

    @property
    def pixel_multiple(self) -> int:
        """The VAE's factor times the patch."""
        return int(self.pipeline.vae_scale_factor * self.config.patch_size)

    @property
    def latent_channels(self) -> int:
        """Channels of the transformer's input."""
        return int(self.config.in_channels)

    @property
    def max_prompt_tokens(self) -> int:
        """Without T5 no more than CLIP reads; the embeddings still have `max_tokens` rows, of zeros."""
        if self.pipeline.tokenizer_3 is not None:
            return self.max_tokens
        return min(self.max_tokens, int(self.pipeline.tokenizer.model_max_length))

    def num_tokens(self, text: str) -> int:
        """Of T5; of CLIP where the model was saved without T5."""
        return len((self.pipeline.tokenizer_3 or self.pipeline.tokenizer)(text).input_ids)

    def _encode(self, text: str, device: torch.device) -> Rows:
        prompt, _, pooled, _ = self.pipeline.encode_prompt(
            text, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=self.max_tokens
        )
        return {"prompt": prompt, "pooled": pooled}

    def velocity(
        self, transformer: nn.Module, x: Tensor, s: Tensor, rows: Rows, negative: Rows | None, guidance: float
    ) -> Tensor:
        """With guidance v = v_negative + guidance * (v_prompt - v_negative), of one forward pass of 2n rows."""
        if negative is not None:
            rows = {name: torch.cat([negative[name], rows[name]]) for name in rows}
            x, s = torch.cat([x, x]), torch.cat([s, s])
        v: Tensor = transformer(
            hidden_states=x,
            timestep=s * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=rows["prompt"],
            pooled_projections=rows["pooled"],
            return_dict=False,
        )[0]
        if negative is None:
            return v
        without, given = v.chunk(2)
        return without + guidance * (given - without)

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        unscaled: Tensor = latents / config.scaling_factor + config.shift_factor
        return unscaled

    def _sigmas(self, num_steps: int) -> np.ndarray | None:
        return None

    def _sequence_length(self) -> int:
        _, height, width = self.shape
        patch = int(self.config.patch_size)
        return (height // patch) * (width // patch)
