from __future__ import annotations

import itertools

import numpy as np

from tasks.reasoning.countdown_data import (
    chain_table,
    evaluation_digest,
    evaluation_puzzles,
    held_out_pools,
    puzzles,
    solution_counts,
    solutions,
)
from tasks.reasoning.countdown_puzzle import Puzzle, canonical, verify, write

# The frozen set: a change here is a new version of the task, and its old scores no longer compare.
EVALUATION_DIGEST = "6f38be5d4f4df3e7cd8e8924f2154f32673e7afc54a9be13103c8dfe3951fd2d"


def test_counts_of_the_enumeration() -> None:
    # C(9, 4) = 126 pools; 4 * 12 + 4 * 12^2 + 4 * 12^3 = 48 + 576 + 6,912 = 7,536 chains
    assert chain_table().final.shape == (126, 7536)
    strings, classes = solution_counts()
    assert strings.shape == classes.shape == (126, 41)
    assert int((strings > 0).sum()) == 5128
    assert (classes <= strings).all()


def test_solutions_of_one_puzzle_by_hand() -> None:
    # Pool 1 2 3 4, target 48, by brute force over nested loops that share nothing with the table.
    found = set()
    for length in (1, 2, 3):
        for digits in itertools.product((1, 2, 3, 4), repeat=length + 1):
            for operators in itertools.product("+-*", repeat=length):
                acc, legal = digits[0], True
                for operator, digit in zip(operators, digits[1:], strict=True):
                    acc = {"+": acc + digit, "-": acc - digit, "*": acc * digit}[operator]
                    legal = legal and 0 < acc <= 99
                if legal and acc == 48:
                    found.add((digits[0], tuple(zip(operators, digits[1:], strict=True))))
    puzzle = Puzzle((3, 1, 4, 2), 48)
    assert len(found) > 0
    assert set(solutions(puzzle)) == found
    strings, classes = solution_counts()
    assert strings[0, 48 - 10] == len(found)
    assert classes[0, 48 - 10] == len({canonical(*chain) for chain in found})


def test_split_keeps_pools_apart() -> None:
    train = {tuple(sorted(p.pool)) for p in puzzles(held_out=False)}
    held_out = {tuple(sorted(p.pool)) for p in puzzles(held_out=True)}
    # 15 % of 126 pools = 18.9
    assert held_out == held_out_pools()
    assert len(held_out) == 19
    assert not train & held_out
    assert len(train) == 107
    assert (len(puzzles(held_out=False)), len(puzzles(held_out=True))) == (3750, 635)


def test_evaluation_set_is_frozen() -> None:
    prompts = [p.prompt for p in evaluation_puzzles()]
    assert len(prompts) == len({(tuple(sorted(p.pool)), p.target) for p in evaluation_puzzles()}) == 150
    assert all(tuple(sorted(p.pool)) in held_out_pools() for p in evaluation_puzzles())
    assert evaluation_digest() == EVALUATION_DIGEST


def test_every_evaluation_prompt_has_at_least_eight_canonical_solutions_that_verify() -> None:
    strings, classes = [], []
    for puzzle in evaluation_puzzles():
        verdicts = [verify(puzzle, write(puzzle, *chain)) for chain in solutions(puzzle)]
        assert all(v.correct for v in verdicts)
        strings.append(len(verdicts))
        classes.append(len({v.canonical for v in verdicts}))
    assert min(classes) >= 8
    assert np.mean(classes) < np.mean(strings)
