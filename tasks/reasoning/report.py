"""From verified samples to the numbers, rows and tables of an evaluation."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlflow.random import derived_seed
from rlflow.stats import headline, interval
from rlflow.task import Answer, Evaluation, SampleWriter
from tasks.reasoning.solution_metrics import (
    distinct,
    distinct_n,
    majority_at_k,
    pass_at_k,
    rarefied_distinct,
    self_bleu,
    words,
)
from tasks.reasoning.verdict import Judged, Problem

PASS_AT = (1, 8, 32)
TABLE_SAMPLES_PER_PROMPT = 8
# Self-BLEU compares every completion with every other of its prompt.
BLEU_SAMPLES_PER_PROMPT = 8
NUM_REPLICATES = 2_000

Samples = Sequence[Judged]


@dataclass(frozen=True)
class CompletionsTable(SampleWriter):
    """A CSV of the first eight completions of every prompt with their verdicts."""

    asked: Sequence[Problem]
    samples: Sequence[Samples]

    def __call__(self, path: Path) -> None:
        """Write prompt, completion, verdict and canonical form."""
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["prompt", "completion", "verdict", "canonical"])
            for problem, answers in zip(self.asked, self.samples, strict=True):
                for completion, verdict in answers[:TABLE_SAMPLES_PER_PROMPT]:
                    row = [completion.text, verdict.failure or "correct", verdict.canonical or ""]
                    table.writerow([problem.prompt, *row])


@dataclass(frozen=True)
class SourcesTable(SampleWriter):
    """A CSV of one row per source of problems: its prompts and its mean scores."""

    rows: Sequence[dict[str, Any]]

    def __call__(self, path: Path) -> None:
        """Write the rows."""
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(self.rows[0]))
            table.writeheader()
            table.writerows(self.rows)


def evaluation(
    asked: Sequence[Problem], samples: Sequence[Samples], *, rarefied_size: int, failures: Sequence[str]
) -> Evaluation:
    """Metrics over the prompts, one row per prompt, and the completions table.

    `score` is pass@1, which is avg@k of the k samples. `distinct_*` count different correct answers per prompt, as
    strings and as canonical forms; `rarefied_*` do so at `rarefied_size` correct samples, over the
    `rarefied_prompts_fraction` of prompts that have them, and are absent where no prompt has.
    """
    items = [_item(problem, answers, rarefied_size) for problem, answers in zip(asked, samples, strict=True)]
    lengths = [completion.num_tokens for answers in samples for completion, _ in answers]
    metrics = {"score": _mean(items, "pass_at_1"), "completion_tokens": sum(lengths) / len(lengths)}
    for key in ("distinct_strings", "distinct_canonical", *(key for key in items[0] if key.startswith("pass_at_"))):
        metrics[key] = _mean(items, key)
    varied = [item for item in items if item["rarefied_strings"] is not None]
    metrics["rarefied_prompts_fraction"] = len(varied) / len(items)
    if varied:
        metrics |= {key: _mean(varied, key) for key in ("rarefied_strings", "rarefied_canonical")}
    found = [verdict.failure for answers in samples for _, verdict in answers]
    metrics |= {f"failure_{kind}": found.count(kind) / len(found) for kind in failures}
    return Evaluation(metrics=metrics, items=items, files={"completions.csv": CompletionsTable(asked, samples)})


def answer_metrics(result: Evaluation, asked: Sequence[Problem], samples: Sequence[Samples]) -> None:
    """Add to `result` what only final answers and free texts have; n is the number of samples of a prompt.

    `maj_at_n` and `score` get 95 % limits over prompts (`_low`, `_high`), absent for a single prompt; `score_SOURCE`
    appears where problems name more than one source, with `score_macro`, their mean, and the table sources.csv.
    """
    for item, problem, answers in zip(result.items, asked, samples, strict=True):
        item.update(_answer_item(problem, answers))
    num_samples = len(samples[0])
    majority = f"maj_at_{num_samples}"
    for key in [key for key in result.items[0] if key.startswith("maj_at_")]:
        result.metrics[key] = _mean(result.items, key)
    for key in ("distinct_answers", "distinct_1", "distinct_2", "self_bleu"):
        defined = [item for item in result.items if item[key] is not None]
        if defined:
            result.metrics[key] = _mean(defined, key)
    result.metrics[f"avg_at_{num_samples}"] = result.metrics["score"]
    for key, column in (("score", "pass_at_1"), (majority, majority)):
        result.metrics |= _limits(key, [item[column] for item in result.items])
    lengths = [completion.num_tokens for answers in samples for completion, _ in answers]
    result.metrics |= {"completion_tokens_max": float(max(lengths)), "completion_tokens_p90": _quantile(lengths, 0.9)}
    sources = _source_rows(result.items, majority)
    if len(sources) > 1:
        result.metrics |= {f"score_{row['source']}": row["score"] for row in sources}
        result.metrics["score_macro"] = float(np.mean([row["score"] for row in sources]))
        result.files = {**result.files, "sources.csv": SourcesTable(sources)}


def as_answers(asked: Sequence[Problem], samples: Sequence[Samples], reward: Callable[[Judged], float]) -> list[Answer]:
    """Every completion with what it earns in training; `expected` where problems name their answer."""
    return [
        Answer(
            inputs={"prompt": problem.prompt, "expected": getattr(problem, "gold", None)},
            outputs={"completion": completion.text},
            judged={
                "reward": reward((completion, verdict)),
                "correct": verdict.correct,
                "verdict": verdict.failure or "correct",
                "answer": verdict.answer,
                "tokens": completion.num_tokens,
                "finished": completion.finished,
            },
        )
        for problem, answers in zip(asked, samples, strict=True)
        for completion, verdict in answers
    ]


def _item(problem: Problem, answers: Samples, rarefied_size: int) -> dict[str, Any]:
    strings = [completion.text for completion, verdict in answers if verdict.correct]
    forms = [verdict.canonical or completion.text for completion, verdict in answers if verdict.correct]
    item: dict[str, Any] = {"prompt": problem.prompt, "samples": len(answers), "correct": len(strings)}
    item |= {f"pass_at_{k}": pass_at_k(len(answers), len(strings), k) for k in PASS_AT if k <= len(answers)}
    item |= {"distinct_strings": distinct(strings), "distinct_canonical": distinct(forms)}
    item["rarefied_strings"] = rarefied_distinct(strings, rarefied_size)
    item["rarefied_canonical"] = rarefied_distinct(forms, rarefied_size)
    return item


def _answer_item(problem: Problem, answers: Samples) -> dict[str, Any]:
    votes = [verdict.answer for _, verdict in answers]
    correct = [verdict.correct for _, verdict in answers]
    texts = [words(completion.text) for completion, _ in answers]
    sizes = sorted({k for k in PASS_AT[1:] if k < len(votes)} | {len(votes)})
    item: dict[str, Any] = {"source": getattr(problem, "source", "")}
    item |= {f"maj_at_{k}": majority_at_k(votes, correct, k) for k in sizes}
    item["distinct_answers"] = distinct([vote for vote in votes if vote is not None])
    item |= {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2)}
    item["self_bleu"] = self_bleu(texts[:BLEU_SAMPLES_PER_PROMPT])
    item["mean_tokens"] = float(np.mean([completion.num_tokens for completion, _ in answers]))
    return item


def _source_rows(items: Sequence[dict[str, Any]], majority: str) -> list[dict[str, Any]]:
    rows = []
    for source in sorted({item["source"] for item in items}):
        own = [item for item in items if item["source"] == source]
        means = {"score": _mean(own, "pass_at_1"), majority: _mean(own, majority)}
        rows.append({"source": source, "prompts": len(own), **means, "mean_tokens": _mean(own, "mean_tokens")})
    return rows


def _limits(key: str, values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    rng = np.random.default_rng(derived_seed(0, "evaluation limits"))
    found = interval({key: np.array(values)}, headline, rng, num_replicates=NUM_REPLICATES)
    return {f"{key}_low": found.low, f"{key}_high": found.high}


def _quantile(values: Sequence[int], q: float) -> float:
    return float(np.quantile(values, q))


def _mean(items: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([item[key] for item in items]))
