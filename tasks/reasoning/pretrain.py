"""Make the shipped countdown base anew: supervised training on enumerated chains, some of them aimed wrong on purpose.

`rlflow pretrain reasoning/countdown --out FOLDER` takes about three minutes of one core and prints the base's score.
The share of wrong chains sets pass@1, and so how much room reinforcement learning has.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from rlflow.random import Noise
from tasks.reasoning.countdown import Countdown
from tasks.reasoning.countdown_data import ORDERS, chain_digits, chain_table, puzzles, reorder
from tasks.reasoning.countdown_model import (
    BASE_FOLDER,
    EOS,
    PAD_ID,
    countdown_config,
    countdown_model,
    countdown_tokenizer,
)
from tasks.reasoning.countdown_puzzle import MAX_TARGET, MIN_TARGET, write

IGNORED_LABEL = -100
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
    model = train_base(seed)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    countdown_tokenizer().save_pretrained(out)
    task = Countdown(base=str(out))
    metrics = task.evaluate(task.build_policy(frozenset()), Noise(generator=torch.Generator())).metrics
    scores = "  ".join(f"{name} {metrics[name]:.4f}" for name in ("pass_at_1", "pass_at_8", "pass_at_32"))
    print(f"{scores}  {time.perf_counter() - started:.0f} s")
    return metrics


def train_base(
    seed: int,
    num_steps: int = 1006,
    batch_size: int = 64,
    wrong_fraction: float = WRONG_FRACTION,
    learning_rate: float = 3e-3,
) -> Qwen2ForCausalLM:
    """Supervised training of a new model; the same seed gives the same weights on the same machine.

    Args:
        seed: Sets initial weights and data order.
        num_steps: Optimiser steps; fewer than about 800 leave arithmetic errors.
        batch_size: Chains a step.
        wrong_fraction: Share of chains that solve another target of the pool; more of them lower pass@1.
        learning_rate: Peak rate of Muon (matrices) and AdamW (the rest).
    """
    tokenizer, chains = countdown_tokenizer(), ChainSource(seed, wrong_fraction)
    model = countdown_model(countdown_config(), seed)
    optimizers = _optimizers(model, learning_rate)
    for step in range(num_steps):
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = learning_rate * _schedule(step, num_steps)
        loss = _loss(model, *encode(tokenizer, chains.draw(batch_size)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == num_steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Tokens `[B, T]` of prompts with their completions and an end of sequence, and labels on the completions only."""
    rows = [tokenizer(prompt + completion + EOS)["input_ids"] for prompt, completion in pairs]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])  # [B, T]
    prompt_length = torch.tensor([1 + len(prompt) for prompt, _ in pairs])
    position = torch.arange(width)
    length = torch.tensor(list(map(len, rows)))
    trained = (position >= prompt_length[:, None]) & (position < length[:, None])
    return tokens, torch.where(trained, tokens, IGNORED_LABEL)


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

    def draw(self, num_chains: int) -> list[tuple[str, str]]:
        """Pairs of prompt and completion."""
        return [self._pair() for _ in range(num_chains)]

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


def _optimizers(model: Qwen2ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _schedule(step: int, num_steps: int) -> float:
    warm_up = min(50, num_steps)
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def _loss(model: Qwen2ForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits  # [B, T, V]; right padding never reaches earlier tokens
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL)
