"""What stands behind the main table as rows of text: further measures, learning, cost; for Markdown and the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlflow import stats
from rlflow.board import Board, Cell
from rlflow.learning import learning_of
from rlflow.report_values import ABSENT, duration_text, fixed_text, limits_text, or_absent, with_error

MEASURES = (
    "Plain: percentile limits of M, too narrow for a few seeds. IQM: mean of the middle half of all runs. Optimality "
    "gap: mean shortfall from 1, nothing for more than 1. Ranks are over the bootstrap's replicates. IQM and gap have "
    "expanded limits."
)
MEASURE_NAMES = ("algorithm", "plain [95 %]", "IQM [95 %]", "optimality gap [95 %]", "mean rank", "P(first)")
LEARNING = (
    "Means over the finished seeds. Area: mean height of the curve over the budget. Drop: best evaluation minus final "
    "score, what a report of the best checkpoint would hide. Samples to a normalised score: mean over the seeds that "
    "reached it, their number where not all did."
)
LEARNING_NAMES = ("algorithm", "task", "area", "drop", *(f"samples to z = {level:g}" for level in stats.MILESTONES))
SPENT = (
    "Means over the finished seeds, measured and not equalised. Forwards are rows through the policy's network. "
    "Seconds and memory are those of the machine with all that ran beside it."
)
SPENT_NAMES = (
    *("algorithm", "task", "training", "on GPU", "optimiser steps", "forwards", "tokens", "environment steps"),
    "peak memory",
)
COUNTS = ("optimizer_steps", "policy_forwards", "tokens", "env_steps")


def measure_rows(board: Board) -> list[list[str]]:
    """Every measure over all tasks that is not in the main table or has limits; ranked entrants alone."""
    rows = []
    for entrant in board.ranked:
        limits = entrant.interval
        plain = f"[{fixed_text(limits.plain_low, 3)}, {fixed_text(limits.plain_high, 3)}]" if limits else ABSENT
        whole = (
            (entrant.interquartile_mean, entrant.interquartile_interval),
            (entrant.optimality_gap, entrant.gap_interval),
        )
        texts = [ABSENT if value is None else limits_text(value, found) for value, found in whole]
        ranks = [or_absent(entrant.mean_rank, ".2f"), or_absent(entrant.first_probability, ".2f")]
        rows.append([entrant.algorithm, plain, *texts, *ranks])
    return rows


def learning_rows(board: Board) -> list[list[str]]:
    """Area, drop and samples to the milestones of every cell that has a finished seed."""
    rows = []
    for algorithm, column, cell in _cells(board):
        found = [learned for seed in cell.seeds if (learned := learning_of(cell, seed)) is not None]
        if found:
            texts = [with_error(np.array(values)) for values in zip(*((f.area, f.drop) for f in found), strict=True)]
            reached = [_reached(samples) for samples in zip(*(f.reached for f in found), strict=True)]
            rows.append([algorithm, column, *texts, *reached])
    return rows


def spent_rows(board: Board) -> list[list[str]]:
    """What a finished run of every cell has spent beside its samples."""
    rows = []
    for algorithm, column, cell in _cells(board):
        costs = [seed.costs for seed in cell.seeds if seed.outcome == "finished"]
        mean = {name: float(np.mean([c[name] for c in costs])) for name in (costs[0] if costs else ())
                if all(name in c for c in costs)}  # fmt: skip
        if mean:
            seconds = [duration_text(mean[name]) if mean.get(name) else ABSENT for name in ("wall_s", "gpu_s")]
            counts = [f"{mean[name]:,.0f}" if mean.get(name) else ABSENT for name in COUNTS]
            memory = f"{mean['peak_gb']:.2f} GB" if "peak_gb" in mean else ABSENT
            rows.append([algorithm, column, *seconds, *counts, memory])
    return rows


def _cells(board: Board) -> list[tuple[str, str, Cell]]:
    return [(e.algorithm, column, cell) for e in board.entrants for column, cell in sorted(e.cells.items())]


def _reached(samples: Sequence[float | None]) -> str:
    found = [value for value in samples if value is not None]
    if not found:
        return ABSENT
    return f"{np.mean(found):,.0f}" + (f" ({len(found)}/{len(samples)})" if len(found) < len(samples) else "")
