"""`rlflow claims`: what papers say, judged by the recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.commands.options import DEFAULT_RESULTS, Results, TrackingUri

if TYPE_CHECKING:
    from rich.table import Table

    from rlflow.claims_evidence import Evidence

COLOURS = {"replicated": "green", "not replicated": "bold red", "undecided": "yellow"}


def claims(
    file: Annotated[str, typer.Argument(help="A shipped claims file, or a path to a .yaml.")] = "papers",
    out: Annotated[Path | None, typer.Option(help="Folder of the page; RESULTS/claims/NAME if not given.")] = None,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Judge the claims of FILE by the recorded runs: replicated, not replicated or undecided, with their numbers."""
    from rich.console import Console

    from rlflow.claims import load_claims
    from rlflow.claims_evidence import read_evidence
    from rlflow.claims_page import claims_csv, claims_html, claims_markdown, summary
    from rlflow.report import write_files
    from rlflow.store import open_store

    loaded = load_claims(file)
    evidence = read_evidence(open_store(tracking_uri, results=results, create=False), loaded)
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(evidence))
    console.print(summary(evidence), markup=False)
    pages = {"claims.md": claims_markdown(evidence), "claims.html": claims_html(evidence)}
    texts = {**pages, "claims.csv": claims_csv(evidence)}
    folder = out or results / "claims" / loaded.name
    files = write_files(folder, {name: text.encode() for name, text in texts.items()})
    console.print(f"{files[0]} and {len(files) - 1} more files beside it", markup=False)


def _table(evidence: Evidence) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("claim", "verdict", "tests"):
        table.add_column(name, overflow="fold")
    for judged in evidence.judged:
        lines = [
            f"{found.verdict}: {test.says}" + (f" ({found.reason})" if found.reason else "")
            for test, found in zip(judged.claim.tests, judged.findings, strict=True)
        ]
        verdict = Text(judged.verdict, style=COLOURS[judged.verdict])
        table.add_row(Text(judged.claim.id), verdict, Text("\n".join(lines)))
    return table
