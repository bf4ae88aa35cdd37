"""Metric curves of many runs at once: few queries where the store is a database, few threads where it is a server."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlflow.store import Store, history

# Databases limit the values of one query; the smallest limit is that of SQL Server, 2,100.
RUNS_PER_QUERY = 1000
STEPS_PER_QUERY = 500
MAX_REQUESTS = 8

Curve = dict[int, float]
"""Value by step."""

_Point = tuple[str, int, int, float]


def curves(store: Store, run_ids: Sequence[str], name: str, steps: Collection[int] = ()) -> dict[str, Curve]:
    """One metric of many runs, one value per step: the last one written, should a resume have doubled a point.

    MLflow's client asks once per run, which takes a database longer than all the rest of a board.

    Args:
        store: An opened store.
        run_ids: Runs; one without the metric has an empty curve.
        name: Metric.
        steps: Only these, where given: a cost is recorded at every iteration and wanted at the evaluations.
    """
    backend = store.client._tracking_client.store
    wanted = frozenset(steps)
    read = _from_database if hasattr(backend, "ManagedSessionMaker") else _from_server
    found: dict[str, Curve] = {run_id: {} for run_id in run_ids}
    for run_id, step, _, value in sorted(read(store, backend, run_ids, name, wanted)):
        if not math.isnan(value):
            found[run_id][step] = value
    return found


def _from_database(
    _: Store, backend: Any, run_ids: Sequence[str], name: str, steps: frozenset[int]
) -> Iterator[_Point]:
    """Rows of MLflow's own table: its metric objects take longer to make than the query."""
    from mlflow.store.tracking.dbmodels.models import SqlMetric
    from sqlalchemy import select

    query = select(SqlMetric.run_uuid, SqlMetric.step, SqlMetric.timestamp, SqlMetric.value)
    query = query.where(SqlMetric.key == name, SqlMetric.is_nan.is_(False))
    if 0 < len(steps) <= STEPS_PER_QUERY:
        query = query.where(SqlMetric.step.in_(sorted(steps)))
    with backend.ManagedSessionMaker() as session:
        for start in range(0, len(run_ids), RUNS_PER_QUERY):
            for row in session.execute(query.where(SqlMetric.run_uuid.in_(run_ids[start : start + RUNS_PER_QUERY]))):
                if not steps or row.step in steps:
                    yield row.run_uuid, row.step, row.timestamp, row.value


def _from_server(store: Store, _: Any, run_ids: Sequence[str], name: str, steps: frozenset[int]) -> Iterator[_Point]:
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        for run_id, points in zip(run_ids, pool.map(lambda run: history(store, run, name), run_ids), strict=True):
            for point in points:
                if not steps or point.step in steps:
                    yield run_id, point.step, point.timestamp, point.value
