"""Make the shipped arithmetic base anew: supervised training on written plans, some of them mistaken on purpose.

`rlflow pretrain reasoning/arithmetic --out FOLDER` takes about six minutes of one core and prints the base's score. The
share of mistakes sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import random
import string

from tasks.reasoning.arithmetic import Arithmetic
from tasks.reasoning.arithmetic_problems import ITEMS, NAMES, TEMPLATES, ArithmeticProblem, instances
from tasks.reasoning.pretrain import Recipe

CHARACTERS = string.digits + "+-*/=;#>(), " + "ABET" + string.ascii_lowercase


class PlanSource:
    """Training problems with the plan that solves them or, for some, a mistake; the arithmetic is always true."""

    def __init__(self, seed: int, mistake_fraction: float) -> None:
        """Draw from a generator of this seed."""
        self._random = random.Random(seed)
        self._mistake_fraction = mistake_fraction

    def draw(self, num_pairs: int) -> list[tuple[str, str]]:
        """Pairs of prompt and completion."""
        return [self._pair() for _ in range(num_pairs)]

    def _pair(self) -> tuple[str, str]:
        index = self._random.randrange(len(TEMPLATES))
        numbers = self._random.choice(instances(held_out=False)[index])
        problem = ArithmeticProblem(index, numbers, self._random.randrange(len(NAMES) * len(ITEMS)))
        template = TEMPLATES[index]
        mistaken = self._random.random() < self._mistake_fraction
        plan = self._random.choice(template.mistakes) if mistaken else template.plan
        return problem.prompt, plan.write(problem.named)


RECIPE = Recipe(
    characters=CHARACTERS,
    max_positions=128,
    num_steps=1500,
    mistake_fraction=0.6,
    source=PlanSource,
    task=lambda base: Arithmetic(base=base),
)
