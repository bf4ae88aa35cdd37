"""Make the shipped base of small programs anew: supervised training on right programs and, on purpose, near misses.

`rlflow pretrain reasoning/code --out FOLDER` takes two to three minutes of one core and prints the base's score. The
share of near misses sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import random

from tasks.reasoning.code import Code
from tasks.reasoning.code_mini import CodeMiniProblem, verify
from tasks.reasoning.code_mini_data import neighbours, problems, solutions
from tasks.reasoning.pretrain import Recipe

# The letters of the prompts and of `for x in a if`, `sorted`, `sum`, `max`, `len`, with y for a second variable.
CHARACTERS = "0123456789+-*<>=%,:[]() adefilmnorstuvxy"


class ProgramSource:
    """Training problems with a program that solves them or, for some, one that solves a neighbour and fails a test."""

    def __init__(self, seed: int, mistake_fraction: float) -> None:
        """Draw from a generator of this seed."""
        self._random = random.Random(seed)
        self._mistake_fraction = mistake_fraction
        self._problems = problems(held_out=False)

    def draw(self, num_pairs: int) -> list[tuple[str, str]]:
        """Pairs of prompt and completion."""
        return [self._pair() for _ in range(num_pairs)]

    def _pair(self) -> tuple[str, str]:
        problem = self._random.choice(self._problems)
        mistaken = self._random.random() < self._mistake_fraction
        return problem.prompt, self._near_miss(problem) if mistaken else self._random.choice(solutions(problem))

    def _near_miss(self, problem: CodeMiniProblem) -> str:
        others = neighbours(problem)
        for other in self._random.sample(others, len(others)):
            text = self._random.choice(solutions(other))
            if not verify(problem, text).correct:
                return text
        raise ValueError(f"expected a neighbour of {problem.prompt} with another value on a hidden list, found none")


RECIPE = Recipe(
    characters=CHARACTERS,
    max_positions=80,
    num_steps=400,
    mistake_fraction=0.55,
    source=ProgramSource,
    task=lambda base: Code(base=base),
)
