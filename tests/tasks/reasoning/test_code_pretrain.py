from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasks.reasoning.character_model import UNK_ID
from tasks.reasoning.code import Code
from tasks.reasoning.code_mini import MAX_COMPLETION_TOKENS, CodeMiniProblem, verify
from tasks.reasoning.code_mini_data import problems
from tasks.reasoning.code_pretrain import RECIPE, ProgramSource

TINY = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 32}


@pytest.mark.parametrize(("mistake_fraction", "right"), [(0.0, 300), (1.0, 0)])
def test_programs_are_right_or_a_near_miss(mistake_fraction: float, right: int) -> None:
    pairs = ProgramSource(seed=0, mistake_fraction=mistake_fraction).draw(300)
    asked = [CodeMiniProblem.parse(prompt) for prompt, _ in pairs]
    verdicts = [verify(problem, text) for problem, (_, text) in zip(asked, pairs, strict=True)]
    assert sum(verdict.correct for verdict in verdicts) == right
    # A near miss may take the largest of nothing.
    assert {verdict.failure for verdict in verdicts} <= {None, "wrong", "runtime"}
    assert set(asked) <= set(problems(held_out=False))


def test_every_pair_fits_the_model() -> None:
    tokenizer = RECIPE.tokenizer()
    pairs = ProgramSource(seed=1, mistake_fraction=0.5).draw(500)
    assert all(UNK_ID not in tokenizer(prompt + text)["input_ids"] for prompt, text in pairs)
    # <bos> and <eos> beside the characters.
    assert max(len(prompt) + len(text) + 2 for prompt, text in pairs) <= RECIPE.max_positions
    assert max(len(text) + 1 for _, text in pairs) <= MAX_COMPLETION_TOKENS


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
        task=lambda base: Code(base=base, evaluation_prompts=2, evaluation_samples=32),
    )
    metrics = recipe.pretrain(tmp_path, 0)
    # Two steps do not teach a program.
    assert metrics["score"] == 0.0
    policy = Code(base=str(tmp_path)).build_policy(frozenset())
    trained = recipe.train(0).state_dict()
    assert torch.equal(policy.actor.state_dict()["model.norm.weight"], trained["model.norm.weight"])
