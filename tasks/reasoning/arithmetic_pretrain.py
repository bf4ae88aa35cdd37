"""Make the shipped arithmetic base anew: supervised training on written plans, some of them mistaken on purpose.

`rlflow pretrain reasoning/arithmetic --out FOLDER` takes about six minutes of one core and prints the base's score. The
share of mistakes sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import random
import string
import time
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from tasks.reasoning.arithmetic import BASE_FOLDER, Arithmetic
from tasks.reasoning.arithmetic_problems import ITEMS, NAMES, TEMPLATES, ArithmeticProblem, instances
from tasks.reasoning.character_model import character_config, character_tokenizer, fresh_model
from tasks.reasoning.pretrain import measure, train, write_base

CHARACTERS = string.digits + "+-*/=;#>(), " + "ABET" + string.ascii_lowercase
MAX_POSITIONS = 128
MISTAKE_FRACTION = 0.6


def pretrain_arithmetic(out: Path = BASE_FOLDER, seed: int = 0) -> dict[str, float]:
    """Train a base from nothing, write it to `out` as a Hugging Face checkpoint, print and return its score.

    Args:
        out: Folder for config.json, model.safetensors and the tokenizer.
        seed: Sets initial weights and data order; the evaluation has its own seed.

    Returns:
        Metrics of the task's evaluation on the frozen set.
    """
    started = time.perf_counter()
    write_base(train_base(seed), arithmetic_tokenizer(), out)
    return measure(Arithmetic(base=str(out)), started)


def arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """Digits, signs and the letters of the stories."""
    return character_tokenizer(CHARACTERS)


def train_base(
    seed: int, num_steps: int = 1500, batch_size: int = 64, mistake_fraction: float = MISTAKE_FRACTION
) -> Qwen2ForCausalLM:
    """Supervised training of a new model; the same seed gives the same weights on the same machine.

    Args:
        seed: Sets initial weights and data order.
        num_steps: Optimiser steps; too few leave arithmetic errors.
        batch_size: Solutions a step.
        mistake_fraction: Share of solutions that follow a mistaken plan; more of them lower pass@1.
    """
    model = fresh_model(character_config(CHARACTERS, max_positions=MAX_POSITIONS), seed)
    source = PlanSource(seed, mistake_fraction)
    return train(model, arithmetic_tokenizer(), source, num_steps=num_steps, batch_size=batch_size)


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
