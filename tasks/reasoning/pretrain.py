"""Supervised training of a small base on pairs of prompt and completion, and how it is written and measured."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from rlflow.random import Noise
from rlflow.task import Task
from tasks.reasoning.character_model import EOS, PAD_ID, character_config, character_tokenizer, fresh_model

IGNORED_LABEL = -100


class PairSource(Protocol):
    """Where training pairs come from; keeps its own generator."""

    def draw(self, num_pairs: int) -> list[tuple[str, str]]:
        """Prompts with completions."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one shipped base is made: its symbols, its training pairs and the task that measures it.

    Attributes:
        characters: The alphabet.
        max_positions: Longest prompt with its completion.
        num_steps: Optimiser steps; too few leave slips that no plan meant.
        mistake_fraction: Share of pairs that are wrong on purpose; it sets pass@1, and so how much room reinforcement
            learning has.
        source: Training pairs of a seed and a mistake fraction.
        task: The task on a base at a path.
        model: Size of the network: further arguments of `character_config`.
    """

    characters: str
    max_positions: int
    num_steps: int
    mistake_fraction: float
    source: Callable[[int, float], PairSource]
    task: Callable[[str], Task]
    model: Mapping[str, int] = field(default_factory=dict)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token for each character."""
        return character_tokenizer(self.characters)

    def train(self, seed: int, batch_size: int = 64) -> Qwen2ForCausalLM:
        """A new model after supervised training; the same seed gives the same weights on the same machine."""
        config = character_config(self.characters, max_positions=self.max_positions, **self.model)
        source = self.source(seed, self.mistake_fraction)
        model = fresh_model(config, seed)
        return train(model, self.tokenizer(), source, num_steps=self.num_steps, batch_size=batch_size)

    def pretrain(self, out: Path, seed: int) -> dict[str, float]:
        """Train a base from nothing, write it to `out` as a Hugging Face checkpoint, print and return its score.

        Args:
            out: Folder for config.json, model.safetensors and the tokenizer.
            seed: Sets initial weights and data order; the evaluation has its own seed.

        Returns:
            Metrics of the task's evaluation on the frozen set.
        """
        started = time.perf_counter()
        write_base(self.train(seed), self.tokenizer(), out)
        return measure(self.task(str(out)), started)


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    source: PairSource,
    *,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
) -> Qwen2ForCausalLM:
    """Train `model` on the completions of `source`; the same model and source give the same weights on one machine.

    Args:
        model: Starts from its weights; changed in place.
        tokenizer: Of characters.
        source: Pairs.
        num_steps: Optimiser steps.
        batch_size: Pairs a step.
        learning_rate: Peak rate of Muon (matrices) and AdamW (the rest), after 50 steps, with a cosine to 0.
    """
    optimizers = _optimizers(model, learning_rate)
    for step in range(num_steps):
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = learning_rate * _schedule(step, num_steps)
        loss = _loss(model, *encode(tokenizer, source.draw(batch_size)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == num_steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)
    return model


def write_base(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Leave a Hugging Face checkpoint in `out`: configuration, weights, tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def measure(task: Task, started: float) -> dict[str, float]:
    """Evaluate a task on its frozen set with its untrained policy; prints pass@k and the seconds since `started`."""
    metrics = task.evaluate(task.build_policy(frozenset()), Noise(generator=torch.Generator())).metrics
    scores = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("pass_at_"))
    print(f"{scores}  {time.perf_counter() - started:.0f} s")
    return metrics


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
