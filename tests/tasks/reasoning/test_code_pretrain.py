from __future__ import annotations

import pytest

from tasks.reasoning.character_model import UNK_ID
from tasks.reasoning.code_mini import MAX_COMPLETION_TOKENS, CodeMiniProblem, verify
from tasks.reasoning.code_mini_data import problems
from tasks.reasoning.code_pretrain import RECIPE, ProgramSource


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
