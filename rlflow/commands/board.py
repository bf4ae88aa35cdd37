"""`rlflow leaderboard` and `rlflow report`: the board of a suite, read from MLflow alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.commands.options import DEFAULT_BUDGET, DEFAULT_RESULTS, Results, TrackingUri, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rlflow.board import Board
    from rlflow.differences import Difference

Suite = Annotated[str, typer.Argument(help="Registered suite, a suite file, or an experiment NAME@VERSION-BUDGET.")]
Budget = Annotated[str, typer.Option(help="Budget of the suite.")]
REGRESSION_EXIT_CODE = 1
MAX_MB = 20.0


def leaderboard(
    suite: Suite,
    budget: Budget = DEFAULT_BUDGET,
    out: Annotated[
        Path | None, typer.Option(help="Write Markdown, HTML, LaTeX, CSV and figures to this folder.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show task by task how B differs from A.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of a released board; exit code 1 where a cell is now worse or missing.")
    ] = None,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Print the leaderboard of SUITE."""
    from rich.console import Console

    from rlflow.leaderboard import read_board
    from rlflow.release import read_release
    from rlflow.report import write_board
    from rlflow.report_text import terminal_table
    from rlflow.store import open_store
    from rlflow.suite import experiment_of

    released = None if against is None else read_release(against)
    experiment = experiment_of(suite, budget)
    if released is not None and released.suite.partition("@")[0] != experiment.partition("@")[0]:
        raise UsageError(
            f"--against: expected a release of the suite of {experiment}, found one of {released.suite} in {against}"
        )
    board = read_board(open_store(tracking_uri, results=results, create=False), experiment)
    console = Console(soft_wrap=True, highlight=False)
    console.print(terminal_table(board))
    if out is not None:
        for path in write_board(board, out):
            console.print(path, markup=False)
    if compare is not None:
        _compare(console, board, *compare)
    if released is not None:
        from rlflow.differences import against as differences_from

        differences = differences_from(board, released)
        _print(console, f"{board.suite} against {against} ({released.suite})", ("released", "now"), differences)
        if any(found.failed for found in differences):
            raise typer.Exit(REGRESSION_EXIT_CODE)


def report(
    suite: Suite,
    budget: Budget = DEFAULT_BUDGET,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; RESULTS/reports/EXPERIMENT if not given.")
    ] = None,
    max_mb: Annotated[
        float, typer.Option(min=0, help="Samples that the page may hold; the others are named.")
    ] = MAX_MB,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write the board of SUITE with samples of every cell: one self-contained page, Markdown, LaTeX, CSV, figures."""
    from rich.console import Console

    from rlflow.leaderboard import read_board
    from rlflow.leaderboard_samples import read_gallery
    from rlflow.report import write_board
    from rlflow.store import open_store
    from rlflow.suite import experiment_of

    experiment = experiment_of(suite, budget)
    store = open_store(tracking_uri, results=results, create=False)
    board = read_board(store, experiment)
    gallery = read_gallery(store, board, max_mb)
    files = write_board(board, out or results / "reports" / experiment, gallery)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{files[1]} and {len(files) - 1} more files beside it", markup=False)
    if gallery.left_out:
        console.print(f"samples not shown: {len(gallery.left_out)}; the page names them", markup=False)


def _compare(console: Console, board: Board, first: str, second: str) -> None:
    from rlflow.differences import compare
    from rlflow.registry import did_you_mean

    if first == second:
        raise UsageError(f"--compare: expected two different algorithms, found {first!r} twice")
    known = [entrant.algorithm for entrant in board.entrants]
    for name in (first, second):
        if name not in known:
            raise UsageError(
                f"--compare: no algorithm {name!r} on {board.suite}, which has {known}{did_you_mean(name, known)}"
            )
    _print(console, f"{second} minus {first}, normalised scores", (first, second), compare(board, first, second))
    for pair in board.pairs:
        if {pair.first, pair.second} == {first, second}:
            console.print(
                f"over all tasks: {pair.first} is better by {pair.difference:.3f} of M, a run of it wins with "
                f"P = {pair.improvement:.2f}, p = {pair.p_value:.3g} ({pair.adjusted:.3g} with Holm over the board)"
            )


def _print(console: Console, title: str, sides: tuple[str, str], differences: Sequence[Difference]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from rlflow.differences import NAMES, rows

    table = Table(title=Text(title), box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("cell", min_width=20)
    for name in (*sides, *NAMES[:-1]):
        table.add_column(Text(name), no_wrap=True, justify="right")
    table.add_column(NAMES[-1])
    for row in rows(differences):
        table.add_row(*map(Text, row))
    console.print(table)
    verdicts = [found.verdict for found in differences]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    console.print(f"{len(differences)} cells: {', '.join(counts) or 'none to compare'}", markup=False)
