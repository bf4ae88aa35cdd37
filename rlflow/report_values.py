"""Every number of the board as text, the same in the terminal, in Markdown, LaTeX and HTML."""

from __future__ import annotations

import numpy as np

from rlflow import stats
from rlflow.board import Board, Cell, Entrant
from rlflow.equal_cost import EqualCost
from rlflow.stats import FloatArray, Interval

ABSENT = "-"
GUARD_NAMES = ("algorithm", "task", "guard", "untrained", "last")
PAIR_NAMES = ("better", "worse", "difference of M", "P(better run wins)", "p", "p (Holm)")


def score_text(value: float, scale: float | None = None) -> str:
    """A raw score with about three significant digits, or with as many decimals as `scale` has."""
    size = abs(value if scale is None else scale)
    return fixed_text(value, 0 if size >= 100 else 1 if size >= 10 else 3)


def fixed_text(value: float, digits: int) -> str:
    """A number with fixed decimals, never minus zero."""
    text = f"{value:.{digits}f}"
    return text if float(text) else text.removeprefix("-")


def mean_text(cell: Cell) -> str:
    """Raw mean and standard error over seeds; the error is absent for one seed."""
    return with_error(cell.raw) if len(cell.raw) else ABSENT


def with_error(values: FloatArray) -> str:
    """Mean and standard error of `[n]` values; the error is absent for one."""
    error = stats.standard_error(values)
    mean = float(values.mean())
    return score_text(mean) + ("" if error is None else f" ± {score_text(error, mean)}")


def normalised_text(cell: Cell) -> str:
    """Mean normalised score."""
    return ABSENT if len(cell.normalised) == 0 else fixed_text(float(cell.normalised.mean()), 2)


def count_text(cell: Cell) -> str:
    """`n/N`, with the diverged seeds named."""
    lost = f", {cell.num_diverged} diverged" if cell.num_diverged else ""
    return f"{len(cell.raw)}/{len(cell.launched)}{lost}"


def headline_text(entrant: Entrant) -> str:
    """M with its limits."""
    if entrant.headline is None:
        return "incomplete"
    return limits_text(entrant.headline, entrant.interval)


def limits_text(value: float, limits: Interval | None) -> str:
    """A value with its limits, where it has any."""
    bounds = f" [{fixed_text(limits.low, 3)}, {fixed_text(limits.high, 3)}]" if limits else ""
    return fixed_text(value, 3) + bounds


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def footnote_number(board: Board, cell: Cell) -> int | None:
    """Number of the cell's footnote, from 1."""
    return board.footnotes.index(cell.note) + 1 if cell.note in board.footnotes else None


def budget_text(board: Board, column: str) -> str:
    """Budget of the column in samples, e.g. `20,480 rollouts`."""
    cells = [entrant.cells[column] for entrant in board.entrants if column in entrant.cells]
    return " / ".join(sorted({f"{cell.budget:,} {unit_text(cell)}" for cell in cells})) or ABSENT


def division_text(board: Board, column: str) -> str:
    """Under whose conditions the cells of a column were trained."""
    cells = [entrant.cells[column] for entrant in board.entrants if column in entrant.cells]
    return " / ".join(sorted({cell.division for cell in cells})) or ABSENT


def unit_text(cell: Cell) -> str:
    """What a sample is."""
    return cell.unit.replace("_", " ")


def guard_rows(board: Board) -> list[list[str]]:
    """Guards of every cell as text: mean over its seeds before training, and at the last evaluation with its error."""
    rows = []
    for entrant in board.entrants:
        for column, cell in sorted(entrant.cells.items()):
            for name in dict.fromkeys(name for seed in cell.seeds for name in seed.guards):
                pairs = np.array([seed.guards[name] for seed in cell.seeds if name in seed.guards])
                rows.append([entrant.algorithm, column, name, score_text(pairs[:, 0].mean()), with_error(pairs[:, 1])])
    return rows


def pair_rows(board: Board) -> list[list[str]]:
    """The pairwise comparisons as text."""
    rows = []
    for pair in board.pairs:
        limits = pair.improvement_interval
        chance = f"{pair.improvement:.2f}" + (f" [{limits.low:.2f}, {limits.high:.2f}]" if limits else "")
        sampled = "" if pair.exact else " (sampled)"
        p_values = (f"{pair.p_value:.3g}{sampled}", f"{pair.adjusted:.3g}")
        rows.append([pair.first, pair.second, f"{pair.difference:.3f}", chance, *p_values])
    return rows


def cost_names(cost: EqualCost) -> list[str]:
    """Headings of the second board: each task with the seconds at which it is compared."""
    places = [f"{name} at {found.device} {duration_text(found.seconds)}" for name, found in cost.columns.items()]
    return ["algorithm", "M [95 %]", *places]


def cost_rows(cost: EqualCost) -> list[list[str]]:
    """The second board as text: best first where there is an M, else by name."""
    names = {name for found in cost.columns.values() for name in found.raw}
    rows = []
    for algorithm in [*cost.headlines, *sorted(names - set(cost.headlines))]:
        headline = cost.headlines.get(algorithm)
        whole = ABSENT if headline is None else limits_text(headline, cost.intervals.get(algorithm))
        cells = [
            f"{with_error(found.raw[algorithm])}, z {fixed_text(float(found.normalised[algorithm].mean()), 2)}"
            if algorithm in found.raw
            else ABSENT
            for found in cost.columns.values()
        ]
        rows.append([algorithm, whole, *cells])
    return rows


def or_absent(value: float | None, form: str = "") -> str:
    """A number in a format, or the sign of absence."""
    return ABSENT if value is None else format(value, form)
