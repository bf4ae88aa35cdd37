"""The runs of kind `evaluation`: a policy judged outside of its training, kept apart from the runs that boards read.

Part of `rlflow.tracking`, the only writer of MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlflow import provenance
from rlflow.answers import as_traces, table_tags
from rlflow.identity import cell_identity
from rlflow.settings import Config
from rlflow.store import Store, create_run, ensure_experiment, log_config, log_metrics, set_tags
from rlflow.traces import send_traces
from rlflow.tracker import StepGuard

if TYPE_CHECKING:
    from rlflow.task import Answer

EXPERIMENT = "eval@1"


class EvaluationRun:
    """Log of one evaluation; there is little of it, so that nothing is buffered.

    Attributes:
        run_id: The MLflow run.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        """Use `tracked_evaluation`."""
        self.run_id = run_id
        self._store = store
        self._guard = StepGuard()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record finite values of `metrics` at `step` samples."""
        log_metrics(self._store, self.run_id, self._guard.accept(metrics, step), step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file."""
        self._store.client.log_artifact(self.run_id, str(path), folder or None)

    def answers(self, table: Path, traced: Sequence[Answer], step: int) -> None:
        """Upload the table, and send `traced` as traces."""
        self.artifact(table)
        set_tags(self._store, self.run_id, table_tags(table))
        if traced:
            send_traces(self._store, self.run_id, as_traces(self.run_id, traced, step, int(time.time() * 1000)))


@contextmanager
def tracked_evaluation(store: Store, config: Config, tags: Mapping[str, str]) -> Iterator[EvaluationRun]:
    """A run of the experiment `eval@1` with the whole configuration; FAILED where the block raises.

    Args:
        store: An opened store.
        config: Of the evaluation.
        tags: Further tags, e.g. of the checkpoint.
    """
    identity = cell_identity(config, suite=EXPERIMENT, division="open")
    sha, dirty = provenance.git_state()
    known = {
        "rlflow.kind": "evaluation",
        "rlflow.seed": str(config.trainer.seed),
        "rlflow.git_sha": sha,
        "rlflow.git_dirty": str(dirty).lower(),
        "rlflow.hardware": provenance.hardware(),
        "rlflow.lock_sha": provenance.environment_digest(),
    }
    name = f"{identity.algorithm} | {identity.task} | {identity.policy} | seed {config.trainer.seed} | evaluation"
    run_id = create_run(store, ensure_experiment(store, EXPERIMENT), name, {**identity.tags(), **known, **tags})
    status = "FAILED"
    try:
        log_config(store, run_id, config.resolved)
        yield EvaluationRun(store, run_id)
        status = "FINISHED"
    finally:
        store.client.set_terminated(run_id, status)
