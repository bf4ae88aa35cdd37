"""`rlflow export`: a checkpoint as files that need no rlflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A last.ckpt that rlflow wrote, or its folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("exported"),
) -> None:
    """Write the policy of CHECKPOINT: weights, configuration, a card with scores, and ONNX where the task has it."""
    from rlflow.commands.checkpoint import judge
    from rlflow.export import export as export_policy

    evaluation, loop = judge([str(checkpoint)])
    loop.to("cpu")
    exported = export_policy(loop, evaluation, out)
    for path in exported.files:
        typer.echo(str(path))
    if exported.max_difference is not None:
        typer.echo(f"the ONNX network acts as the policy within {exported.max_difference:.1g}")
