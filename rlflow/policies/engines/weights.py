"""The weights of a language model as its plain class names them, with a LoRA merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

LORA = ".lora_"
BASE = ".base_layer"


def plain_model(actor: nn.Module) -> Any:
    """The model of transformers, also under a peft wrapper (whose LoRA layers stay in place inside it)."""
    return getattr(actor, "get_base_model", lambda: actor)()


@torch.no_grad()
def plain_weights(actor: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each weight as `from_pretrained` of the plain class reads them; tied weights once.

    A LoRA is added as `W + alpha/r B A` in float32 and rounded to the dtype of W; the model itself is not touched.
    """
    model = plain_model(actor)
    for name, weight in model.named_parameters():
        if LORA in name:
            continue
        if BASE not in name:
            yield name, weight.detach()
            continue
        layer: Any = model.get_submodule(name.partition(BASE)[0])
        merged = weight.detach()
        if name.endswith(".weight"):
            merged = merged.float()
            for adapter in layer.active_adapters:
                merged = merged + layer.get_delta_weight(adapter).float()
        yield name.replace(BASE, ""), merged.to(weight.dtype)


@torch.no_grad()
def fingerprint(actor: nn.Module) -> tuple[float, ...]:
    """The sum of each weight in float64: another one where weights have changed, however that happened.

    Version counters of tensors would cost nothing, but fused optimisers leave them as they are: an engine that trusts
    them samples from the untrained model for ever.
    """
    return tuple(torch.stack([weight.sum(dtype=torch.float64) for weight in actor.parameters()]).tolist())
