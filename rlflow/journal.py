"""Writes of one run in order: tried at once; while the store is away kept in a file, and delivered when it is back.

Every write is safe to repeat: MLflow drops a point that equals one in name, time, step and value, and tags, files and
traces replace themselves.  So a write whose answer was lost is simply sent again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow.store import Store, TrackingError, answers, may_pass, set_tags
from rlflow.traces import send_traces

if TYPE_CHECKING:
    from mlflow.entities import Metric

MAX_METRICS_PER_BATCH = 1000
RETRY_AFTER_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Write:
    """One request, as plain values.

    Attributes:
        metrics: `(name, value, time_ms, step)` each, at most `MAX_METRICS_PER_BATCH`.
        tags: Set on the run.
        file: Path on this machine of an artifact; read when it is sent.
        folder: Place of the artifact in the run.
        traces: As `rlflow.answers.as_traces` gives them.
    """

    metrics: Sequence[tuple[str, float, int, int]] = ()
    tags: dict[str, str] = field(default_factory=dict)
    file: str = ""
    folder: str = ""
    traces: Sequence[dict[str, Any]] = ()


class Journal:
    """The way to the store for one run."""

    def __init__(self, store: Store, run_id: str) -> None:
        """Takes up what an earlier process could not deliver."""
        self._store, self._run_id = store, run_id
        self._path = store.journal_folder / f"{run_id}.jsonl"
        self._waiting = _read(self._path)
        self._retry_s = 0.0

    def send(self, write: Write) -> None:
        """Deliver after what is waiting, or keep it; raises only where a later try would fail as well.

        Raises:
            MlflowException: The store refuses the write itself.
            OSError: It can neither be delivered nor kept, e.g. on a full disk.
        """
        if self._waiting and not self._deliver_when_due():
            self._keep(write)
            return
        try:
            self._request(write)
        except Exception as error:
            if not may_pass(error):
                raise
            _log.warning("the store does not answer (%s); writes are kept in %s", _first_line(error), self._path)
            self._keep(write)

    def deliver(self, patience_s: float) -> None:
        """Return when nothing is waiting any more.

        Raises:
            TrackingError: The store did not come back within `patience_s`.
        """
        until_s = time.monotonic() + patience_s
        while not self._deliver():
            if time.monotonic() > until_s:
                raise TrackingError(
                    f"expected the tracking store at {self._store.uri} to come back, found no answer for "
                    f"{patience_s:g} s; {len(self._waiting)} writes are kept in {self._path} and are delivered when "
                    "the same command is given again"
                )
            time.sleep(min(1.0, patience_s / 10))

    def _deliver_when_due(self) -> bool:
        return time.monotonic() >= self._retry_s and self._deliver()

    def _deliver(self) -> bool:
        if not self._waiting:
            return True
        try:
            if answers(self._store):
                while self._waiting:
                    self._request(self._waiting[0])
                    self._waiting.pop(0)
                self._path.unlink(missing_ok=True)
                return True
        except Exception as error:
            if not may_pass(error):
                raise
        self._retry_s = time.monotonic() + RETRY_AFTER_S
        return False

    def _keep(self, write: Write) -> None:
        if not self._waiting:
            self._retry_s = time.monotonic() + RETRY_AFTER_S
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(write)).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            whole = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                os.fsync(file.fileno())
            except OSError:
                # What comes later must not be joined to half a line.
                os.truncate(self._path, whole)
                if not whole:
                    self._path.unlink()
                raise
        self._waiting.append(write)

    def _request(self, write: Write) -> None:
        client = self._store.client
        if write.metrics:
            client.log_batch(self._run_id, metrics=[_metric(*point) for point in write.metrics])
        if write.tags:
            set_tags(self._store, self._run_id, write.tags)
        if write.file:
            client.log_artifact(self._run_id, write.file, write.folder or None)
        if write.traces:
            send_traces(self._store, self._run_id, write.traces)


def batches(points: Sequence[tuple[str, float, int, int]]) -> list[Write]:
    """Points as writes of a size that MLflow takes."""
    return [
        Write(metrics=points[start : start + MAX_METRICS_PER_BATCH])
        for start in range(0, len(points), MAX_METRICS_PER_BATCH)
    ]


def _metric(name: str, value: float, time_ms: int, step: int) -> Metric:
    from mlflow.entities import Metric

    return Metric(name, value, time_ms, step)


def _read(path: Path) -> list[Write]:
    """What is kept; a last line that a crash has cut short was never promised to anybody, and is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    return [Write(**json.loads(line)) for line in whole.splitlines()]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
