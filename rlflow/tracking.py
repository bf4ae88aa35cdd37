"""The only writer of MLflow: suite = experiment, under it runs of kind `leaderboard`, `cell` and `seed`.

Seed runs are nested under their cell.  Everything that the leaderboard needs is in tags, params and metrics, so that
it can be read back, also by plain MLflow, without this package.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlflow import provenance
from rlflow.answers import as_traces, table_tags
from rlflow.cell import CellIdentity, SuitePlan
from rlflow.journal import Journal, Write, batches
from rlflow.stats import final_score, normalised_score
from rlflow.store import (
    MAX_VALUE_LENGTH,
    Store,
    TrackingError,
    create_run,
    ensure_experiment,
    history,
    locked,
    log_config,
    log_metrics,
    search_runs,
    set_tags,
)
from rlflow.tracker import SCORE_METRIC, Outcome, StepGuard, checked_outcome
from rlflow.tracking_cells import ensure_cell, summarise

if TYPE_CHECKING:
    from mlflow.entities import Run

    from rlflow.task import Answer

HEARTBEAT_S = 20.0
STALE_AFTER_S = 120.0
FLUSH_AFTER_S = 10.0
FLUSH_AT_METRICS = 1000
PATIENCE_S = 60.0
TERMINAL_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "interrupted": "KILLED", "failed": "FAILED"}

_log = logging.getLogger(__name__)


def ensure_board(store: Store, suite: str, plan: SuitePlan | None = None) -> str:
    """Run id of the suite's `kind=leaderboard` run; a given `plan` replaces the recorded one."""
    experiment = ensure_experiment(store, suite)
    tags = {"rlflow.kind": "leaderboard"}
    if plan is not None:
        tags |= {
            "rlflow.suite_digest": plan.digest,
            "rlflow.algorithms": json.dumps(plan.algorithms),
            "rlflow.tasks": json.dumps(plan.tasks),
            "rlflow.seeds": json.dumps(plan.seeds),
        }
    with locked(store.lock_path):
        found = search_runs(store, experiment, {"kind": "leaderboard"})
        run_id = found[0].info.run_id if found else create_run(store, experiment, "leaderboard", tags)
        if found:
            set_tags(store, run_id, tags)
    return run_id


def start_seed(
    store: Store,
    identity: CellIdentity,
    *,
    seed: int,
    config: Mapping[str, Any],
    resume: bool = False,
    tags: Mapping[str, str] | None = None,
) -> SeedTracker:
    """Open the run of one training seed.

    Args:
        store: An opened store.
        identity: The cell.
        seed: Training seed.
        config: Resolved configuration, nested.
        resume: Continue the newest attempt from its checkpoint: the same run is reopened and points that it already
            has are not written again.  False starts a new run; an unfinished earlier one is kept as `superseded`.
        tags: Further tags of a new run.

    Raises:
        TrackingError: The seed has a result already, or another live process is running it.
    """
    cell_run = ensure_cell(store, identity, seeds=(seed,), config=config)
    experiment = ensure_experiment(store, identity.suite)
    with locked(store.lock_path):
        earlier = search_runs(store, experiment, {"kind": "seed", "cell_id": identity.cell_id, "seed": str(seed)})
        previous = earlier[-1] if earlier else None
        attempt = 1
        if previous is not None:
            _refuse_if_taken(previous)
            attempt = int(previous.data.tags["rlflow.attempt"]) + 1
        live = {"rlflow.attempt": str(attempt), "rlflow.outcome": "running", "rlflow.detail": "", **_liveness()}
        if resume and previous is not None:
            run_id = str(previous.info.run_id)
            set_tags(store, run_id, {**live, **_provenance()})
            store.client.update_run(run_id, status="RUNNING")
        else:
            if previous is not None:
                set_tags(store, previous.info.run_id, {"rlflow.kind": "superseded"})
            name = f"{identity.algorithm} | {identity.task} | {identity.policy} | seed {seed}"
            known = {**identity.tags(), **live, **_provenance(), "rlflow.kind": "seed", "rlflow.seed": str(seed)}
            run_id = create_run(store, experiment, name, {**(tags or {}), **known, "mlflow.parentRunId": cell_run})
            log_config(store, run_id, config)
            store.client.log_text(run_id, provenance.environment(), "environment.txt")
    return SeedTracker(store=store, run_id=run_id, cell_run_id=cell_run, identity=identity, attempt=attempt)


def stale(tags: Mapping[str, str], now_s: float | None = None) -> bool:
    """Whether a run that is tagged as running has no living process: its pid is gone, or its heartbeat is too old."""
    if tags.get("rlflow.outcome") != "running":
        return False
    age_s = (time.time() if now_s is None else now_s) - float(tags.get("rlflow.heartbeat", "0"))
    return age_s > STALE_AFTER_S or provenance.process_gone(tags.get("rlflow.process", ""))


class SeedTracker:
    """The tracker of one seed on MLflow: buffers metrics, beats in the background, summarises the cell at the end.

    Attributes:
        run_id: The seed's MLflow run.
        cell_run_id: Its parent.
        attempt: 1 for the first, counted over resumes and restarts.
        last_step: Last step recorded by former attempts; -1 for a new run.
    """

    def __init__(self, *, store: Store, run_id: str, cell_run_id: str, identity: CellIdentity, attempt: int) -> None:
        """Use `start_seed`."""
        self.run_id, self.cell_run_id, self.attempt = run_id, cell_run_id, attempt
        self._store, self._identity = store, identity
        self._journal = Journal(store, run_id)
        self._journal.deliver(PATIENCE_S)
        recorded = store.client.get_run(run_id).data.metrics
        earlier = {name: max(point.step for point in history(store, run_id, name)) for name in recorded}
        self.last_step = max(earlier.values(), default=-1)
        self._guard = StepGuard(earlier)
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed_s = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="rlflow-heartbeat", daemon=True).start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record at `step` samples; sent in batches."""
        if self._ended.is_set():
            raise TrackingError(f"expected an open run, found {self.run_id} already finished; log before finish()")
        now_ms = int(time.time() * 1000)
        accepted = self._guard.accept(metrics, step)
        self._buffer += [(name, value, now_ms, step) for name, value in accepted.items()]
        if len(self._buffer) >= FLUSH_AT_METRICS or time.monotonic() - self._flushed_s > FLUSH_AFTER_S:
            self.flush()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file; it must stay where it is while the store is away."""
        if not path.is_file():
            raise FileNotFoundError(f"expected an artifact at {path}, found none")
        self._journal.send(Write(file=str(path.resolve()), folder=folder))

    def answers(self, table: Path, traced: Sequence[Answer], step: int) -> None:
        """Upload the table, which must stay where it is, with the mark by which MLflow shows and loads tables."""
        self._journal.send(Write(file=str(table.resolve()), tags=table_tags(table)))
        if traced:
            self._journal.send(Write(traces=as_traces(self.run_id, traced, step, int(time.time() * 1000))))

    def flush(self) -> None:
        """Send the buffer, or keep it on this machine's disk while the store is away."""
        for write in batches(self._buffer):
            self._journal.send(write)
        self._buffer.clear()
        self._flushed_s = time.monotonic()

    def finish(self, outcome: Outcome, detail: str = "") -> None:
        """End the run and rewrite the summary of its cell; raises TrackingError where the store stays away."""
        checked_outcome(outcome)
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
        self.flush()
        self._journal.deliver(PATIENCE_S)
        if outcome == "finished":
            self._log_final()
        set_tags(self._store, self.run_id, {"rlflow.outcome": outcome, "rlflow.detail": detail[:MAX_VALUE_LENGTH]})
        self._store.client.set_terminated(self.run_id, TERMINAL_STATUS[outcome])
        summarise(self._store, self._identity, self.cell_run_id)

    def _log_final(self) -> None:
        points = sorted({point.step: point.value for point in history(self._store, self.run_id, SCORE_METRIC)}.items())
        try:
            final = final_score([step for step, _ in points], [value for _, value in points], self._identity.budget)
        except ValueError as error:
            _log.warning("run %s is finished but has no final score: %s", self.run_id, error)
            return
        z = float(normalised_score(final, self._identity.anchor_base, self._identity.anchor_reference))
        log_metrics(self._store, self.run_id, {"score/final": final, "score/normalised": z}, points[-1][0])

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._store.client.set_tag(self.run_id, "rlflow.heartbeat", f"{time.time():.0f}")
            except Exception as error:
                _log.warning("heartbeat of run %s failed: %s", self.run_id, error)


def publish_files(store: Store, suite: str, folder: Path, files: Sequence[Path], note: str) -> str:
    """Log `files` of `folder` to the `kind=leaderboard` run and make `note` (Markdown) the experiment's note."""
    run_id = ensure_board(store, suite)
    for path in files:
        parent = path.relative_to(folder).parent.as_posix()
        store.client.log_artifact(run_id, str(path), None if parent == "." else parent)
    store.client.set_experiment_tag(ensure_experiment(store, suite), "mlflow.note.content", note)
    store.client.set_terminated(run_id, "FINISHED")
    return run_id


def published_note(store: Store, suite: str) -> str | None:
    """The note that `publish_files` has made; None where there is none."""
    experiment = store.client.get_experiment_by_name(suite)
    return None if experiment is None else experiment.tags.get("mlflow.note.content")


def _refuse_if_taken(run: Run) -> None:
    tags = run.data.tags
    seed, outcome = tags["rlflow.seed"], tags.get("rlflow.outcome")
    if outcome in ("finished", "diverged"):
        raise TrackingError(
            f"expected seed {seed} of cell {tags['rlflow.cell_id']} to have no result, found run {run.info.run_id} "
            f"({outcome}); a result is never replaced: use another seed or another suite version"
        )
    if outcome == "running" and not stale(tags):
        raise TrackingError(
            f"expected seed {seed} of cell {tags['rlflow.cell_id']} to be free, found it running in process "
            f"{tags.get('rlflow.process')}; wait for it or stop it"
        )


def _liveness() -> dict[str, str]:
    return {"rlflow.heartbeat": f"{time.time():.0f}", "rlflow.process": provenance.process()}


def _provenance() -> dict[str, str]:
    sha, dirty = provenance.git_state()
    return {
        "rlflow.git_sha": sha,
        "rlflow.git_dirty": str(dirty).lower(),
        "rlflow.hardware": provenance.hardware(),
        "rlflow.lock_sha": provenance.environment_digest(),
    }
