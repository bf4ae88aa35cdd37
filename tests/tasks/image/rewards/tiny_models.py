"""Random models of the real classes, a few thousand weights each, saved to disk with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "red", "blue", "cat", "dog", "photo", "of", "depicts", "two", "object", "colored", "-", ".")


def save_clip(folder: Path, seed: int = 1) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted({letter for word in WORDS for letter in word} | set("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    CLIPTokenizer(vocab=ids, merges=[]).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(ids), "max_position_embeddings": 24, "eos_token_id": ids["<|endoftext|>"],
            "bos_token_id": ids["<|startoftext|>"], "pad_token_id": ids["<|endoftext|>"]}  # fmt: skip
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    _spread(model)
    model.save_pretrained(folder)
    return folder


def save_bert_tokenizer(folder: Path) -> Path:
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    return folder


def blip(vocabulary: int = 32):
    from transformers import BlipConfig, BlipForImageTextRetrieval

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        vision_config={**small, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6},
        text_config={**small, "vocab_size": vocabulary, "encoder_hidden_size": 16, "max_position_embeddings": 40},
    )
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(config).eval()
    _spread(model)
    return model


def _spread(model: torch.nn.Module) -> None:
    """Initial weights are so small that a random tower hardly looks at its input."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
