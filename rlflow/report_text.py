"""The board as text: a terminal table, Markdown and CSV; every number that is shown comes from here."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlflow import stats
from rlflow.board import Board, Cell, Entrant

if TYPE_CHECKING:
    from rich.table import Table

METHOD = (
    "M is the mean over tasks of the mean over seeds of the normalised final score: 0 is the untrained policy, 1 the "
    "task's reference, not clipped. The final score is the mean of the last 10 % of the evaluations (at least three), "
    "never the best checkpoint. Brackets are 95 % expanded percentile limits of a bootstrap stratified by task "
    f"({stats.NUM_REPLICATES:,} replicates); one seed has none. n/N counts the seeds with a result among those "
    "launched; a diverged seed counts as 0; an entrant that owes a seed or a task is shown but not ranked. Entrants of "
    "one tier are not shown to differ from its leader (exact stratified permutation test on M, Holm over all pairs, "
    "5 %). Wall is training time without evaluation, all seeds together."
)
GUARDS = (
    "Held-out metrics that are no part of the reward and are not ranked: a score that rises while they fall is hacked."
)
ABSENT = "-"
GUARD_NAMES = ("algorithm", "task", "guard", "untrained", "last")
PAIR_NAMES = ("better", "worse", "difference of M", "P(better run wins)", "p", "p (Holm)")
ENTRANT_FIELDS = ("rank", "tier", "algorithm", "M", "M_low", "M_high", "M_plain_low", "M_plain_high", "iqm")
RANK_FIELDS = ("optimality_gap", "mean_rank", "p_first")
CELL_FIELDS = ("column", "policy", "task_version", "division", "cell_id", "budget", "n", "N", "diverged")
BOARD_NAMES = (*ENTRANT_FIELDS, *RANK_FIELDS, *CELL_FIELDS, "mean", "se", "normalised", "wall_s")
IMPROVEMENT_FIELDS = ("improvement", "improvement_low", "improvement_high")
PAIR_FIELDS = ("first", "second", "difference", *IMPROVEMENT_FIELDS, "p_value", "p_holm", "exact")


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
    if len(cell.raw) == 0:
        return ABSENT
    error = stats.standard_error(cell.raw)
    mean = float(cell.raw.mean())
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
    limits = entrant.interval
    bounds = f" [{fixed_text(limits.low, 3)}, {fixed_text(limits.high, 3)}]" if limits else ""
    return fixed_text(entrant.headline, 3) + bounds


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


def unit_text(cell: Cell) -> str:
    """What a sample is."""
    return cell.unit.replace("_", " ")


def terminal_table(board: Board) -> Table:
    """The board for a terminal, two lines a row: raw mean with error, then normalised score and n/N."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Text, because rich would take the [policy] of a column for a style.
    table = Table(
        title=f"Leaderboard {board.suite}",
        caption=Text("\n".join(_remarks(board))),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("#", "algorithm", "M [95 %]"):
        table.add_column(Text(name), no_wrap=True, justify="right" if name == "#" else "left")
    for column in board.columns:
        lines = column.replace("/", "/\n").replace(" [", "\n[")
        table.add_column(Text(lines), min_width=max(map(len, lines.splitlines())))
    table.add_column(Text("tier\nwall"), no_wrap=True, justify="right")
    for entrant in board.entrants:
        cells = [_terminal_cell(board, entrant.cells.get(column)) for column in board.columns]
        before = [or_absent(entrant.rank), entrant.algorithm, headline_text(entrant).replace(" [", "\n[")]
        after = [f"{or_absent(entrant.tier)}\n{duration_text(entrant.wall_s)}"]
        table.add_row(*map(Text, [*before, *cells, *after]))
    return table


def markdown(board: Board) -> str:
    """The board as Markdown, with footnotes, pairs and method."""
    names = ["#", "algorithm", "M [95 %]", *board.columns, "IQM", "P(first)", "tier", "wall"]
    rows = [
        [
            or_absent(entrant.rank),
            entrant.algorithm,
            headline_text(entrant),
            *(_markdown_cell(board, entrant.cells.get(column)) for column in board.columns),
            or_absent(entrant.interquartile_mean, ".3f"),
            or_absent(entrant.first_probability, ".2f"),
            or_absent(entrant.tier),
            duration_text(entrant.wall_s),
        ]
        for entrant in board.entrants
    ]
    budgets = [[column, budget_text(board, column)] for column in board.columns]
    parts = [f"# Leaderboard {board.suite}", _markdown_table(names, rows), *_remarks(board)]
    parts += ["## Budgets", _markdown_table(["task", "samples of a run"], budgets)]
    if guards := guard_rows(board):
        parts += ["## Guards", GUARDS, _markdown_table(GUARD_NAMES, guards)]
    if board.pairs:
        parts += ["## Pairs", _markdown_table(PAIR_NAMES, pair_rows(board))]
    parts += ["## Method", METHOD]
    return "\n\n".join(parts) + "\n"


def guard_rows(board: Board) -> list[list[str]]:
    """Guards of every cell as text: mean over its seeds before training, and at the last evaluation with its error."""
    rows = []
    for entrant in board.entrants:
        for column, cell in sorted(entrant.cells.items()):
            for name in dict.fromkeys(name for seed in cell.seeds for name in seed.guards):
                pairs = np.array([seed.guards[name] for seed in cell.seeds if name in seed.guards])
                first, last = pairs.mean(axis=0)
                error = stats.standard_error(pairs[:, 1])
                shown = score_text(last) + ("" if error is None else f" ± {score_text(error, last)}")
                rows.append([entrant.algorithm, column, name, score_text(first), shown])
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


def board_csv(board: Board) -> str:
    """One line per entrant and column, full precision."""
    lines: list[list[object]] = []
    for entrant in board.entrants:
        limits = entrant.interval
        bounds = (limits.low, limits.high, limits.plain_low, limits.plain_high) if limits else ("",) * 4
        whole = [entrant.rank, entrant.tier, entrant.algorithm, entrant.headline, *bounds, entrant.interquartile_mean]
        whole += [entrant.optimality_gap, entrant.mean_rank, entrant.first_probability]
        for column, cell in sorted(entrant.cells.items()):
            n = len(cell.raw)
            means = (cell.raw.mean() if n else "", stats.standard_error(cell.raw), cell.normalised.mean() if n else "")
            about = (cell.policy, cell.task_version, cell.division, cell.cell_id, cell.budget)
            lines.append([*whole, column, *about, n, len(cell.launched), cell.num_diverged, *means, cell.wall_s])
    return _csv(BOARD_NAMES, lines)


def pairs_csv(board: Board) -> str:
    """One line per pair of ranked entrants, full precision."""
    lines = []
    for pair in board.pairs:
        limits = pair.improvement_interval
        bounds = (limits.low, limits.high) if limits else ("", "")
        tests = (pair.p_value, pair.adjusted, pair.exact)
        lines.append([pair.first, pair.second, pair.difference, pair.improvement, *bounds, *tests])
    return _csv(PAIR_FIELDS, lines)


def seeds_csv(board: Board) -> str:
    """One line per seed that was started: final score, shape of its curve, outcome, MLflow run."""
    levels = [f"samples_to_{level:g}" for level in stats.MILESTONES]
    names = ["algorithm", "column", "policy", "seed", "outcome", "final", "normalised", "auc", *levels, "drop"]
    lines: list[list[object]] = []
    for entrant in board.entrants:
        for column, cell in sorted(entrant.cells.items()):
            for seed in cell.seeds:
                shape: list[object] = [""] * (2 + len(levels))
                if seed.outcome == "finished" and seed.final is not None:
                    z = stats.normalised_score(seed.scores, cell.anchor_base, cell.anchor_reference)
                    reached = [stats.samples_to_reach(seed.steps, z, level) for level in stats.MILESTONES]
                    area = stats.area_under_curve(seed.steps, seed.scores)
                    shape = [area, *reached, stats.drop(seed.scores, seed.final)]
                line = [entrant.algorithm, column, cell.policy, seed.seed, seed.outcome, seed.final, seed.normalised]
                lines.append([*line, *shape, seed.wall_s, seed.run_id, seed.detail])
    return _csv([*names, "wall_s", "run_id", "detail"], lines)


def _terminal_cell(board: Board, cell: Cell | None) -> str:
    if cell is None:
        return ABSENT
    number = footnote_number(board, cell)
    mark = f" ({number})" if number else ""
    return f"{mean_text(cell)}{mark}\nz {normalised_text(cell)}  {count_text(cell)}"


def _markdown_cell(board: Board, cell: Cell | None) -> str:
    if cell is None:
        return ABSENT
    number = footnote_number(board, cell)
    mark = f" ({number})" if number else ""
    return f"{mean_text(cell)}{mark}, z {normalised_text(cell)}, {count_text(cell)}"


def _remarks(board: Board) -> list[str]:
    """Footnotes, warnings and origin, one a line."""
    lines = [f"({number}) {note}" for number, note in enumerate(board.footnotes, start=1)]
    lines += [f"Warning: {warning}" for warning in board.warnings]
    lines += [f"Runs: {'; '.join(board.provenance)}"] if board.provenance else []
    return lines


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join(lines)


def _csv(names: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if value is None else value for value in line] for line in lines])
    return text.getvalue()


def or_absent(value: float | None, form: str = "") -> str:
    """A number in a format, or the sign of absence."""
    return ABSENT if value is None else format(value, form)
