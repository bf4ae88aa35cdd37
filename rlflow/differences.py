"""Which cells differ beyond their error: two algorithms of a board, or a board and a released one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats

from rlflow.board import Board
from rlflow.comparison import SIGNIFICANCE, holm
from rlflow.release import Release
from rlflow.report_values import ABSENT, fixed_text
from rlflow.stats import FloatArray, difference_limits

WORSE, BETTER, ALIKE = "worse", "better", "not shown to differ"
MISSING = "missing"
NAMES = ("seeds", "change", "± 95 %", "p (Holm)", "verdict")
MIN_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A cell before and after, in normalised scores.

    Attributes:
        name: Of the cell.
        before: Scores of the seeds, `[n]`.
        after: Scores of the seeds, `[n']`.
        p_value: Welch's two-sided test of equal means; None where a side has fewer than two seeds.
        adjusted: Holm's p-value over all cells of the comparison.
        note: What a reader must know about this cell; ends its verdict.
        verdict: `worse`, `better`, `not shown to differ`, `missing`, or why there is none.
    """

    name: str
    before: FloatArray
    after: FloatArray
    p_value: float | None = None
    adjusted: float | None = None
    note: str = ""
    verdict: str = ""

    @property
    def change(self) -> float | None:
        """Mean after minus mean before."""
        return float(self.after.mean() - self.before.mean()) if len(self.before) and len(self.after) else None

    @property
    def margin(self) -> float | None:
        """Half of the width of Welch's 95 % limits of the change; None where a side has fewer than two seeds."""
        if min(len(self.before), len(self.after)) < MIN_SEEDS:
            return None
        change, low, _ = difference_limits(self.after, self.before, paired=False)
        return change - low

    @property
    def failed(self) -> bool:
        """Whether a check for regressions must not pass."""
        return self.verdict in (WORSE, MISSING)


def compare(board: Board, first: str, second: str) -> list[Difference]:
    """`second` minus `first` on every task that both have scores on."""
    cells = {entrant.algorithm: entrant.cells for entrant in board.entrants}
    return judged(
        Difference(name=column, before=cells[first][column].normalised, after=cells[second][column].normalised)
        for column in board.columns
        if column in cells[first] and column in cells[second]
    )


def against(board: Board, release: Release) -> list[Difference]:
    """The board minus the release, for every cell of the release; new cells of the board are no regressions."""
    cells = {(e.algorithm, column): cell for e in board.entrants for column, cell in e.cells.items()}
    found = []
    for (algorithm, column), old in release.cells.items():
        new = cells.get((algorithm, column))
        after = np.zeros(0) if new is None else new.normalised
        note = ""
        if new is not None and old.cell_id and new.cell_id != old.cell_id:
            note = "configuration changed"
        if new is not None and not new.complete:
            note = f"{note}, " * bool(note) + f"{len(new.raw)}/{len(new.launched)} seeds"
        found.append(Difference(name=f"{algorithm} on {column}", before=old.normalised, after=after, note=note))
        if new is not None and old.task_version and new.task_version != old.task_version:
            versions = f"version {old.task_version} then, {new.task_version} now"
            found[-1] = replace(found[-1], verdict=f"not comparable: {versions}")
    return judged(found)


def judged(differences: Iterable[Difference]) -> list[Difference]:
    """The differences with their verdicts, Holm over those that can be tested; a given verdict stands."""
    tested = [difference if difference.verdict else _tested(difference) for difference in differences]
    chosen = [index for index, difference in enumerate(tested) if difference.p_value is not None]
    adjusted = holm([p for difference in tested if (p := difference.p_value) is not None])
    for index, p in zip(chosen, adjusted, strict=True):
        change = tested[index].change or 0.0
        verdict = ALIKE if p >= SIGNIFICANCE else BETTER if change > 0 else WORSE
        tested[index] = replace(tested[index], adjusted=p, verdict=verdict)
    return tested


def rows(differences: Iterable[Difference]) -> list[list[str]]:
    """Cells of a table: name, mean of both sides, and `NAMES`."""
    return [
        [
            found.name,
            _mean(found.before),
            _mean(found.after),
            f"{len(found.before)}, {len(found.after)}",
            ABSENT if found.change is None else fixed_text(found.change, 3),
            ABSENT if found.margin is None else fixed_text(found.margin, 3),
            ABSENT if found.adjusted is None else f"{found.adjusted:.3g}",
            found.verdict + (f" ({found.note})" if found.note else ""),
        ]
        for found in differences
    ]


def _tested(found: Difference) -> Difference:
    if not len(found.before):
        return replace(found, verdict="no scores before")
    if not len(found.after):
        return replace(found, verdict=MISSING)
    if found.margin is None:
        return replace(found, verdict="no error with one seed")
    if found.margin == 0.0:
        return replace(found, p_value=1.0 if found.change == 0.0 else 0.0)
    p_value = float(scipy.stats.ttest_ind(found.after, found.before, equal_var=False).pvalue)
    return replace(found, p_value=p_value)


def _mean(scores: FloatArray) -> str:
    return fixed_text(float(scores.mean()), 3) if len(scores) else ABSENT
