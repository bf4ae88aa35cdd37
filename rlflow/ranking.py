"""Cells in, ranked entrants out: a pure function of its arguments, with a random stream of its own per statistic."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from rlflow import stats
from rlflow.board import Board, Cell, Entrant, Pair
from rlflow.cell import SuitePlan
from rlflow.comparison import (
    Arrangements,
    holm,
    improvement_interval,
    permutation_test,
    probability_of_improvement,
    rank_distribution,
    tiers,
)
from rlflow.stats import FloatArray

MIN_SEEDS_FOR_INTERVAL = 2
MIN_DIVISIONS = 2


@dataclass(kw_only=True)
class _Draft:
    """Cells by column and algorithm, while the board is made."""

    columns: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    warnings: list[str] = field(default_factory=list)


def make_board(
    suite: str,
    digest: str,
    cells: Sequence[Cell],
    *,
    plan: SuitePlan | None = None,
    warnings: Iterable[str] = (),
    provenance: Iterable[str] = (),
) -> Board:
    """Rank the entrants of a suite.

    Args:
        suite: `name@version`.
        digest: Digest of the suite file: equal cells and digest give an equal board.
        cells: At most one per algorithm, task and policy.
        plan: What the suite set out to run; its algorithms and tasks appear even where nothing has run.
        warnings: From the reader.
        provenance: From the reader.
    """
    draft = _arrange(cells, plan)
    complete = {
        name: row
        for name, row in draft.cells.items()
        if set(row) == set(draft.columns) and all(cell.complete for cell in row.values())
    }
    entrants = {name: _score(name, row, digest) for name, row in complete.items()}
    pairs = _compare(entrants, digest)
    ranked = _rank(entrants, pairs, digest)
    rest = [
        Entrant(algorithm=name, cells=draft.cells[name], complete=False)
        for name in sorted(draft.cells)
        if name not in complete
    ]
    ordered = (*ranked, *rest)
    notes = [entrant.cells[column].note for entrant in ordered for column in draft.columns if column in entrant.cells]
    return Board(
        suite=suite,
        digest=digest,
        columns=draft.columns,
        entrants=ordered,
        pairs=pairs,
        footnotes=tuple(dict.fromkeys(note for note in notes if note)),
        warnings=(*warnings, *draft.warnings),
        provenance=tuple(provenance),
    )


def _arrange(cells: Sequence[Cell], plan: SuitePlan | None) -> _Draft:
    """Give every cell its column: the task, or task and policy where an algorithm has several policies on it."""
    policies: dict[tuple[str, str], set[str]] = {}
    for cell in cells:
        policies.setdefault((cell.algorithm, cell.task), set()).add(cell.policy)
    split = {task for (_, task), names in policies.items() if len(names) > 1}
    rows: dict[str, dict[str, Cell]] = {name: {} for name in (plan.algorithms if plan else ())}
    for cell in cells:
        column = f"{cell.task} [{cell.policy}]" if cell.task in split else cell.task
        row = rows.setdefault(cell.algorithm, {})
        if column in row:
            raise ValueError(f"expected one cell of {cell.algorithm} on {column}, found several; pass the valid one")
        row[column] = cell
    found = {column for row in rows.values() for column in row}
    planned = {task for task in (plan.tasks if plan else ()) if task not in split}
    draft = _Draft(columns=tuple(sorted(found | planned)), cells=rows)
    for column in draft.columns:
        kinds = {
            (c.task_version, c.anchor_base, c.anchor_reference, c.budget)
            for row in rows.values()
            if (c := row.get(column))
        }
        if len(kinds) > 1:
            draft.warnings.append(f"{column}: cells differ in task version, anchors or budget: {sorted(kinds)}")
    draft.warnings.extend(_divided(rows))
    return draft


def _divided(rows: dict[str, dict[str, Cell]]) -> list[str]:
    """Which entrants are in the open division, where others are in the closed one."""
    divisions = {name: {cell.division for cell in row.values()} for name, row in rows.items()}
    if len(set().union(*divisions.values())) < MIN_DIVISIONS:
        return []
    free = ", ".join(sorted(name for name, found in divisions.items() if "open" in found))
    return [f"open division, under conditions of their own: {free}; all others are in the closed one"]


def _score(name: str, row: dict[str, Cell], digest: str) -> Entrant:
    scores = {column: cell.normalised for column, cell in row.items()}
    enough = min(len(column) for column in scores.values()) >= MIN_SEEDS_FOR_INTERVAL
    whole, middle, gap = _limits(scores, stream(digest, "headline", name)) if enough else (None, None, None)
    return Entrant(
        algorithm=name,
        cells=row,
        complete=True,
        headline=float(stats.headline(scores)),
        interval=whole,
        interquartile_mean=float(stats.interquartile_mean(scores)),
        interquartile_interval=middle,
        optimality_gap=float(stats.optimality_gap(scores)),
        gap_interval=gap,
    )


def _limits(scores: stats.Scores, generator: np.random.Generator) -> list[stats.Interval]:
    """Intervals of M, interquartile mean and optimality gap from the same replicates."""
    tail, replicates = stats.expanded_tail(scores), stats.bootstrap(scores, generator)
    measures = (stats.headline, stats.interquartile_mean, stats.optimality_gap)
    return [stats.interval_from_replicates(float(of(scores)), of(replicates), tail) for of in measures]


def _compare(entrants: dict[str, Entrant], digest: str) -> tuple[Pair, ...]:
    names = sorted(entrants, key=lambda name: (-_headline(entrants[name]), name))
    arrangements = Arrangements(seed_of(digest, "arrangements"))
    drafts = []
    for first, second in combinations(names, 2):
        generator = stream(digest, "pair", first, second)
        a, b = entrants[first], entrants[second]
        test = permutation_test(a.scores, b.scores, arrangements)
        both = a.interval is not None and b.interval is not None
        interval = improvement_interval(a.scores, b.scores, generator) if both else None
        drafts.append((first, second, test, interval))
    adjusted = holm([test.p_value for _, _, test, _ in drafts])
    return tuple(
        Pair(
            first=first,
            second=second,
            difference=test.difference,
            improvement=probability_of_improvement(entrants[first].scores, entrants[second].scores),
            improvement_interval=interval,
            p_value=test.p_value,
            adjusted=p,
            exact=test.exact,
        )
        for (first, second, test, interval), p in zip(drafts, adjusted, strict=True)
    )


def _rank(entrants: dict[str, Entrant], pairs: Sequence[Pair], digest: str) -> list[Entrant]:
    estimates = {name: _headline(entrant) for name, entrant in entrants.items()}
    tier = tiers(estimates, {(pair.first, pair.second): pair.adjusted for pair in pairs})
    shares: dict[str, FloatArray] = {}
    if entrants and all(entrant.interval is not None for entrant in entrants.values()):
        replicates = {
            name: stats.headline(stats.bootstrap(entrant.scores, stream(digest, "headline", name)))
            for name, entrant in entrants.items()
        }
        shares = rank_distribution(replicates, stream(digest, "ranks"))
    ranked = []
    for rank, name in enumerate(sorted(estimates, key=lambda entry: (-estimates[entry], entry)), start=1):
        share = shares.get(name)
        ranked.append(
            replace(
                entrants[name],
                rank=rank,
                tier=tier[name],
                mean_rank=None if share is None else float(share @ np.arange(1, len(share) + 1)),
                first_probability=None if share is None else float(share[0]),
                rank_shares=() if share is None else tuple(share.tolist()),
            )
        )
    return ranked


def _headline(entrant: Entrant) -> float:
    assert entrant.headline is not None
    return entrant.headline


def stream(digest: str, *names: str) -> np.random.Generator:
    """Random numbers for each statistic of each entrant, so that adding an entrant changes no other one's limits."""
    return np.random.default_rng(seed_of(digest, *names))


def seed_of(digest: str, *names: str) -> int:
    """A seed from the suite's digest and the names of a statistic."""
    return int.from_bytes(hashlib.sha256("/".join((digest, *names)).encode()).digest()[:8], "big")
