"""Make the shipped countdown base anew: supervised training on enumerated chains, some of them aimed wrong on purpose.

`rlflow pretrain reasoning/countdown --out FOLDER` takes about three minutes of one core and prints the base's score.
The share of wrong chains sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import random

import numpy as np

from tasks.reasoning.countdown import Countdown
from tasks.reasoning.countdown_data import ORDERS, chain_digits, chain_table, puzzles, reorder
from tasks.reasoning.countdown_puzzle import MAX_TARGET, MIN_TARGET, write
from tasks.reasoning.pretrain import Recipe

CHARACTERS = "0123456789+-*=,;:>"


class ChainSource:
    """Prompts of the training pools with a chain that solves them, or, for some, another target of the same pool."""

    def __init__(self, seed: int, mistake_fraction: float) -> None:
        """Index the chains of every pool by their last result."""
        self._random = random.Random(seed)
        self._mistake_fraction = mistake_fraction
        self._puzzles = puzzles(held_out=False)
        table = chain_table()
        self._rows = {tuple(map(int, pool)): row for row, pool in enumerate(table.pools)}
        self._solving = {
            (row, target): np.flatnonzero(table.final[row] == target)
            for row in self._rows.values()
            for target in range(MIN_TARGET, MAX_TARGET + 1)
        }

    def draw(self, num_pairs: int) -> list[tuple[str, str]]:
        """Pairs of prompt and completion."""
        return [self._pair() for _ in range(num_pairs)]

    def _pair(self) -> tuple[str, str]:
        puzzle = self._random.choice(self._puzzles)
        row = self._rows[puzzle.pool]
        aim = puzzle.target
        if self._random.random() < self._mistake_fraction:
            aim = self._random.choice(
                [t for t in range(MIN_TARGET, MAX_TARGET + 1) if t != puzzle.target and len(self._solving[row, t])]
            )
        chain = self._random.choice(self._solving[row, aim])
        asked = reorder(puzzle, self._random.choice(ORDERS))
        return asked.prompt, write(asked, *chain_digits(row, int(chain)))


RECIPE = Recipe(
    characters=CHARACTERS,
    max_positions=64,
    num_steps=1006,
    mistake_fraction=0.25,
    source=ChainSource,
    task=lambda base: Countdown(base=base),
)
