from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tasks.reasoning import arithmetic_pretrain, code_pretrain, countdown_pretrain
from tasks.reasoning.arithmetic import Arithmetic
from tasks.reasoning.code import Code
from tasks.reasoning.countdown import Countdown
from tasks.reasoning.language import LanguageTask
from tasks.reasoning.pretrain import Recipe

TINY = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 32}

every_recipe = pytest.mark.parametrize(
    ("recipe", "task"),
    [
        (arithmetic_pretrain.RECIPE, Arithmetic),
        (code_pretrain.RECIPE, Code),
        (countdown_pretrain.RECIPE, Countdown),
    ],
    ids=["arithmetic", "code", "countdown"],
)


@every_recipe
def test_training_is_repeatable(recipe: Recipe, task: type[LanguageTask]) -> None:
    short = replace(recipe, num_steps=2)
    once, again, other = (short.train(seed, batch_size=4).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["model.norm.weight"], other["model.norm.weight"])


@every_recipe
def test_a_written_base_opens(recipe: Recipe, task: type[LanguageTask], tmp_path: Path) -> None:
    small = partial(task, evaluation_prompts=2, evaluation_samples=32)
    short = replace(recipe, num_steps=2, model=TINY, task=lambda base: small(base=base))
    # Two steps teach nobody to write an answer.
    assert short.pretrain(tmp_path, 0)["score"] == 0.0
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    opened = task(base=str(tmp_path)).build_policy(frozenset()).actor.state_dict()
    assert torch.equal(opened["model.norm.weight"], short.train(0).state_dict()["model.norm.weight"])
