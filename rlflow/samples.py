"""Sample artifacts of an evaluation: files on disk first, then the tracker."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from rlflow.answers import spread, write_table
from rlflow.settings import TrainerConfig
from rlflow.task import Evaluation
from rlflow.tracker import SAMPLES_FOLDER, Log

PER_ITEM = "per_item.csv"
DEFAULT_TRAINER = TrainerConfig()


def write_samples(result: Evaluation, folder: Path) -> list[Path]:
    """Write sample artifacts and per-item results of one evaluation into `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, writer in result.files.items():
        writer(folder / name)
        written.append(folder / name)
    if result.items:
        columns = list(result.items[0])
        lines = [columns, *([str(item.get(c, "")) for c in columns] for item in result.items)]
        with (folder / PER_ITEM).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
        written.append(folder / PER_ITEM)
    return written


def keep_samples(
    result: Evaluation, folder: Path, log: Log, samples: int, trainer: TrainerConfig = DEFAULT_TRAINER
) -> None:
    """Write what an evaluation after `samples` leaves under the run's `folder`, and hand it to the log."""
    log_samples(write_samples(result, folder / SAMPLES_FOLDER / _step(samples)), log, samples)
    keep_answers(result, folder, log, samples, trainer)


def log_samples(files: Iterable[Path], log: Log, samples: int) -> None:
    """Hand the files of an evaluation after `samples` to the log, where every evaluation of a run has them."""
    for path in files:
        log.artifact(path, "eval" if path.name == PER_ITEM else f"{SAMPLES_FOLDER}/{_step(samples)}")


def keep_answers(result: Evaluation, folder: Path, log: Log, samples: int, trainer: TrainerConfig) -> None:
    """Add the answers of an evaluation after `samples` to the table in `folder`, and hand it to the log."""
    kept = spread(result.answers, trainer.answer_rows)
    if kept:
        log.answers(write_table(folder, kept, samples), spread(kept, trainer.answer_traces), samples)


def _step(samples: int) -> str:
    """As wide for every budget, so that folders sort by it."""
    return f"{samples:09d}"
