"""`rlflow leaderboard`: the board of a suite, read from MLflow alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlflow.commands.options import DEFAULT_BUDGET, DEFAULT_RESULTS, Results, TrackingUri


def leaderboard(
    suite: Annotated[str, typer.Argument(help="Registered suite, a suite file, or an experiment NAME@VERSION-BUDGET.")],
    budget: Annotated[str, typer.Option(help="Budget of the suite.")] = DEFAULT_BUDGET,
    out: Annotated[Path | None, typer.Option(help="Write Markdown, HTML, CSV and figures to this folder.")] = None,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Print the leaderboard of SUITE."""
    from rich.console import Console

    from rlflow.leaderboard import read_board
    from rlflow.report import write_board
    from rlflow.report_text import terminal_table
    from rlflow.store import open_store
    from rlflow.suite import load_suite

    experiment = suite
    if "@" not in suite:
        loaded = load_suite(suite)
        experiment = loaded.experiment(loaded.budget(budget).name)
    board = read_board(open_store(tracking_uri, results=results, create=False), experiment)
    console = Console(soft_wrap=True, highlight=False)
    console.print(terminal_table(board))
    if out is not None:
        for path in write_board(board, out):
            console.print(path, markup=False)
