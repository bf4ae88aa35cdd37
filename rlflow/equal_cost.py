"""The second board: scores at the smallest training seconds that all algorithms of a task reached, on one hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlflow import stats
from rlflow.board import Board, Cell, SeedResult
from rlflow.ranking import MIN_SEEDS_FOR_INTERVAL, stream
from rlflow.stats import FloatArray, Interval

MIN_ALGORITHMS = 2


@dataclass(frozen=True, kw_only=True)
class CostColumn:
    """One task at equal seconds.

    Attributes:
        seconds: At which all are compared: the shortest finished seed of any algorithm lasted that long.
        device: `GPU` or `CPU`, whose seconds they are.
        hardware: Of all its runs.
        raw: Raw score of each seed at `seconds`, `[n]` per algorithm; a diverged seed has the untrained one.
        normalised: The same between the anchors.
    """

    seconds: float
    device: str
    hardware: str
    raw: Mapping[str, FloatArray]
    normalised: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True)
class EqualCost:
    """The second board.

    Attributes:
        columns: The tasks that can be compared.
        reasons: Why each of the other ones cannot.
        headlines: M at equal cost, best first, of the algorithms in all columns; empty where a column is missing.
        intervals: Its limits, of the algorithms that have two seeds on every task.
    """

    columns: Mapping[str, CostColumn]
    reasons: Mapping[str, str]
    headlines: Mapping[str, float]
    intervals: Mapping[str, Interval]


def equal_cost(board: Board) -> EqualCost:
    """Compare the complete cells of every task at equal seconds, where that is fair."""
    columns: dict[str, CostColumn] = {}
    reasons: dict[str, str] = {}
    for name in board.columns:
        cells = {e.algorithm: c for e in board.entrants if (c := e.cells.get(name)) is not None and c.complete}
        reason = _reason(cells)
        if reason:
            reasons[name] = reason
        else:
            columns[name] = _column(cells)
    headlines: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    if columns and not reasons:
        for algorithm in sorted(set.intersection(*(set(column.normalised) for column in columns.values()))):
            scores = {name: column.normalised[algorithm] for name, column in columns.items()}
            headlines[algorithm] = float(stats.headline(scores))
            if min(map(len, scores.values())) >= MIN_SEEDS_FOR_INTERVAL:
                generator = stream(board.digest, "equal cost", algorithm)
                intervals[algorithm] = stats.interval(scores, stats.headline, generator)
    ordered = sorted(headlines, key=lambda algorithm: (-headlines[algorithm], algorithm))
    return EqualCost(
        columns=columns,
        reasons=reasons,
        headlines={algorithm: headlines[algorithm] for algorithm in ordered},
        intervals=intervals,
    )


def _reason(cells: Mapping[str, Cell]) -> str:
    """Why the cells of a task cannot be compared by seconds; empty where they can."""
    if len(cells) < MIN_ALGORITHMS:
        return f"expected at least {MIN_ALGORITHMS} algorithms with all their seeds, found {len(cells)}"
    finished = {(name, seed.seed): seed for name, cell in cells.items() for seed in _finished(cell)}
    if not finished:
        return "no seed has finished"
    missing = [f"{name} seed {number}" for (name, number), seed in finished.items() if not _timed(seed)]
    if missing:
        return f"no training seconds recorded for {', '.join(missing)}"
    places: dict[str, set[str]] = {}
    for (name, _), seed in finished.items():
        places.setdefault(f"{seed.hardware or 'unknown'} ({_device(seed)} seconds)", set()).add(name)
    if len(places) > 1:
        found = "; ".join(f"{place}: {', '.join(sorted(names))}" for place, names in sorted(places.items()))
        return f"hardware differs: {found}"
    return ""


def _column(cells: Mapping[str, Cell]) -> CostColumn:
    finished = [seed for cell in cells.values() for seed in _finished(cell)]
    seconds = min(seed.seconds[-1] for seed in finished)
    raw = {name: np.array([_score_at(cell, seed, seconds) for seed in cell.seeds]) for name, cell in cells.items()}
    return CostColumn(
        seconds=seconds,
        device=_device(finished[0]),
        hardware=finished[0].hardware or "unknown",
        raw=raw,
        normalised={
            name: stats.normalised_score(scores, cells[name].anchor_base, cells[name].anchor_reference)
            for name, scores in raw.items()
        },
    )


def _score_at(cell: Cell, seed: SeedResult, seconds: float) -> float:
    if seed.outcome == "diverged":
        return cell.anchor_base
    return float(np.interp(seconds, seed.seconds, seed.scores))


def _finished(cell: Cell) -> list[SeedResult]:
    return [seed for seed in cell.seeds if seed.outcome == "finished"]


def _timed(seed: SeedResult) -> bool:
    return bool(seed.seconds) and seed.seconds[-1] > 0


def _device(seed: SeedResult) -> str:
    return "GPU" if seed.on_gpu else "CPU"
