"""The runs of an experiment as the board needs them, oldest first: tags and last metrics, params where asked for.

A database is asked for just these columns: MLflow makes an object of every parameter of every run, which takes longer
than all the rest of a board of a thousand runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlflow.store import Store

PAGE = 1000
COSTS = ("wall_s", "gpu_s", "tokens", "env_steps", "policy_forwards", "optimizer_steps", "peak_gb")
METRICS = tuple(f"cost/{name}" for name in COSTS)


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """One run; `metrics` holds the last values of `METRICS` alone, `params` is empty where they were not asked for."""

    run_id: str
    tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]


def runs_of(store: Store, experiment: str, *, cell_id: str | None = None, params: bool = False) -> list[RecordedRun]:
    """Active runs of an experiment, or of one of its cells.

    Args:
        store: An opened store.
        experiment: Experiment id.
        cell_id: Only the runs of this cell, where given.
        params: Read the params too.
    """
    backend = store.client._tracking_client.store
    if hasattr(backend, "ManagedSessionMaker"):
        found = _from_database(backend, experiment, params)
    else:
        found = _from_server(store, experiment)
    return [run for run in found if cell_id is None or run.tags.get("rlflow.cell_id") == cell_id]


def _from_database(backend: Any, experiment: str, params: bool) -> Iterator[RecordedRun]:
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import select

    chosen = (SqlRun.experiment_id == int(experiment), SqlRun.lifecycle_stage == "active")
    with backend.ManagedSessionMaker() as session:
        order = select(SqlRun.run_uuid).where(*chosen).order_by(SqlRun.start_time, SqlRun.run_uuid)
        runs = {
            run_id: RecordedRun(run_id=run_id, tags={}, metrics={}, params={})
            for run_id in session.execute(order).scalars()
        }
        for table, field in (
            (SqlTag, "tags"),
            (SqlLatestMetric, "metrics"),
            *(((SqlParam, "params"),) if params else ()),
        ):
            query = select(table.run_uuid, table.key, table.value).join(SqlRun, SqlRun.run_uuid == table.run_uuid)
            query = query.where(*chosen)
            if table is SqlLatestMetric:
                query = query.where(table.key.in_(METRICS))
            for run_id, key, value in session.execute(query):
                if run_id in runs:
                    getattr(runs[run_id], field)[key] = value
    yield from runs.values()


def _from_server(store: Store, experiment: str) -> Iterator[RecordedRun]:
    token: str | None = None
    while token is None or token:
        page: Sequence[Any] = store.client.search_runs(
            [experiment], max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        for run in page:
            metrics = {name: run.data.metrics[name] for name in METRICS if name in run.data.metrics}
            yield RecordedRun(run_id=run.info.run_id, tags=run.data.tags, metrics=metrics, params=run.data.params)
        token = getattr(page, "token", None) or ""
