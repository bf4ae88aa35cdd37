"""`rlflow eval` and `rlflow sample`: judge a checkpoint, or an untrained policy, on the frozen evaluation set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlflow.commands.options import Overrides, UsageError

if TYPE_CHECKING:
    from rlflow.task import Evaluation
    from rlflow.trainer import Loop

SUFFIX = ".ckpt"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A last.ckpt that rlflow wrote, or its folder.")],
    overrides: Overrides = None,
) -> None:
    """Evaluate CHECKPOINT, also under changed settings such as another sampler."""
    result, loop = judge([str(checkpoint), *(overrides or [])])
    typer.echo(f"{loop.config.algorithm_name} on {loop.config.task_name} after {loop.samples:,} samples")
    for name, value in result.metrics.items():
        typer.echo(f"  {name:<32} {value:.6g}")


def sample(
    target: Annotated[
        list[str], typer.Argument(help="CHECKPOINT or ALGORITHM TASK, then key=value.", metavar="TARGET...")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("samples"),
) -> None:
    """Write the sample files of one evaluation: an image grid, a rollout video, completions."""
    from rlflow.samples import write_samples

    out = _writable(out)
    result, _ = judge(target)
    for path in sorted(write_samples(result, out)):
        typer.echo(str(path))


def judge(target: list[str]) -> tuple[Evaluation, Loop]:
    """Evaluate CHECKPOINT, or an untrained policy; the loop is that of the run.

    Raises:
        UsageError: Neither is named.
    """
    import torch

    from rlflow.config import from_resolved, resolve
    from rlflow.run import build

    words = [word for word in target if "=" not in word]
    overrides = [word for word in target if "=" in word]
    checkpoint = None
    if len(words) == 1:
        path = Path(words[0])
        checkpoint = _load(path)
        if checkpoint is None:
            raise UsageError(
                f"expected a checkpoint *{SUFFIX} that rlflow wrote, or a folder that holds one, found {path}"
            )
        kept = from_resolved(checkpoint["rlflow"]["config"])
        sections = {name: dict(values) for name, values in kept.resolved.items()}
        del sections["algorithm"]["name"]
        config = resolve(kept.algorithm_name, kept.task_name, overrides, [sections])
    elif len(words) == 2:
        config = resolve(words[0], words[1], overrides)
    else:
        raise UsageError(f"expected CHECKPOINT or ALGORITHM TASK, found {' '.join(words) or 'nothing'}")
    try:
        loop = build(config, Path())
        if checkpoint is not None:
            loop.resume(checkpoint)
        loop.to("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
        loop.eval()
        with torch.no_grad(), loop.averaged.in_place():
            return loop.task.evaluate(loop.policy, loop.noise("eval")), loop
    finally:
        config.task.close()


def _load(path: Path) -> dict[str, Any] | None:
    from rlflow.checkpoint import read_checkpoint
    from rlflow.launch import CHECKPOINT

    if path.is_dir():
        path = path / CHECKPOINT
    return read_checkpoint(path) if path.suffix == SUFFIX else None


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"expected a folder that can be written at {folder}, found: {error.strerror}") from error
    return folder
