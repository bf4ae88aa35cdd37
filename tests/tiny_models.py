"""Random models of real classes with a tokenizer of characters, saved as `save_pretrained` leaves them."""

from __future__ import annotations

from pathlib import Path

import torch

KINDS = ("Qwen2", "Qwen3", "Llama")


def save_tiny(kind: str, folder: Path, *, characters: str = "0123456789+-*/=>:;,() ", tied: bool = True) -> Path:
    """Two layers of width 64 with heads of 32, which is the least that vLLM takes; weights three times the usual."""
    import transformers

    from tasks.reasoning.character_model import character_tokenizer

    tokenizer = character_tokenizer(characters)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
