"""Open a pipeline by path or hub name, make its transformer trainable, and save what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.image.pipelines.adapter import Adapter, load_complete
from tasks.image.pipelines.denoiser import AdaptedDenoiser, Denoiser
from tasks.image.pipelines.embeddings import PromptEmbeddings

ADAPTERS = {
    "StableDiffusion3Pipeline": "tasks.image.pipelines.sd3:Sd3",
    "FluxPipeline": "tasks.image.pipelines.flux:Flux",
    "QwenImagePipeline": "tasks.image.pipelines.qwen:Qwen",
}
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """A model that is missing, incomplete or of a class that has no adapter."""


def open_adapter(model: str, dtype: str, *, height: int, width: int, max_tokens: int, offload: bool) -> Adapter:
    """The frozen parts of the pipeline at `model`: text encoders of `dtype`, the VAE in float32, no transformer.

    Raises:
        ModelError: Missing, incomplete, or of a class without an adapter.
        ValueError: A resolution that the model cannot draw.
    """
    import diffusers

    found = _class_name(model)
    if found not in ADAPTERS:
        raise ModelError(f"task.model: expected one of {sorted(ADAPTERS)}, found {found} in {model}")
    module, _, name = ADAPTERS[found].partition(":")
    adapter_class: type[Adapter] = getattr(import_module(module), name)
    try:
        transformer_class: Any = getattr(diffusers, adapter_class.transformer_class)
        config = transformer_class.load_config(model, subfolder="transformer")
        with torch.device("meta"):
            transformer = transformer_class.from_config(config)
        parts = {"transformer": transformer, **_frozen_parts(model, DTYPES[dtype])}
        pipeline = getattr(diffusers, found).from_pretrained(model, **parts)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(_incomplete(model, error)) from error
    return adapter_class(pipeline, height=height, width=width, max_tokens=max_tokens, offload=offload)


def _frozen_parts(model: str, dtype: torch.dtype) -> dict[str, nn.Module | None]:
    """Text encoders of `dtype` and the VAE in float32, each with all of its weights; None for what was left out."""
    from diffusers import DiffusionPipeline

    parts: dict[str, nn.Module | None] = {}
    for name, where in DiffusionPipeline.load_config(model).items():
        if isinstance(where, list) and where[0] is None:
            # SD3 saved without T5: its pipeline takes that as given, not as read from the folder.
            parts[name] = None
        elif name == "vae" or name.startswith("text_encoder"):
            kind = getattr(import_module(where[0]), where[1])
            parts[name] = load_complete(kind, model, name, torch.float32 if name == "vae" else dtype)
    return parts


def build_denoiser(
    model: str,
    embeddings: PromptEmbeddings,
    *,
    dtype: str,
    lora_rank: int,
    lora_alpha: float,
    lora_targets: Sequence[str],
    gradient_checkpointing: bool,
    rows_per_pass: int,
    guidance: float,
) -> Denoiser:
    """The transformer of `model`, trained by a LoRA of `lora_rank` in float32, or in full where that is 0.

    Raises:
        ModelError: Its weights are missing.
    """
    adapter = embeddings.adapter
    try:
        transformer: Any = adapter.load_transformer(model, DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise ModelError(_incomplete(model, error)) from error
    transformer.requires_grad_(lora_rank == 0)
    if lora_rank > 0:
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        targets = list(lora_targets or adapter.lora_targets)
        transformer.add_adapter(
            LoraConfig(r=lora_rank, lora_alpha=lora_alpha, init_lora_weights="gaussian", target_modules=targets)
        )
        cast_training_params(transformer, dtype=torch.float32)
    if gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    kind = AdaptedDenoiser if lora_rank > 0 else Denoiser
    return kind(transformer.eval(), embeddings, rows_per_pass=rows_per_pass, guidance=guidance)


def save_trained(denoiser: nn.Module, folder: Path) -> None:
    """Write `denoiser` for diffusers: a LoRA for `load_lora_weights`, or a transformer in its folder of a pipeline."""
    assert isinstance(denoiser, Denoiser)
    transformer: Any = denoiser.transformer
    if not isinstance(denoiser, AdaptedDenoiser):
        transformer.save_pretrained(folder / "transformer")
        return
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    type(denoiser.embeddings.adapter.pipeline).save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        **_collate_lora_metadata({"transformer": transformer}),
    )


def _class_name(model: str) -> str:
    from diffusers import DiffusionPipeline

    path = Path(model)
    if not model or ((path.is_absolute() or model.startswith(".")) and not path.is_dir()):
        raise ModelError(
            f"task.model: expected the folder of a diffusers pipeline or a name on the hub, found {model!r}; "
            "set task.model=PATH"
        )
    try:
        index = DiffusionPipeline.load_config(model)
        found = str(index["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_incomplete(model, error)) from error
    # transformers makes an empty tokenizer of a folder that is not there, which reads every prompt alike.
    for name in [n for n in index if n.startswith("tokenizer") and index[n][1]] if path.is_dir() else []:
        if not any((path / name / file).is_file() for file in VOCABULARIES):
            missing = FileNotFoundError(f"none of {', '.join(VOCABULARIES)} in {name}")
            raise ModelError(_incomplete(model, missing))
    return found


def _incomplete(model: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"task.model: expected a complete pipeline at {model} (model_index.json and a folder for each component), "
        f"found: {reason}; download it again, or check its name and your access to it"
    )
