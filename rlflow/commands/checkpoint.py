"""`rlflow eval` and `rlflow sample`: judge a checkpoint, or an untrained policy, on the frozen evaluation set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlflow.commands.options import DEFAULT_RESULTS, Overrides, Results, TrackingUri, UsageError

if TYPE_CHECKING:
    from rlflow.config import Config
    from rlflow.store import Store
    from rlflow.task import Evaluation
    from rlflow.tracker import Log
    from rlflow.trainer import Loop

SUFFIX = ".ckpt"
EVALUATIONS = "evaluations"
RECORD = "evaluation.json"


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A last.ckpt that rlflow wrote, or its folder; or ALGORITHM TASK.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the files; under evaluations/ beside the checkpoint if not given.")
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Log metrics and files to MLflow as well.")] = False,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Evaluate CHECKPOINT, also under changed settings such as another sampler, and leave the evaluation's files."""
    from rlflow.samples import keep_answers, log_samples, write_samples

    target = [str(checkpoint), *(overrides or [])]
    config, state = _opened(target)
    given = [word for word in target if "=" in word]
    file = None if state is None else _file(checkpoint)
    record = _record(config, file, 0 if state is None else state["rlflow"]["samples"], given)
    if file is None:
        place = results / EVALUATIONS / f"{config.algorithm_name}-{config.task_name.replace('/', '-')}-untrained"
    else:
        place = file.parent / EVALUATIONS / f"{record['samples']:09d}"
    folder = _writable(out or _of_settings(place, given))
    store = _store(tracking_uri, results) if track or tracking_uri is not None else None
    result, _ = _judged(config, state)
    files = [*write_samples(result, folder), folder / RECORD]
    record["metrics"] = result.metrics
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{config.algorithm_name} on {config.task_name} after {record['samples']:,} samples, files in {folder}")
    for name, value in result.metrics.items():
        typer.echo(f"  {name:<32} {value:.6g}")
    with _log(store, config, record) as (log, run_id):
        log.log({f"eval/{name}": value for name, value in result.metrics.items()}, record["samples"])
        log_samples(files, log, record["samples"])
        keep_answers(result, folder, log, record["samples"], config.trainer)
    if run_id:
        typer.echo(f"MLflow run {run_id}")


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
    return _judged(*_opened(target))


def _opened(target: list[str]) -> tuple[Config, dict[str, Any] | None]:
    """The configuration of an evaluation, and the checkpoint where one is named."""
    from rlflow.config import from_resolved, resolve

    words = [word for word in target if "=" not in word]
    overrides = [word for word in target if "=" in word]
    if len(words) == 1:
        checkpoint = _load(Path(words[0]))
        if checkpoint is None:
            raise UsageError(
                f"expected a checkpoint *{SUFFIX} that rlflow wrote, or a folder that holds one, found {words[0]}"
            )
        kept = from_resolved(checkpoint["rlflow"]["config"])
        sections = {name: dict(values) for name, values in kept.resolved.items()}
        del sections["algorithm"]["name"]
        return resolve(kept.algorithm_name, kept.task_name, overrides, [sections]), checkpoint
    if len(words) == 2:
        return resolve(words[0], words[1], overrides), None
    raise UsageError(f"expected CHECKPOINT or ALGORITHM TASK, found {' '.join(words) or 'nothing'}")


def _judged(config: Config, checkpoint: dict[str, Any] | None) -> tuple[Evaluation, Loop]:
    import torch

    from rlflow.run import build

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


def _record(config: Config, checkpoint: Path | None, samples: int, overrides: list[str]) -> dict[str, Any]:
    """What an evaluation judged; its metrics come later."""
    return {
        "algorithm": config.algorithm_name,
        "task": config.task_name,
        "task_revision": config.task.revision,
        "samples": samples,
        "checkpoint_sha256": "" if checkpoint is None else hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "overrides": overrides,
    }


@contextmanager
def _log(store: Store | None, config: Config, record: dict[str, Any]) -> Iterator[tuple[Log, str]]:
    """Where an evaluation is logged as training logs its own, and the id of its run; nowhere without a store."""
    from rlflow.tracker import MemoryTracker
    from rlflow.tracking_evaluations import tracked_evaluation

    if store is None:
        yield MemoryTracker(), ""
        return
    tags = {
        "rlflow.checkpoint_sha256": record["checkpoint_sha256"],
        "rlflow.samples": str(record["samples"]),
        "rlflow.overrides": " ".join(record["overrides"]),
    }
    with tracked_evaluation(store, config, tags) as run:
        yield run, run.run_id


def _store(tracking_uri: str | None, results: Path) -> Store:
    from rlflow.store import open_store

    return open_store(tracking_uri, results=results)


def _of_settings(place: Path, overrides: list[str]) -> Path:
    """A folder for each set of settings, so that the files of two samplers do not replace each other."""
    if not overrides:
        return place
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return place.with_name(f"{place.name}-{digest}")


def _file(path: Path) -> Path:
    from rlflow.launch import CHECKPOINT

    return path / CHECKPOINT if path.is_dir() else path


def _load(path: Path) -> dict[str, Any] | None:
    from rlflow.checkpoint import read_checkpoint

    path = _file(path)
    return read_checkpoint(path) if path.suffix == SUFFIX else None


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"expected a folder that can be written at {folder}, found: {error.strerror}; choose another with --out"
        ) from error
    return folder
