"""`rlflow check`: the public conformance checks on a registered algorithm or task."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.commands.options import Overrides, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rlflow.conformance import Finding

COLOURS = {"pass": "green", "fail": "bold red", "not checked": "yellow"}


class Kind(StrEnum):
    """What a plugin can be."""

    algorithm = "algorithm"
    task = "task"


def check(
    name: Annotated[str, typer.Argument(help="A registered algorithm or task.")],
    overrides: Overrides = None,
    kind: Annotated[Kind | None, typer.Option(help="Needed where an algorithm and a task share the name.")] = None,
) -> None:
    """Run the conformance checks on NAME; exit code 1 if one fails. A task is checked in small groups."""
    from rich.console import Console

    from rlflow.examination import examine_plugin

    console = Console(highlight=False)
    chosen = _kind_of(name) if kind is None else kind
    findings = _shown(console, examine_plugin(chosen.value, name, overrides or []))
    console.print(_table(findings))
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in COLOURS}
    console.print(f"{chosen.value} {name}: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    if counts["fail"]:
        raise typer.Exit(1)


def _kind_of(name: str) -> Kind:
    from rlflow.registry import UnknownNameError, did_you_mean, entries, find

    found = []
    for kind in Kind:
        try:
            find(kind.value, name)
        except UnknownNameError:
            continue
        found.append(kind)
    if len(found) > 1:
        raise UsageError(f"{name!r} is an algorithm and a task; say which with --kind algorithm or --kind task")
    if not found:
        known = [*entries("algorithm"), *entries("task")]
        raise UnknownNameError(f"no algorithm or task is called {name!r}{did_you_mean(name, known)}")
    return found[0]


def _shown(console: Console, findings: Iterable[Finding]) -> list[Finding]:
    """All findings; on a terminal, the number of those made so far while the next is awaited."""
    made: list[Finding] = []
    with console.status("checking") as status:
        for finding in findings:
            made.append(finding)
            status.update(f"{len(made)} checked, last {finding.check}")
    return made


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("result", "check"):
        table.add_column(column, no_wrap=True)
    for column in ("reason", "fix"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=COLOURS[finding.verdict])
        # Text, because brackets of a shape would be read as markup.
        table.add_row(verdict, finding.check.removeprefix("check_"), Text(finding.reason), Text(finding.fix))
    return table
