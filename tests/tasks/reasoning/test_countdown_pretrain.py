from __future__ import annotations

import pytest

from tasks.reasoning.character_model import EOS_ID
from tasks.reasoning.countdown_pretrain import RECIPE, ChainSource
from tasks.reasoning.countdown_puzzle import Puzzle, verify
from tasks.reasoning.pretrain import IGNORED_LABEL, encode


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
