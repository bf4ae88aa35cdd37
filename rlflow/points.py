"""What the loop logs on its way to a tracker: joined per step, with reports of how far the run is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlflow.launch import Progress
from rlflow.tracker import SCORE_METRIC, Tracker

if TYPE_CHECKING:
    from rlflow.task import Answer

REPORT_AFTER_S = 0.5

Report = Callable[[Progress], None]


class Points:
    """The trainer's view of a tracker: one point per metric and step, with a report of how far the run is.

    An evaluation follows the iteration that it judges at the same step and repeats its cost: the later value stands.
    """

    def __init__(self, tracker: Tracker, report: Report, samples: int = 0) -> None:
        self._tracker, self._report = tracker, report
        self._pending: dict[str, float] = {}
        self._step = samples
        self._reported_s = 0.0
        self.score: float | None = None
        self.evaluations = 0

    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(samples=self._step, score=self.score, evaluations=self.evaluations)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add to the points of `step`."""
        if step != self._step:
            self._hand_on()
        self._step = step
        self._pending |= metrics
        evaluated = SCORE_METRIC in metrics
        self.evaluations += evaluated
        self.score = metrics.get(SCORE_METRIC, self.score)
        if evaluated or time.monotonic() - self._reported_s > REPORT_AFTER_S:
            self._reported_s = time.monotonic()
            self._report(self.progress())

    def artifact(self, path: Path, folder: str = "") -> None:
        """Hand on."""
        self._tracker.artifact(path, folder)

    def answers(self, table: Path, traced: Sequence[Answer], step: int) -> None:
        """Hand on."""
        self._tracker.answers(table, traced, step)

    def flush(self) -> None:
        """Hand the pending points on and have all of them sent."""
        self._hand_on()
        self._tracker.flush()

    def _hand_on(self) -> None:
        if self._pending:
            self._tracker.log(self._pending, self._step)
            self._pending = {}
