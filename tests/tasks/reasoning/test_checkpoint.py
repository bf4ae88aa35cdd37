from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.reasoning.character_model import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL,
    UNK_ID,
    character_config,
    character_tokenizer,
    fresh_model,
)
from tasks.reasoning.checkpoint import Checkpoint
from tasks.reasoning.countdown import BASE_FOLDER
from tasks.reasoning.countdown_pretrain import CHARACTERS
from tests.tiny_models import save_tiny


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def shipped() -> Checkpoint:
    return Checkpoint.open(BASE_FOLDER)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    config = character_config(CHARACTERS, hidden_size=32, num_layers=1, intermediate_size=32)
    model = fresh_model(config, seed=3).eval()
    model.save_pretrained(tmp_path)
    character_tokenizer(CHARACTERS).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    tokens, mask = checkpoint.encode(["4371:14>"])
    assert mask.all()
    assert tokens.tolist() == [[BOS_ID, 8, 7, 11, 5, 20, 5, 8, 21]]
    assert torch.equal(model(tokens).logits, checkpoint.load_model()(tokens).logits)
    assert (checkpoint.pad_id, checkpoint.eos_id) == (PAD_ID, EOS_ID)
    assert checkpoint.banned_ids == (PAD_ID, BOS_ID, UNK_ID)


def test_a_tokenizer_of_characters_keeps_its_white_space(tmp_path: Path) -> None:
    characters = CHARACTERS + " \nab"
    fresh_model(character_config(characters, hidden_size=32, num_layers=1, intermediate_size=32), 0).save_pretrained(
        tmp_path
    )
    character_tokenizer(characters).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    tokens, _ = checkpoint.encode(["a  b\n1"])
    assert checkpoint.decode(tokens[:, 1:]) == [("a  b\n1", False)]


def test_decoding_stops_at_the_first_end_and_hides_nothing(shipped: Checkpoint) -> None:
    rows = torch.tensor([[11, 14, 11, EOS_ID, 5, PAD_ID], [11, PAD_ID, BOS_ID, 14, UNK_ID, 11]])
    assert shipped.decode(rows) == [("7+7", True), ("7<pad><bos>+<unk>7", False)]


def test_prompts_of_unequal_length_are_padded_on_the_left(shipped: Checkpoint) -> None:
    tokens, mask = shipped.encode(["4371:14>", "43>"])
    assert mask[1].tolist() == [False] * 5 + [True] * 4
    assert tokens[1].tolist() == [PAD_ID] * 5 + [BOS_ID, 8, 7, 21]
    bare, _ = shipped.encode(["43>"], special=False)
    assert bare.tolist() == [[8, 7, 21]]


def test_a_tokenizer_without_padding_pads_with_its_end(shipped: Checkpoint) -> None:
    tokenizer = character_tokenizer(CHARACTERS)
    tokenizer.pad_token = None
    tokens, mask = Checkpoint("memory", tokenizer).encode(["43>", "4>"])
    assert tokens[1].tolist() == [EOS_ID, BOS_ID, 8, 21]
    assert mask[1].tolist() == [False, True, True, True]


def test_a_chat_is_written_by_the_template() -> None:
    tokenizer = character_tokenizer(CHARACTERS)
    assert not Checkpoint("memory", tokenizer).has_chat_template
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    checkpoint = Checkpoint("memory", tokenizer)
    assert checkpoint.has_chat_template
    assert checkpoint.chat("1+1") == "[user]1+1>"
    assert checkpoint.chat("1+1", system="be brief") == "[system]be brief[user]1+1>"


@pytest.mark.parametrize("name", ["absent", "."])
def test_missing_base_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="rlflow pretrain TASK"):
        Checkpoint.open(tmp_path / name)


def test_an_unknown_repository_of_the_hub_is_one_clear_error() -> None:
    with pytest.raises(FileNotFoundError, match="found neither at no-such-organisation/no-such-model"):
        Checkpoint.open("no-such-organisation/no-such-model")


def test_shipped_base_is_small_and_tied(shipped: Checkpoint) -> None:
    assert sum(f.stat().st_size for f in BASE_FOLDER.iterdir()) < 2_200_000
    model = shipped.load_model()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shipped.tokenizer.get_vocab() == {symbol: i for i, symbol in enumerate((*SPECIAL, *CHARACTERS))}


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_tiny("Qwen2", tmp_path)
    # 4 special symbols and 30 characters; the model has 26 embeddings.
    character_tokenizer("".join(map(chr, range(97, 127)))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"each of the 34 tokens of its tokenizer, found 26 in .*do not belong"):
        Checkpoint.open(tmp_path).load_model()
