"""Weights of an open_clip checkpoint under the names of transformers' `CLIPModel`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_WHOLE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
_STEMS = {
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "ln_final.": "text_model.final_layer_norm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_PARTS = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}
# A product with these stands on the right in open_clip and on the left in a linear layer.
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split; the attention's stacked input matrix becomes three.

    Raises:
        ValueError: A name that open_clip's CLIP does not have.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _WHOLE:
            renamed[_WHOLE[name]] = value
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T.contiguous()
        elif name != "attn_mask":  # a constant, in older files
            renamed.update(_layer(name, value))
    return renamed


def _layer(name: str, value: Tensor) -> dict[str, Tensor]:
    stem = next((stem for stem in _STEMS if name.startswith(stem)), None)
    if stem is None:
        raise ValueError(f"expected the weights of an open_clip CLIP, found {name!r}")
    target = _STEMS[stem] + name.removeprefix(stem)
    if ".attn.in_proj_" in target:
        kind = target.rpartition("_")[2]  # weight or bias
        prefix = target.partition(".attn.in_proj_")[0]
        parts = torch.chunk(value, 3)
        return {f"{prefix}.self_attn.{p}.{kind}": part for p, part in zip(_QUERY_KEY_VALUE, parts, strict=True)}
    for old, new in _PARTS.items():
        target = target.replace(old, new)
    return {target: value}
