"""A pretrained transformer as the velocity network of a flow policy, trained by LoRA or in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.image.pipelines.embeddings import PromptEmbeddings


class Denoiser(nn.Module):
    """`(x [n, *A], s [n], context) -> v [n, *A]` float32 around a transformer of any precision.

    The context is `prompt [n]`, numbers of the catalogue. Rows go through the transformer in batches of exactly
    `rows_per_pass`, the last one filled up: a row's velocity then has the same bits in sampling and in every
    minibatch. A state dict holds what is trained, and all of it where that is the whole transformer.
    """

    def __init__(
        self, transformer: nn.Module, embeddings: PromptEmbeddings, *, rows_per_pass: int, guidance: float
    ) -> None:
        """Wrap a transformer whose trained parameters require a gradient.

        Args:
            transformer: Of diffusers.
            embeddings: Of the prompts that contexts name.
            rows_per_pass: Rows of a forward pass (twice as many inside with guidance in one batch).
            guidance: See the adapter; classifier-free where the adapter has a negative prompt and this is above 1.
        """
        super().__init__()
        self.transformer = transformer
        self.embeddings = embeddings
        self.rows_per_pass = rows_per_pass
        self.guidance = guidance
        self._kept_dtype: torch.dtype | None = None
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        self._frozen = set(self.state_dict()) - trained if len(trained) < len(list(self.parameters())) else set()
        self.register_state_dict_post_hook(_without_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_frozen)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, s: Tensor, context: dict[str, Tensor]) -> Tensor:
        """Velocity at latents `x [n, *A]` and times `s [n]`."""
        n, prompts = len(x), context["prompt"]
        parts = []
        for begin in range(0, n, self.rows_per_pass):
            rows: slice | Tensor = slice(begin, begin + self.rows_per_pass)
            if begin + self.rows_per_pass > n:
                rows = torch.arange(begin, begin + self.rows_per_pass, device=x.device).clamp_max(n - 1)
            parts.append(self._velocity(x[rows], s[rows], prompts[rows]))
        return torch.cat(parts)[:n]

    def _velocity(self, x: Tensor, s: Tensor, prompts: Tensor) -> Tensor:
        adapter, kept = self.embeddings.adapter, self.embeddings
        rows = kept.rows(prompts, x.device)
        negative = kept.negatives(len(x), x.device) if adapter.takes_negative and self.guidance > 1 else None
        dtype = self._dtype()
        return adapter.velocity(self.transformer, x.to(dtype), s.float(), rows, negative, self.guidance).float()

    def _dtype(self) -> torch.dtype:
        """Of the transformer, kept until it is moved: diffusers looks through every module for it."""
        if self._kept_dtype is None:
            dtype = self.transformer.dtype
            assert isinstance(dtype, torch.dtype)
            self._kept_dtype = dtype
        return self._kept_dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Denoiser:
        self._kept_dtype = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @contextmanager
    def guided(self, guidance: float) -> Iterator[None]:
        """Another guidance inside the block, for evaluation."""
        trained = self.guidance
        self.guidance = guidance
        try:
            yield
        finally:
            self.guidance = trained


class AdaptedDenoiser(Denoiser):
    """Trained by LoRA: with the adapter off it is its own reference."""

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The pretrained transformer inside the block."""
        transformer: Any = self.transformer
        transformer.disable_lora()
        try:
            yield
        finally:
            transformer.enable_lora()


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    assert isinstance(module, Denoiser)
    for name in module._frozen:
        state.pop(prefix + name, None)


def _with_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    assert isinstance(module, Denoiser)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state.update({prefix + name: own[name].detach() for name in module._frozen if prefix + name not in state})
