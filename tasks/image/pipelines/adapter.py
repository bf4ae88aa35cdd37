"""What a pipeline of diffusers has to answer so that its transformer can be trained as a velocity field."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

Rows = dict[str, Tensor]
"""Embeddings of one prompt (no leading axis), or of n prompts, `[n, ...]`."""


class Adapter(ABC):
    """A pipeline whose transformer is elsewhere: prompts to context, latents to images, and its own time grid.

    The text encoders and the VAE are frozen. Latents have the shape that the pipeline's own loop works on, and time s
    is the scheduler's sigma, so that Euler steps along `grid` are the pipeline's own, bit for bit in float32.

    Attributes:
        pipeline_class: Class of diffusers that this adapter serves.
        transformer_class: Class of its transformer.
        lora_targets: Modules that carry a LoRA unless the configuration names others: the attention's projections.
        encoders: Components that are needed only while a prompt is encoded.
        takes_negative: Whether guidance is classifier-free, with a second velocity at a negative prompt.
    """

    pipeline_class: ClassVar[str]
    transformer_class: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj",
                                               "add_v_proj", "to_add_out")  # fmt: skip
    encoders: ClassVar[tuple[str, ...]]
    takes_negative: ClassVar[bool] = True

    def __init__(self, pipeline: Any, *, height: int, width: int, max_tokens: int, offload: bool) -> None:
        """Take the frozen parts of `pipeline`.

        Args:
            pipeline: With a transformer that may be on the meta device; only its configuration is read.
            height: Pixels.
            width: Pixels.
            max_tokens: Longest prompt that the last text encoder reads.
            offload: Keep text encoders and VAE on the CPU except while they are used.

        Raises:
            ValueError: A resolution that the latents cannot have, or a scheduler with other steps than Euler's.
        """
        self.pipeline = pipeline
        self.height, self.width = height, width
        self.max_tokens = max_tokens
        self.offload = offload
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < self.pixel_multiple or value % self.pixel_multiple:
                nearest = max(round(value / self.pixel_multiple), 1) * self.pixel_multiple
                raise ValueError(
                    f"task.{name}: {self.pipeline_class} draws multiples of {self.pixel_multiple} pixels, found "
                    f"{value}; the nearest is {nearest}"
                )
        scheduler = pipeline.scheduler
        if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler" or scheduler.config.stochastic_sampling:
            raise ValueError(
                f"expected a pipeline with FlowMatchEulerDiscreteScheduler without stochastic_sampling, found "
                f"{type(scheduler).__name__}; save the model with that scheduler"
            )
        self.shape = tuple(self.initial([0]).shape[1:])

    @property
    def config(self) -> Any:
        """Configuration of the transformer."""
        return self.pipeline.transformer.config

    @property
    def pixel_multiple(self) -> int:
        """Height and width are multiples of this."""
        return int(self.pipeline.vae_scale_factor) * 2

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents before any packing."""

    @property
    def pooled_width(self) -> int:
        """P, the width of a pooled prompt embedding."""
        return int(self.config.pooled_projection_dim)

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that is read to its end."""
        return self.max_tokens

    @abstractmethod
    def num_tokens(self, text: str) -> int:
        """Length of a prompt for the encoder that `max_tokens` limits, without cutting it."""

    @abstractmethod
    def _encode(self, text: str, device: torch.device) -> Rows:
        """Embeddings `[1, ...]` of one prompt, among them `pooled [1, P]`; the encoders are on `device`."""

    @abstractmethod
    def velocity(
        self, transformer: nn.Module, x: Tensor, s: Tensor, rows: Rows, negative: Rows | None, guidance: float
    ) -> Tensor:
        """Velocity `[n, *shape]` at latents x and times s `[n]` as the pipeline computes it.

        Args:
            transformer: The one being trained; its dtype is that of x.
            x: `[n, *shape]`.
            s: `[n]` float32 in (0, 1].
            rows: Embeddings of the n prompts.
            negative: Embeddings of the negative prompt n times, or None without classifier-free guidance. With it
                both branches carry gradient: the guided velocity is what samples, so it is what is trained.
            guidance: Scale.
        """

    @abstractmethod
    def _unscaled(self, latents: Tensor) -> Tensor:
        """What the VAE decodes: latents unpacked, by the VAE's own scale and shift."""

    def _sigmas(self, num_steps: int) -> np.ndarray | None:
        """Unshifted sigmas that the pipeline hands to its scheduler; None where that has its own."""
        return np.linspace(1.0, 1.0 / num_steps, num_steps)

    @abstractmethod
    def _sequence_length(self) -> int:
        """Image tokens, on which a dynamic shift depends."""

    def grid(self, num_steps: int) -> Tensor:
        """The scheduler's own sigmas `[num_steps + 1]` at this resolution, with its dynamic shift; they end at 0."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler = copy.deepcopy(self.pipeline.scheduler)
        config, mu = scheduler.config, None
        if config.use_dynamic_shifting:
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            mu = calculate_shift(self._sequence_length(), *(config[name] for name in names))
        scheduler.set_timesteps(num_steps, sigmas=self._sigmas(num_steps), mu=mu)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def initial(self, seeds: Sequence[int]) -> Tensor:
        """Noise `[n, *shape]` float32 on the CPU, each row from its own seed, as the pipeline draws it."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = self.pipeline.prepare_latents(
            len(generators), self.latent_channels, self.height, self.width, torch.float32, torch.device("cpu"),
            generators,
        )  # fmt: skip
        latents: Tensor = made[0] if isinstance(made, tuple) else made
        return latents

    @torch.no_grad()
    def encode(self, texts: Sequence[str], device: torch.device) -> list[Rows]:
        """Embeddings of each text on the CPU; one at a time, so that they do not depend on their neighbours."""
        modules = [getattr(self.pipeline, name) for name in self.encoders]
        with self._moved([m for m in modules if m is not None], device):
            return [{k: v[0].cpu() for k, v in self._encode(text, device).items()} for text in texts]

    def collate(self, rows: Sequence[Rows], longest: int | None) -> Rows:
        """Rows of n prompts, `[n, ...]`, of which the longest of the run has `longest` tokens; None where all have."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def decode(self, latents: Tensor, rows_per_pass: int) -> Tensor:
        """Images `[n, 3, height, width]` float32 in [0, 1] of latents `[n, *shape]`, on their device."""
        vae = self.pipeline.vae
        images = []
        with self._moved([vae], latents.device), torch.autocast(latents.device.type, enabled=False):
            for part in torch.split(latents.float(), rows_per_pass):
                image = vae.decode(self._unscaled(part), return_dict=False)[0]
                image = image[:, :, 0] if image.ndim == 5 else image
                images.append(self.pipeline.image_processor.postprocess(image, output_type="pt"))
        return torch.cat(images)

    def load_transformer(self, model: str, dtype: torch.dtype) -> nn.Module:
        """A fresh copy of the pretrained transformer.

        Raises:
            OSError: Its files are missing, or lack weights.
        """
        import diffusers

        return load_complete(getattr(diffusers, self.transformer_class), model, "transformer", dtype)

    @contextmanager
    def _moved(self, modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
        for module in modules:
            _move(module, device)
        try:
            yield
        finally:
            if self.offload:
                for module in modules:
                    _move(module, torch.device("cpu"))


def _move(module: nn.Module, device: torch.device) -> None:
    """`module.to(device)` where it is elsewhere: even where nothing moves, diffusers looks through every module."""
    if next(module.parameters()).device != device:
        module.to(device)


def load_complete(kind: Any, model: str, part: str, dtype: torch.dtype) -> nn.Module:
    """`kind.from_pretrained` of a part of a pipeline, in which no weight is left as it was initialised.

    The libraries only warn of weights that a file lacks, and go on with random numbers.

    Raises:
        OSError: The files are missing, or lack weights.
    """
    module: nn.Module
    module, info = kind.from_pretrained(model, subfolder=part, dtype=dtype, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise OSError(f"the weights of {part} lack {len(missing)} tensors, the first is {missing[0]}")
    return module
