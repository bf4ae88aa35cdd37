from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasks.reasoning.character_model import EOS_ID
from tasks.reasoning.countdown import Countdown
from tasks.reasoning.countdown_pretrain import RECIPE, ChainSource
from tasks.reasoning.countdown_puzzle import Puzzle, verify
from tasks.reasoning.pretrain import IGNORED_LABEL, encode

TINY = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 32}


@pytest.mark.parametrize(("mistake_fraction", "right"), [(0.0, 200), (1.0, 0)])
def test_chains_solve_their_puzzle_or_miss_only_its_target(mistake_fraction: float, right: int) -> None:
    pairs = ChainSource(seed=0, mistake_fraction=mistake_fraction).draw(200)
    verdicts = [verify(Puzzle.parse(prompt), completion) for prompt, completion in pairs]
    assert sum(v.correct for v in verdicts) == right
    assert {v.failure for v in verdicts} <= {None, "target"}


def test_only_completion_tokens_are_trained() -> None:
    tokens, labels = encode(RECIPE.tokenizer(), [("4371:14>", "7+7=14,0"), ("4371:14>", "4+7=11,3;11+3=14,0")])
    # <bos> + 8 prompt symbols + 18 completion symbols + <eos>
    assert tokens.shape == labels.shape == (2, 28)
    assert (labels[:, :9] == IGNORED_LABEL).all()
    assert labels[0, 9:18].tolist() == tokens[0, 9:18].tolist()
    assert tokens[0, 17] == EOS_ID
    assert (labels[0, 18:] == IGNORED_LABEL).all()
    assert (labels[1, 9:] == tokens[1, 9:]).all()


def test_training_is_repeatable() -> None:
    recipe = replace(RECIPE, num_steps=2)
    once, again, other = (recipe.train(seed, batch_size=4).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["model.norm.weight"], other["model.norm.weight"])


def test_pretraining_writes_a_base_that_the_task_opens(tmp_path: Path) -> None:
    recipe = replace(
        RECIPE,
        num_steps=2,
        model=TINY,
        task=lambda base: Countdown(base=base, evaluation_prompts=2, evaluation_samples=32),
    )
    metrics = recipe.pretrain(tmp_path, 0)
    # Two steps do not teach a derivation.
    assert metrics["score"] == 0.0
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    policy = Countdown(base=str(tmp_path)).build_policy(frozenset())
    trained = recipe.train(0).state_dict()
    assert torch.equal(policy.actor.state_dict()["model.norm.weight"], trained["model.norm.weight"])
