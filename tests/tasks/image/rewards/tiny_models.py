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


def save_owlv2(folder: Path) -> Path:
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    save_clip(folder)  # for its tokenizer
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**small, "vocab_size": 80, "max_position_embeddings": 24},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    save_bert_tokenizer(folder)
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    bert = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        max_text_len=32, disable_custom_kernels=True,
    )  # fmt: skip
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder
