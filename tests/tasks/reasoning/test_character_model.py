from __future__ import annotations

import pytest
import torch

from tasks.reasoning.character_model import (
    BOS_ID,
    PAD_ID,
    UNK_ID,
    character_config,
    character_tokenizer,
    fresh_model,
)
from tasks.reasoning.countdown_pretrain import CHARACTERS


def test_tokenizer_maps_every_symbol_to_one_token() -> None:
    tokenizer = character_tokenizer(CHARACTERS)
    # 4 special symbols, 10 digits, + - * = , ; : >
    assert len(tokenizer) == 22
    text = "4371:20>5*8=96,-76;"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == BOS_ID
    assert len(ids) == 1 + len(text)
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer("7 7\n\u0667")["input_ids"] == [BOS_ID, 11, UNK_ID, 11, UNK_ID, UNK_ID]


def test_special_symbols_show_in_decoded_text() -> None:
    # A decoder that drops them would let `7<pad>+7` pass the verifier as `7+7`.
    tokens = [11, PAD_ID, 14, BOS_ID, 11, UNK_ID]
    assert character_tokenizer(CHARACTERS).decode(tokens) == "7<pad>+<bos>7<unk>"


def test_model_has_the_documented_size() -> None:
    config = character_config(CHARACTERS)
    # 22*96 + 4 * (3*(96*96 + 96) + 96*96 + 3*96*256 + 2*96) + 96 = 2,112 + 4 * 111,072 + 96
    assert sum(p.numel() for p in fresh_model(config, seed=0).parameters()) == 446_496
    assert config.hidden_size // config.num_attention_heads == 32
    with pytest.raises(ValueError, match="multiple of head_dim"):
        character_config(CHARACTERS, hidden_size=100)


def test_seed_sets_the_weights_and_leaves_the_global_generator() -> None:
    config = character_config(CHARACTERS, hidden_size=32, num_layers=1, intermediate_size=32)
    before = torch.get_rng_state()
    one, same, other = (fresh_model(config, seed=s).model.embed_tokens.weight for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
