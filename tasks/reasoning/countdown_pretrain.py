"""Make the shipped countdown base anew: supervised training on enumerated chains, some of them aimed wrong on purpose.

`rlflow pretrain reasoning/countdown --out FOLDER` takes about three minutes of one core and prints the base's score.
The share of wrong chains sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from tasks.reasoning.character_model import character_config, character_tokenizer, fresh_model
from tasks.reasoning.countdown import BASE_FOLDER, Countdown
from tasks.reasoning.countdown_data import ORDERS, chain_digits, chain_table, puzzles, reorder
from tasks.reasoning.countdown_puzzle import MAX_TARGET, MIN_TARGET, write
from tasks.reasoning.pretrain import measure, train, write_base

CHARACTERS = "0123456789+-*=,;:>"
WRONG_FRACTION = 0.25


def pretrain_countdown(out: Path = BASE_FOLDER, seed: int = 0) -> dict[str, float]:
    """Train a base from nothing, write it to `out` as a Hugging Face checkpoint, print and return its score.

    Args:
        out: Folder for config.json, model.safetensors and the tokenizer.
        seed: Sets initial weights and data order; the evaluation has its own seed.

    Returns:
        Metrics of the task's evaluation on the frozen set.
    """
    started = time.perf_counter()
    write_base(train_base(seed), countdown_tokenizer(), out)
    return measure(Countdown(base=str(out)), started)


def countdown_tokenizer() -> PreTrainedTokenizerFast:
    """22 symbols."""
    return character_tokenizer(CHARACTERS)


def train_base(
    seed: int, num_steps: int = 1006, batch_size: int = 64, wrong_fraction: float = WRONG_FRACTION
) -> Qwen2ForCausalLM:
    """Supervised training of a new model; the same seed gives the same weights on the same machine.

    Args:
        seed: Sets initial weights and data order.
        num_steps: Optimiser steps; fewer than about 800 leave arithmetic errors.
        batch_size: Chains a step.
        wrong_fraction: Share of chains that solve another target of the pool; more of them lower pass@1.
    """
    chains = ChainSource(seed, wrong_fraction)
    model = fresh_model(character_config(CHARACTERS), seed)
    return train(model, countdown_tokenizer(), chains, num_steps=num_steps, batch_size=batch_size)


class ChainSource:
    """Prompts of the training pools with a chain that solves them, or, for some, another target of the same pool."""

    def __init__(self, seed: int, wrong_fraction: float) -> None:
        """Index the chains of every pool by their last result."""
        self._random = random.Random(seed)
        self._wrong_fraction = wrong_fraction
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
        if self._random.random() < self._wrong_fraction:
            aim = self._random.choice(
                [t for t in range(MIN_TARGET, MAX_TARGET + 1) if t != puzzle.target and len(self._solving[row, t])]
            )
        chain = self._random.choice(self._solving[row, aim])
        asked = reorder(puzzle, self._random.choice(ORDERS))
        return asked.prompt, write(asked, *chain_digits(row, int(chain)))
