"""What the trainer talks to: one tracker per training seed, in memory here, on MLflow in `rlflow.tracking`.

Metric names are `stage/name`; the stages are those of the loop.  `step` is samples consumed, for every metric, so that
curves of different algorithms are comparable.

    rollout/    what the policy did          reward/   what it earned, each component
    advantage/  targets of the update        loss/     terms of the loss
    update/     optimiser steps, clip and ratio diagnostics
    eval/       the frozen evaluation set; `eval/score` is the curve that is ranked
    cost/       cumulative wall_s, gpu_s, tokens, env_steps, policy_forwards, optimizer_steps, peak_gb
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rlflow.task import Answer

METRIC_STAGES = ("rollout", "reward", "advantage", "loss", "update", "eval", "cost")
SCORE_METRIC = "eval/score"
# Of a run's artifacts: holds a folder per evaluation, named by the samples consumed.
SAMPLES_FOLDER = "samples"

Outcome = Literal["finished", "diverged", "interrupted", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("finished", "diverged", "interrupted", "failed")


class Log(Protocol):
    """The part of a tracker that the loop uses."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record `metrics` at `step` samples; non-finite values are omitted, a name may appear once per step.

        Raises:
            ValueError: A name outside `METRIC_STAGES`, or a name logged again at the same or an earlier step.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of the file `path` under `folder` of the run."""

    def answers(self, table: Path, traced: Sequence[Answer], step: int) -> None:
        """Keep the table of all steps in place of the earlier one, and `traced` of `step` as traces."""


class Tracker(Log, Protocol):
    """Records one training seed; `finish` is called exactly once and ends it."""

    def flush(self) -> None:
        """Send what is buffered; call it before a checkpoint is written."""

    def finish(self, outcome: Outcome, detail: str = "") -> None:
        """End the run. `detail` names stage and step of a divergence, or the error; later calls do nothing."""


class StepGuard:
    """Checks metric names and keeps every curve single-valued, also across a resume.

    MLflow keeps both of two points at one step; a resumed run would draw its overlap twice.
    """

    def __init__(self, earlier: Mapping[str, int] | None = None) -> None:
        """`earlier` is the last step per metric that former attempts of this run have recorded."""
        self._earlier = dict(earlier or {})
        self._last: dict[str, int] = {}

    def accept(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Finite values of `metrics` that `step` adds to the curves."""
        accepted = {}
        for name, value in metrics.items():
            if name.partition("/")[0] not in METRIC_STAGES or not name.partition("/")[2]:
                raise ValueError(f"expected a metric name stage/name with a stage of {METRIC_STAGES}, found {name!r}")
            if step <= self._last.get(name, -1):
                raise ValueError(
                    f"expected steps of {name!r} to increase, found {step} after {self._last[name]}; "
                    "log each metric once per step"
                )
            self._last[name] = step
            if step > self._earlier.get(name, -1) and math.isfinite(value):
                accepted[name] = float(value)
        return accepted


class MemoryTracker:
    """Keeps everything in lists; for tests, dry runs and ranks other than 0.

    Attributes:
        points: `(step, value)` per metric.
        artifacts: `folder/name` of every artifact, in order.
        traces: `(step, answer)` of every trace, in order.
        outcome: None until `finish`.
        detail: As given to `finish`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Artifacts are copied under `folder`, or only named where it is None."""
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.artifacts: list[str] = []
        self.traces: list[tuple[int, Answer]] = []
        self.outcome: Outcome | None = None
        self.detail = ""
        self._folder = folder
        self._guard = StepGuard()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to `points`."""
        for name, value in self._guard.accept(metrics, step).items():
            self.points.setdefault(name, []).append((step, value))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Append to `artifacts`; raises FileNotFoundError where `path` is missing."""
        if not path.is_file():
            raise FileNotFoundError(f"expected an artifact at {path}, found none")
        self.artifacts.append(f"{folder}/{path.name}" if folder else path.name)
        if self._folder is not None:
            target = self._folder / folder
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    def answers(self, table: Path, traced: Sequence[Answer], step: int) -> None:
        """Append the table to `artifacts`; `traced` to `traces`."""
        self.artifact(table)
        self.traces += [(step, answer) for answer in traced]

    def flush(self) -> None:
        """Nothing is buffered."""

    def finish(self, outcome: Outcome, detail: str = "") -> None:
        """Keep the first outcome."""
        if self.outcome is None:
            self.outcome, self.detail = checked_outcome(outcome), detail


def checked_outcome(outcome: str) -> Outcome:
    """The outcome; raises ValueError where it is not one of `OUTCOMES`."""
    for known in OUTCOMES:
        if outcome == known:
            return known
    raise ValueError(f"expected an outcome of {OUTCOMES}, found {outcome!r}")
