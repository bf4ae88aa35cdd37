from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tasks.reasoning import countdown_pretrain
from tasks.reasoning.character_model import EOS_ID, character_config, fresh_model
from tasks.reasoning.countdown import Countdown
from tasks.reasoning.countdown_pretrain import CHARACTERS, ChainSource, countdown_tokenizer, train_base
from tasks.reasoning.countdown_puzzle import Puzzle, verify
from tasks.reasoning.pretrain import IGNORED_LABEL, encode


@pytest.mark.parametrize(("wrong_fraction", "right"), [(0.0, 200), (1.0, 0)])
def test_chains_solve_their_puzzle_or_miss_only_its_target(wrong_fraction: float, right: int) -> None:
    pairs = ChainSource(seed=0, wrong_fraction=wrong_fraction).draw(200)
    verdicts = [verify(Puzzle.parse(prompt), completion) for prompt, completion in pairs]
    assert sum(v.correct for v in verdicts) == right
    assert {v.failure for v in verdicts} <= {None, "target"}


def test_only_completion_tokens_are_trained() -> None:
    tokens, labels = encode(countdown_tokenizer(), [("4371:14>", "7+7=14,0"), ("4371:14>", "4+7=11,3;11+3=14,0")])
    # <bos> + 8 prompt symbols + 18 completion symbols + <eos>
    assert tokens.shape == labels.shape == (2, 28)
    assert (labels[:, :9] == IGNORED_LABEL).all()
    assert labels[0, 9:18].tolist() == tokens[0, 9:18].tolist()
    assert tokens[0, 17] == EOS_ID
    assert (labels[0, 18:] == IGNORED_LABEL).all()
    assert (labels[1, 9:] == tokens[1, 9:]).all()


def test_training_is_repeatable() -> None:
    once, again, other = (train_base(seed, num_steps=2, batch_size=4).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["model.norm.weight"], other["model.norm.weight"])


def test_pretraining_writes_a_base_that_the_task_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = fresh_model(character_config(CHARACTERS, hidden_size=32, num_layers=1, intermediate_size=32), seed=0)
    monkeypatch.setattr(countdown_pretrain, "train_base", lambda seed: tiny)
    monkeypatch.setattr(
        countdown_pretrain, "Countdown", partial(Countdown, evaluation_prompts=2, evaluation_samples=32)
    )
    metrics = Countdown.pretrain(tmp_path, 0)
    # Random weights never write a derivation.
    assert metrics["score"] == 0.0
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    policy = Countdown(base=str(tmp_path)).build_policy(frozenset())
    assert torch.equal(policy.actor.state_dict()["model.norm.weight"], tiny.state_dict()["model.norm.weight"])
