from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.reasoning.countdown_model import (
    BASE_FOLDER,
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SYMBOLS,
    UNK_ID,
    Checkpoint,
    countdown_config,
    countdown_model,
    countdown_tokenizer,
    shipped_base,
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_tokenizer_maps_every_symbol_to_one_token() -> None:
    tokenizer = countdown_tokenizer()
    # 4 special symbols, 10 digits, + - * = , ; : >
    assert len(tokenizer) == len(SYMBOLS) == 22
    text = "4371:20>5*8=96,-76;"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == BOS_ID
    assert len(ids) == 1 + len(text)
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer("7 7\n\u0667")["input_ids"] == [BOS_ID, 11, UNK_ID, 11, UNK_ID, UNK_ID]


def test_special_symbols_show_in_decoded_text() -> None:
    # A decoder that drops them would let `7<pad>+7` pass the verifier as `7+7`.
    assert countdown_tokenizer().decode([11, PAD_ID, 14, BOS_ID, 11, UNK_ID]) == "7<pad>+<bos>7<unk>"


def test_model_has_the_documented_size() -> None:
    config = countdown_config()
    # 22*96 + 4 * (3*(96*96 + 96) + 96*96 + 3*96*256 + 2*96) + 96 = 2,112 + 4 * 111,072 + 96
    assert sum(p.numel() for p in countdown_model(config, seed=0).parameters()) == 446_496
    assert config.hidden_size // config.num_attention_heads == 32
    with pytest.raises(ValueError, match="multiple of head_dim"):
        countdown_config(hidden_size=100)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = countdown_model(countdown_config(hidden_size=32, num_layers=1, intermediate_size=32), seed=3).eval()
    model.save_pretrained(tmp_path)
    countdown_tokenizer().save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    tokens, mask = checkpoint.encode(["4371:14>"])
    assert mask.all()
    assert tokens.tolist() == [[BOS_ID, 8, 7, 11, 5, 20, 5, 8, 21]]
    assert torch.equal(model(tokens).logits, checkpoint.load_model()(tokens).logits)
    assert (checkpoint.pad_id, checkpoint.eos_id) == (PAD_ID, EOS_ID)
    assert checkpoint.banned_ids == (PAD_ID, BOS_ID, UNK_ID)


def test_decoding_stops_at_the_first_end_and_hides_nothing() -> None:
    rows = torch.tensor([[11, 14, 11, EOS_ID, 5, PAD_ID], [11, PAD_ID, BOS_ID, 14, UNK_ID, 11]])
    assert shipped_base().decode(rows) == [("7+7", True), ("7<pad><bos>+<unk>7", False)]


def test_prompts_of_unequal_length_are_padded_on_the_left() -> None:
    tokens, mask = shipped_base().encode(["4371:14>", "43>"])
    assert mask[1].tolist() == [False] * 5 + [True] * 4
    assert tokens[1].tolist() == [PAD_ID] * 5 + [BOS_ID, 8, 7, 21]


def test_seed_sets_the_weights_and_leaves_the_global_generator() -> None:
    config = countdown_config(hidden_size=32, num_layers=1, intermediate_size=32)
    before = torch.get_rng_state()
    one, same, other = (countdown_model(config, seed=s).model.embed_tokens.weight for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_missing_base_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="rlflow pretrain reasoning/countdown"):
        Checkpoint.open(tmp_path / "absent")


def test_shipped_base_is_small_and_tied() -> None:
    assert sum(f.stat().st_size for f in BASE_FOLDER.iterdir()) < 2_200_000
    model = shipped_base().load_model()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shipped_base().tokenizer.get_vocab() == {symbol: i for i, symbol in enumerate(SYMBOLS)}
