"""Random models of the real pipelines' classes, a few thousand weights each, with tokenizers made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

END, START = "<|endoftext|>", "<|startoftext|>"


def save_sd3(folder: Path) -> Path:
    """A StableDiffusion3Pipeline whose images are twice the latents' size."""
    return _save_sd3(folder, t5=True)


def save_sd35(folder: Path) -> Path:
    """SD3.5 Medium's transformer, with normalised queries and keys and a second attention, saved without T5."""
    return _save_sd3(folder, t5=False, qk_norm="rms_norm", dual_attention_layers=(0,))


def _save_sd3(folder: Path, *, t5: bool, **blocks: Any) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=16, **blocks,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=_woken(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5() if t5 else None,
        tokenizer_3=_t5_tokenizer() if t5 else None,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_flux(folder: Path) -> Path:
    """A FluxPipeline that is guidance-distilled, as FLUX.1-dev is."""
    return _save_flux(folder, guidance=True, scheduler={"shift": 3.0, "use_dynamic_shifting": True})


def save_schnell(folder: Path) -> Path:
    """A FluxPipeline without guidance and without a dynamic shift, as FLUX.1-schnell is."""
    return _save_flux(folder, guidance=False, scheduler={"shift": 1.0, "use_dynamic_shifting": False})


def _save_flux(folder: Path, *, guidance: bool, scheduler: dict[str, Any]) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=_woken(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    )
    pipeline.save_pretrained(folder)
    return folder


def save_qwen(folder: Path) -> Path:
    """A QwenImagePipeline, whose prompts keep their own lengths."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
    )  # fmt: skip
    pipeline = QwenImagePipeline(
        transformer=_woken(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=vae,
        text_encoder=_qwen(),
        tokenizer=_qwen_tokenizer(),
    )
    pipeline.save_pretrained(folder)
    return folder


def _woken(transformer: torch.nn.Module) -> torch.nn.Module:
    """Some of the classes start with zeros in the last layer, which would make every velocity 0."""
    for parameter in transformer.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
    return transformer


def _vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(4, 4), layers_per_block=1,
        latent_channels=4, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609,
        scaling_factor=1.5035, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip


def _clip_config() -> object:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(_letters([START, END])), hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=3, projection_dim=32, hidden_act="gelu", max_position_embeddings=24, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def _letters(special: list[str]) -> dict[str, int]:
    """The 256 byte symbols that a byte-level vocabulary is made of, alone and at the end of a word."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    return {token: i for i, token in enumerate([*special, *alphabet, *(f"{letter}</w>" for letter in alphabet)])}


def _clip_tokenizer() -> object:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=_letters([START, END]), merges=[], model_max_length=24)


def _t5() -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )


def _t5_tokenizer() -> object:
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    return T5Tokenizer(vocab=[(piece, 0.0 if i < 3 else -2.0) for i, piece in enumerate(pieces)], extra_ids=0)


def _qwen() -> torch.nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        },
        vision_start_token_id=0, vision_end_token_id=1, vision_token_id=2, image_token_id=3, video_token_id=4,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen_tokenizer() -> object:
    from transformers import Qwen2Tokenizer

    special = ["<a>", "<b>", "<c>", "<d>", "<e>", END]
    return Qwen2Tokenizer(vocab=_letters(special), merges=[])
