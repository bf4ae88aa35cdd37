"""A tokenizer of single characters and a small Qwen2 model over it, written and read as any Hugging Face checkpoint."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """Four special symbols and one token per character; `tokenizer(prompt)` puts the beginning of sequence in front."""
    vocabulary = {symbol: index for index, symbol in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def character_config(
    characters: str,
    hidden_size: int = 96,
    num_layers: int = 4,
    head_dim: int = 32,
    intermediate_size: int = 256,
    max_positions: int = 64,
) -> Qwen2Config:
    """The shape of the shipped bases; tests pass smaller sizes.

    Args:
        characters: Those of the tokenizer.
        hidden_size: Width; a multiple of `head_dim`.
        num_layers: Number of blocks.
        head_dim: Width of an attention head; vLLM's kernels need at least 32.
        intermediate_size: Width of the feed-forward layer.
        max_positions: Longest prompt with its completion.
    """
    if hidden_size % head_dim:
        raise ValueError(f"hidden_size: expected a multiple of head_dim {head_dim}, found {hidden_size}")
    return Qwen2Config(
        vocab_size=len(SPECIAL) + len(characters),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // head_dim,
        num_key_value_heads=hidden_size // head_dim,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def fresh_model(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """Random weights; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
