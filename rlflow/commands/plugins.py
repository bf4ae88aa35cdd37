"""`rlflow list` and `rlflow pretrain`: what is registered, what runs with what, and the bases of the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.commands.options import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from rlflow.registry import Entry
    from rlflow.task import Task


def list_plugins() -> None:
    """Show algorithms, tasks, policies and suites, and which pairs run."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for table in (_algorithms(), _tasks(), _policies(), _suites()):
        console.print(table)
        console.print()
    pairs, reasons = _pairs()
    console.print(pairs)
    for reason in reasons:
        console.print(f"- {reason}", markup=False)


def pretrain(
    task: Annotated[str, typer.Argument(help="A task with a base of its own.")],
    out: Annotated[Path, typer.Option(help="Folder of the new base.")] = Path("bases"),
    seed: Annotated[int, typer.Option(help="Root of every random choice.")] = 0,
) -> None:
    """Make the base of TASK anew and print its score."""
    from rlflow.registry import find
    from rlflow.task import Pretrains

    maker = find("task", task).load()
    if not isinstance(maker, Pretrains):
        raise UsageError(f"task {task!r} starts from random weights: there is no base to make")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"expected a folder that can be written at {out}, found: {error.strerror}") from error
    for name, value in maker.pretrain(out, seed).items():
        typer.echo(f"{name:<32} {value:.6g}")
    typer.echo(str(out))


def _algorithms() -> Table:
    table = _table("algorithm", "asks of the policy", "package")
    for name, entry in _entries("algorithm").items():
        algorithm = entry.load()()
        table.add_row(name, ", ".join(sorted(algorithm.requires)), entry.package)
    return table


def _tasks() -> Table:
    table = _table("task", "version", "policies", "unit", "package")
    for name, entry in _entries("task").items():
        task: type[Task] = entry.load()
        shown = f"{name}/ENV-ID" if task.name_field and "/" not in name else name
        table.add_row(shown, task.version, ", ".join(task.policies), task.unit, entry.package)
    return table


def _policies() -> Table:
    from rlflow.policy import capabilities

    table = _table("policy", "answers", "package")
    for name, entry in _entries("policy").items():
        table.add_row(name, ", ".join(sorted(capabilities(entry.load()))), entry.package)
    return table


def _suites() -> Table:
    from rlflow.suite import load_suite

    table = _table("suite", "version", "cells", "seeds", "budgets", "package")
    for name, entry in _entries("suite").items():
        suite = load_suite(name)
        cells = f"{len(suite.algorithms)} x {len(suite.tasks)}"
        table.add_row(name, suite.version, cells, str(suite.seeds), ", ".join(suite.budgets), entry.package)
    return table


def _pairs() -> tuple[Table, list[str]]:
    """Algorithms by policy kinds of each task: `yes`, or why not below the table."""
    from rlflow.policy import MissingCapabilityError, check_capabilities
    from rlflow.registry import find

    algorithms = _entries("algorithm")
    table, reasons = _table("pair runs", *algorithms), []
    for name, entry in _entries("task").items():
        for kind, policy in entry.load().policies.items():
            row = []
            for algorithm, other in algorithms.items():
                try:
                    check_capabilities(find("policy", policy).load(), other.load()().requires, algorithm, name)
                    row.append("yes")
                except MissingCapabilityError as error:
                    row.append("no")
                    reasons.append(str(error))
            table.add_row(f"{name} | {kind}", *row)
    return table, reasons


def _entries(kind: str) -> dict[str, Entry]:
    from rlflow.registry import entries

    return entries(kind)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table
