"""`rlflow new`: the package of a plugin, to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlflow.commands.check import Kind


def new(
    kind: Annotated[Kind, typer.Argument(help="algorithm or task")],
    name: Annotated[str, typer.Argument(help="Name to register, e.g. my_algo or family/my_task.")],
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the package; must not exist. rlflow-NAME if not given.")
    ] = None,
) -> None:
    """Write an installable package with an algorithm or a task that runs and passes its checks."""
    from rlflow.scaffold import plan, write

    names = plan(kind.value, name)
    target = folder or Path(names.distribution)
    for path in write(names, target):
        typer.echo(str(path))
    typer.echo(f"next: pip install --editable {target}, then rlflow check {name}")
