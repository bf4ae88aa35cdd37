"""The board as text: a terminal table and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlflow import stats
from rlflow.board import Board, Cell
from rlflow.equal_cost import EqualCost, equal_cost
from rlflow.report_measures import (
    LEARNING,
    LEARNING_NAMES,
    MEASURE_NAMES,
    MEASURES,
    SPENT,
    SPENT_NAMES,
    learning_rows,
    measure_rows,
    spent_rows,
)
from rlflow.report_values import (
    ABSENT,
    GUARD_NAMES,
    PAIR_NAMES,
    budget_text,
    cost_names,
    cost_rows,
    count_text,
    division_text,
    duration_text,
    footnote_number,
    guard_rows,
    headline_text,
    mean_text,
    normalised_text,
    or_absent,
    pair_rows,
)

if TYPE_CHECKING:
    from rich.table import Table

METHOD = (
    "M is the mean over tasks of the mean over seeds of the normalised final score: 0 is the untrained policy, 1 the "
    "task's reference, not clipped. The final score is the mean of the last 10 % of the evaluations (at least three), "
    "never the best checkpoint. Brackets are 95 % expanded percentile limits of a bootstrap stratified by task "
    f"({stats.NUM_REPLICATES:,} replicates); one seed has none, five are the default, and that one entrant is better "
    "than another is a claim for ten. n/N counts the seeds with a result among those launched; a diverged seed counts "
    "as 0; an entrant that owes a seed or a task is shown but not ranked. Entrants of one tier are not shown to differ "
    "from its leader (exact stratified permutation test on M, Holm over all pairs, 5 %). Wall is training time without "
    "evaluation, all seeds together."
)
GUARDS = (
    "Held-out metrics that are no part of the reward and are not ranked: a score that rises while they fall is hacked."
)
EQUAL_COST = (
    "Score at the smallest training seconds that every finished seed of every complete algorithm of a task lasted, "
    "linear between two evaluations and without their time; on one kind of hardware only. A diverged seed counts as "
    "the untrained policy. Seconds are those of the machine with all that ran beside it."
)


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
    budgets = [[column, budget_text(board, column), division_text(board, column)] for column in board.columns]
    parts = [f"# Leaderboard {board.suite}", markdown_table(names, rows), *_remarks(board)]
    parts += ["## Budgets", markdown_table(["task", "samples of a run", "division"], budgets)]
    for title, about, heads, found in (
        ("Measures", MEASURES, MEASURE_NAMES, measure_rows(board)),
        ("Guards", GUARDS, GUARD_NAMES, guard_rows(board)),
        ("Pairs", "", PAIR_NAMES, pair_rows(board)),
        ("Learning", LEARNING, LEARNING_NAMES, learning_rows(board)),
        ("Cost of a run", SPENT, SPENT_NAMES, spent_rows(board)),
    ):
        parts += [text for text in (f"## {title}", about, markdown_table(heads, found)) if text] if found else []
    parts += ["## Equal cost", EQUAL_COST, *_equal_cost(equal_cost(board)), "## Method", METHOD]
    return "\n\n".join(parts) + "\n"


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


def _equal_cost(cost: EqualCost) -> list[str]:
    table = [markdown_table(cost_names(cost), cost_rows(cost))] if cost.columns else []
    return [*table, *(f"{column}: not compared, {reason}" for column, reason in cost.reasons.items())]


def _remarks(board: Board) -> list[str]:
    """Footnotes, warnings and origin, one a line."""
    lines = [f"({number}) {note}" for number, note in enumerate(board.footnotes, start=1)]
    lines += [f"Warning: {warning}" for warning in board.warnings]
    lines += [f"Runs: {'; '.join(board.provenance)}"] if board.provenance else []
    return lines


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join(lines)
