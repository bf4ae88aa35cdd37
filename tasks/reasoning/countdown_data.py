"""Which puzzles exist, which are held out, and the frozen evaluation set; everything is enumerated, nothing is loaded.

Splits and the evaluation set are ordered by SHA-256 of a salted text, so that they never change with a library's
random generator. Whole pools are held out: no evaluation pool occurs in pretraining or reinforcement learning.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tasks.reasoning.countdown_puzzle import (
    MAX_RESULT,
    MAX_STEPS,
    MAX_TARGET,
    MIN_TARGET,
    OPERATORS,
    POOL_SIZE,
    Puzzle,
    canonical,
)

SPLIT_SALT = "rlflow-countdown-1"
HELD_OUT_FRACTION = 0.15
MIN_CANONICAL_SOLUTIONS = 8
NUM_EVALUATION_PROMPTS = 150
ORDERS = tuple(itertools.permutations(range(POOL_SIZE)))

Steps = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ChainTable:
    """Every chain of one to three steps on every pool; chains are written over positions of the sorted pool.

    Attributes:
        pools: `[P, 4]` sorted digits of each pool.
        starts: First position of each of the C chains.
        steps: Operators and positions of each chain.
        canonical: `[C]` id of each chain's canonical form.
        final: `[P, C]` last result, 0 where a result leaves 1-99.
    """

    pools: NDArray[np.int16]
    starts: list[int]
    steps: list[Steps]
    canonical: NDArray[np.int64]
    final: NDArray[np.int16]


@cache
def chain_table() -> ChainTable:
    """Enumerate all 126 pools x 7,536 chains (0.1 s)."""
    moves = list(itertools.product(OPERATORS, range(POOL_SIZE)))
    chains = [
        (start, steps)
        for length in range(1, MAX_STEPS + 1)
        for start in range(POOL_SIZE)
        for steps in itertools.product(moves, repeat=length)
    ]
    # Canonical forms sort digits, so positions stand in for the digits of every sorted pool at once.
    ids: dict[str, int] = {}
    classes = [ids.setdefault(canonical(start, steps), len(ids)) for start, steps in chains]
    pools = np.array(list(itertools.combinations(range(1, 10), POOL_SIZE)), dtype=np.int16)
    starts = [start for start, _ in chains]
    steps = [steps for _, steps in chains]
    return ChainTable(pools, starts, steps, np.array(classes), _final_results(pools, starts, steps))


def _final_results(pools: NDArray[np.int16], starts: list[int], steps: list[Steps]) -> NDArray[np.int16]:
    acc = pools[:, starts]  # [P, C]
    legal = np.ones_like(acc, dtype=bool)
    for i in range(MAX_STEPS):
        operator = np.array([s[i][0] if i < len(s) else "" for s in steps])
        operand = pools[:, [s[i][1] if i < len(s) else 0 for s in steps]]
        acc = np.select(
            [operator == "+", operator == "-", operator == "*"], [acc + operand, acc - operand, acc * operand], acc
        )
        legal &= (acc >= 1) & (acc <= MAX_RESULT)
        acc = np.where(legal, acc, 0)
    return acc


@cache
def solution_counts() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct solutions of each pool and target: strings and canonical forms, each `[P, 41]`."""
    table = chain_table()
    num_classes = int(table.canonical.max()) + 1
    strings, classes = [], []
    for target in range(MIN_TARGET, MAX_TARGET + 1):
        pool, chain = np.nonzero(table.final == target)
        seen = np.zeros((len(table.pools), num_classes), dtype=bool)
        seen[pool, table.canonical[chain]] = True
        strings.append(np.bincount(pool, minlength=len(table.pools)))
        classes.append(seen.sum(axis=1))
    return np.stack(strings, axis=1), np.stack(classes, axis=1)


@cache
def held_out_pools() -> frozenset[tuple[int, ...]]:
    """The 19 pools (15 %) that only evaluation sees."""
    pools = sorted((tuple(map(int, pool)) for pool in chain_table().pools), key=_order)
    return frozenset(pools[: round(HELD_OUT_FRACTION * len(pools))])


@cache
def puzzles(held_out: bool) -> tuple[Puzzle, ...]:
    """The puzzles of one side of the split with at least eight canonical solutions, pools in sorted order."""
    _, classes = solution_counts()
    rows, columns = np.nonzero(classes >= MIN_CANONICAL_SOLUTIONS)
    pools = chain_table().pools
    every = (
        Puzzle(tuple(map(int, pools[row])), MIN_TARGET + int(column)) for row, column in zip(rows, columns, strict=True)
    )
    return tuple(puzzle for puzzle in every if (puzzle.pool in held_out_pools()) == held_out)


def training_starts() -> range:
    """Ids of the training prompts: every training puzzle in each order of its digits."""
    return range(len(puzzles(held_out=False)) * len(ORDERS))


def training_puzzle(start: int) -> Puzzle:
    """The training prompt of an id.

    Raises:
        IndexError: The id is not in `training_starts()`.
    """
    if start not in training_starts():
        raise IndexError(f"training start: expected 0 to {training_starts()[-1]}, found {start}")
    puzzle, order = divmod(start, len(ORDERS))
    return reorder(puzzles(held_out=False)[puzzle], ORDERS[order])


@cache
def evaluation_puzzles() -> tuple[Puzzle, ...]:
    """The frozen evaluation set: 150 held-out puzzles, the digits of each in a fixed order."""
    ordered = sorted(puzzles(held_out=True), key=lambda puzzle: _order((*puzzle.pool, puzzle.target)))
    return tuple(
        reorder(puzzle, ORDERS[int(_order(("digits", puzzle.prompt)), 16) % len(ORDERS)])
        for puzzle in ordered[:NUM_EVALUATION_PROMPTS]
    )


def reorder(puzzle: Puzzle, order: Iterable[int]) -> Puzzle:
    """The same puzzle with the digits of its prompt in another order."""
    return Puzzle(tuple(puzzle.pool[position] for position in order), puzzle.target)


def evaluation_digest() -> str:
    """SHA-256 of the evaluation prompts, one a line: the data digest of the task's version."""
    return hashlib.sha256("\n".join(puzzle.prompt for puzzle in evaluation_puzzles()).encode()).hexdigest()


def solutions(puzzle: Puzzle) -> list[tuple[int, Steps]]:
    """Every chain that solves a puzzle, as its first digit and its steps."""
    table = chain_table()
    pool = sorted(puzzle.pool)
    row = int(np.flatnonzero((table.pools == pool).all(axis=1))[0])
    return [chain_digits(row, int(chain)) for chain in np.flatnonzero(table.final[row] == puzzle.target)]


def chain_digits(row: int, chain: int) -> tuple[int, Steps]:
    """Chain `chain` of the table written with the digits of pool `row`."""
    table = chain_table()
    digits = [int(digit) for digit in table.pools[row]]
    return digits[table.starts[chain]], tuple((op, digits[position]) for op, position in table.steps[chain])


def _order(item: tuple[object, ...]) -> str:
    return hashlib.sha256(f"{SPLIT_SALT}:{item}".encode()).hexdigest()
