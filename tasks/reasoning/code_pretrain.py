"""Make the shipped base of small programs anew: supervised training on right programs and, on purpose, near misses.

`rlflow pretrain reasoning/code --out FOLDER` takes two to three minutes of one core and prints the base's score. The
share of near misses sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from tasks.reasoning.character_model import character_config, character_tokenizer, fresh_model
from tasks.reasoning.code import BASE_FOLDER, Code
from tasks.reasoning.code_mini import CodeMiniProblem, verify
from tasks.reasoning.code_mini_data import neighbours, problems, solutions
from tasks.reasoning.pretrain import measure, train, write_base

# The letters of the prompts and of `for x in a if`, `sorted`, `sum`, `max`, `len`, with y for a second variable.
CHARACTERS = "0123456789+-*<>=%,:[]() adefilmnorstuvxy"
MAX_POSITIONS = 80
MISTAKE_FRACTION = 0.55


def pretrain_code(out: Path = BASE_FOLDER, seed: int = 0) -> dict[str, float]:
    """Train a base from nothing, write it to `out` as a Hugging Face checkpoint, print and return its score.

    Args:
        out: Folder for config.json, model.safetensors and the tokenizer.
        seed: Sets initial weights and data order; the evaluation has its own seed.

    Returns:
        Metrics of the task's evaluation on the frozen set.
    """
    started = time.perf_counter()
    write_base(train_base(seed), code_tokenizer(), out)
    return measure(Code(base=str(out)), started)


def code_tokenizer() -> PreTrainedTokenizerFast:
    """Digits, signs, brackets and sixteen letters."""
    return character_tokenizer(CHARACTERS)


def train_base(
    seed: int, num_steps: int = 400, batch_size: int = 64, mistake_fraction: float = MISTAKE_FRACTION
) -> Qwen2ForCausalLM:
    """Supervised training of a new model; the same seed gives the same weights on the same machine.

    Args:
        seed: Sets initial weights and data order.
        num_steps: Optimiser steps; too few leave programs that are no Python.
        batch_size: Programs a step.
        mistake_fraction: Share of programs that are a near miss; more of them lower pass@1.
    """
    model = fresh_model(character_config(CHARACTERS, max_positions=MAX_POSITIONS), seed)
    source = ProgramSource(seed, mistake_fraction)
    return train(model, code_tokenizer(), source, num_steps=num_steps, batch_size=batch_size)


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
