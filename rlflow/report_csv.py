"""The board as CSV in full precision: entrants by column, pairs, seeds, scores at equal seconds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rlflow import stats
from rlflow.board import Board
from rlflow.equal_cost import EqualCost
from rlflow.leaderboard_runs import COSTS
from rlflow.learning import learning_of

ENTRANT_FIELDS = ("rank", "tier", "algorithm", "M", "M_low", "M_high", "M_plain_low", "M_plain_high", "iqm")
RANK_FIELDS = ("optimality_gap", "mean_rank", "p_first", "iqm_low", "iqm_high", "gap_low", "gap_high")
CELL_FIELDS = ("column", "policy", "task_version", "division", "cell_id", "budget", "n", "N", "diverged")
BOARD_NAMES = (*ENTRANT_FIELDS, *RANK_FIELDS, *CELL_FIELDS, "mean", "se", "normalised", "wall_s")
IMPROVEMENT_FIELDS = ("improvement", "improvement_low", "improvement_high")
PAIR_FIELDS = ("first", "second", "difference", *IMPROVEMENT_FIELDS, "p_value", "p_holm", "exact")
SPENT = tuple(name for name in COSTS if name != "wall_s")
COST_FIELDS = ("algorithm", "M", "M_low", "M_high", "column", "seconds", "device", "hardware")
COST_NAMES = (*COST_FIELDS, "n", "mean", "se", "normalised", "reason")


def board_csv(board: Board) -> str:
    """One line per entrant and column, full precision."""
    lines: list[list[object]] = []
    for entrant in board.entrants:
        limits = entrant.interval
        bounds = (limits.low, limits.high, limits.plain_low, limits.plain_high) if limits else ("",) * 4
        whole = [entrant.rank, entrant.tier, entrant.algorithm, entrant.headline, *bounds, entrant.interquartile_mean]
        whole += [entrant.optimality_gap, entrant.mean_rank, entrant.first_probability]
        for found in (entrant.interquartile_interval, entrant.gap_interval):
            whole += [found.low, found.high] if found else ["", ""]
        for column, cell in sorted(entrant.cells.items()):
            n = len(cell.raw)
            means = (cell.raw.mean() if n else "", stats.standard_error(cell.raw), cell.normalised.mean() if n else "")
            about = (cell.policy, cell.task_version, cell.division, cell.cell_id, cell.budget)
            lines.append([*whole, column, *about, n, len(cell.launched), cell.num_diverged, *means, cell.wall_s])
    return csv_text(BOARD_NAMES, lines)


def pairs_csv(board: Board) -> str:
    """One line per pair of ranked entrants, full precision."""
    lines = []
    for pair in board.pairs:
        limits = pair.improvement_interval
        bounds = (limits.low, limits.high) if limits else ("", "")
        tests = (pair.p_value, pair.adjusted, pair.exact)
        lines.append([pair.first, pair.second, pair.difference, pair.improvement, *bounds, *tests])
    return csv_text(PAIR_FIELDS, lines)


def seeds_csv(board: Board) -> str:
    """One line per seed that was started: final score, shape of its curve, outcome, cost, MLflow run."""
    levels = [f"samples_to_{level:g}" for level in stats.MILESTONES]
    names = ["algorithm", "column", "policy", "seed", "outcome", "final", "normalised", "auc", *levels, "drop"]
    lines: list[list[object]] = []
    for entrant in board.entrants:
        for column, cell in sorted(entrant.cells.items()):
            for seed in cell.seeds:
                found = learning_of(cell, seed)
                shape = [found.area, *found.reached, found.drop] if found else [""] * (2 + len(levels))
                line = [entrant.algorithm, column, cell.policy, seed.seed, seed.outcome, seed.final, seed.normalised]
                spent = [seed.costs.get(name) for name in SPENT]
                lines.append([*line, *shape, seed.wall_s, *spent, seed.run_id, seed.detail])
    return csv_text([*names, "wall_s", *SPENT, "run_id", "detail"], lines)


def equal_cost_csv(cost: EqualCost) -> str:
    """One line per task and algorithm that it compares; a task that cannot be compared has one line, its reason."""
    lines: list[list[object]] = []
    for column, found in cost.columns.items():
        for algorithm, raw in sorted(found.raw.items()):
            limits = cost.intervals.get(algorithm)
            bounds = (limits.low, limits.high) if limits else ("", "")
            place = (column, found.seconds, found.device, found.hardware)
            means = (raw.mean(), stats.standard_error(raw), found.normalised[algorithm].mean(), "")
            lines.append([algorithm, cost.headlines.get(algorithm), *bounds, *place, len(raw), *means])
    for column, reason in cost.reasons.items():
        lines.append(["", "", "", "", column, *([""] * (len(COST_NAMES) - len(COST_FIELDS) + 2)), reason])
    return csv_text(COST_NAMES, lines)


def csv_text(names: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table as CSV; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if value is None else value for value in line] for line in lines])
    return text.getvalue()
