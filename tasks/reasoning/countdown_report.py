"""From verified samples to the numbers, rows and tables of an evaluation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlflow.task import Evaluation, SampleWriter
from tasks.reasoning.countdown_puzzle import FAILURES, Puzzle, Verdict
from tasks.reasoning.solution_metrics import distinct, pass_at_k, rarefied_distinct

PASS_AT = (1, 8, 32)
TABLE_SAMPLES_PER_PROMPT = 8

Samples = Sequence[tuple[str, Verdict]]


@dataclass(frozen=True)
class CompletionsTable(SampleWriter):
    """A CSV of the first eight completions of every prompt with their verdicts."""

    asked: Sequence[Puzzle]
    samples: Sequence[Samples]

    def __call__(self, path: Path) -> None:
        """Write prompt, completion, verdict and canonical form."""
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["prompt", "completion", "verdict", "canonical"])
            for puzzle, answers in zip(self.asked, self.samples, strict=True):
                for text, verdict in answers[:TABLE_SAMPLES_PER_PROMPT]:
                    table.writerow([puzzle.prompt, text, verdict.failure or "correct", verdict.canonical or ""])


def evaluation(
    asked: Sequence[Puzzle], samples: Sequence[Samples], rarefied_size: int, completion_tokens: float
) -> Evaluation:
    """Metrics over the prompts, one row per prompt, and the completions table.

    `score` is pass@1. `distinct_*` count different correct answers per prompt, as strings and up to commuting operands;
    `rarefied_*` do so at `rarefied_size` correct samples, over the `rarefied_prompts_fraction` of prompts that have
    them, and are absent where no prompt has.
    """
    items = [_item(puzzle, answers, rarefied_size) for puzzle, answers in zip(asked, samples, strict=True)]
    metrics = {"score": _mean(items, "pass_at_1"), "completion_tokens": completion_tokens}
    for key in ("distinct_strings", "distinct_canonical", *(key for key in items[0] if key.startswith("pass_at_"))):
        metrics[key] = _mean(items, key)
    varied = [item for item in items if item["rarefied_strings"] is not None]
    metrics["rarefied_prompts_fraction"] = len(varied) / len(items)
    if varied:
        metrics |= {key: _mean(varied, key) for key in ("rarefied_strings", "rarefied_canonical")}
    failures = [verdict.failure for answers in samples for _, verdict in answers]
    metrics |= {f"failure_{kind}": failures.count(kind) / len(failures) for kind in FAILURES}
    return Evaluation(metrics=metrics, items=items, files={"completions.csv": CompletionsTable(asked, samples)})


def _item(puzzle: Puzzle, answers: Samples, rarefied_size: int) -> dict[str, Any]:
    strings = [text for text, verdict in answers if verdict.correct]
    forms = [verdict.canonical for _, verdict in answers if verdict.canonical is not None]
    item: dict[str, Any] = {"prompt": puzzle.prompt, "samples": len(answers), "correct": len(strings)}
    item |= {f"pass_at_{k}": pass_at_k(len(answers), len(strings), k) for k in PASS_AT if k <= len(answers)}
    item |= {"distinct_strings": distinct(strings), "distinct_canonical": distinct(forms)}
    item["rarefied_strings"] = rarefied_distinct(strings, rarefied_size)
    item["rarefied_canonical"] = rarefied_distinct(forms, rarefied_size)
    return item


def _mean(items: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([item[key] for item in items]))
