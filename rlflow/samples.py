"""Sample artifacts of an evaluation: files on disk first, then the tracker."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Protocol

from rlflow.task import Evaluation


class Tracker(Protocol):
    """Where numbers and artifacts go (see `rlflow.tracking`)."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars at `step` samples."""

    def artifact(self, path: Path, folder: str) -> None:
        """Keep a file under `folder`."""


def write_samples(result: Evaluation, folder: Path, tracker: Tracker, samples: int) -> None:
    """Write per-item results and sample artifacts of one evaluation and hand them to the tracker."""
    target = folder / "samples" / f"{samples:09d}"
    target.mkdir(parents=True, exist_ok=True)
    for name, writer in result.files.items():
        path = target / name
        writer(path)
        tracker.artifact(path, f"samples/{samples:09d}")
    if result.items:
        path = target / "per_item.csv"
        columns = list(result.items[0])
        lines = [columns, *([str(item.get(c, "")) for c in columns] for item in result.items)]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
        tracker.artifact(path, "eval")
