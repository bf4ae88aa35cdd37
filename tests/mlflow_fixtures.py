"""A real MLflow SQLite store for tests: migrated once per session, copied for every test."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlflow.cell import CellIdentity
from rlflow.store import Store, open_store
from tests.servers import Server

CONFIG = {
    "algorithm": {"name": "ppo", "clip": 0.2},
    "task": {"name": "toy/walk", "sizes": [4, 8]},
    "trainer": {"seed": 0},
}


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database whose migrations have run."""
    folder = tmp_path_factory.mktemp("migrated")
    open_store(results=folder)
    database = folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database


@pytest.fixture
def store(migrated_database: Path, tmp_path: Path) -> Store:
    """A store of this test alone, under `tmp_path / "results"`."""
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(migrated_database, results / "mlflow.db")
    return open_store(results=results)


def served(store: Store) -> Store:
    """The same store as the client of a server sees it: what MLflow's client answers, and no database."""
    client = SimpleNamespace(
        _tracking_client=SimpleNamespace(store=object()),
        get_experiment_by_name=store.client.get_experiment_by_name,
        get_metric_history=store.client.get_metric_history,
        search_runs=store.client.search_runs,
    )
    return replace(store, client=client)  # type: ignore[arg-type]


@pytest.fixture
def server(migrated_database: Path, tmp_path: Path) -> Iterator[Server]:
    """A running server of this test alone."""
    database = tmp_path / "server" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(migrated_database, database)
    server = Server(database)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def identity() -> Callable[..., CellIdentity]:
    """Makes the identity of a cell of the suite `toy@1`, with anchors 0 and 10 and a budget of 400 samples."""

    def make(algorithm: str = "ppo", task: str = "toy/walk", **changes: Any) -> CellIdentity:
        policy = changes.pop("policy", "gaussian")
        values: dict[str, Any] = {
            "suite": "toy@1",
            "cell_id": f"v1-{algorithm}-{task.replace('/', '-')}-{policy}",
            "task_version": "1",
            "anchor_base": 0.0,
            "anchor_reference": 10.0,
            "budget": 400,
            "suite_digest": "d1",
        }
        return CellIdentity(algorithm=algorithm, task=task, policy=policy, **(values | changes))

    return make
