"""Opening the MLflow store: created once, checked before any work."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from rlflow import store as store_module
from rlflow.store import Store, TrackingError, ensure_experiment, open_store

pytest_plugins = ("tests.mlflow_fixtures",)


def test_a_new_database_waits_for_other_writers(store: Store, tmp_path: Path) -> None:
    assert store.uri == f"sqlite:///{tmp_path}/results/mlflow.db"
    with closing(sqlite3.connect(tmp_path / "results/mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_experiments_keep_artifacts_beside_the_database(store: Store, tmp_path: Path) -> None:
    identifier = ensure_experiment(store, "toy@1")
    assert ensure_experiment(store, "toy@1") == identifier
    location = store.client.get_experiment(identifier).artifact_location
    assert location == f"file://{tmp_path}/results/mlartifacts/toy%401"


def test_the_ui_opens_an_experiment_on_its_runs(store: Store) -> None:
    experiment = store.client.get_experiment(ensure_experiment(store, "toy@1"))
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_deleted_experiment_is_named(store: Store) -> None:
    store.client.delete_experiment(ensure_experiment(store, "toy@1"))
    with pytest.raises(TrackingError, match=r"'toy@1'.*found it deleted; restore"):
        ensure_experiment(store, "toy@1")


def test_processes_that_create_the_database_together_all_live(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rlflow.store import open_store, ensure_experiment;"
        "print(ensure_experiment(open_store(results=Path(sys.argv[1])), 'toy@1'))"
    )
    root = str(Path(store_module.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert {out.split()[-1] for out, _ in answers} == {b"1"}


def test_a_reader_does_not_leave_an_empty_database_behind(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="found none; run `rlflow matrix`"):
        open_store(results=tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_quick_error(tmp_path: Path) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(TrackingError, match=rf"expected a tracking server at http://127.0.0.1:{port}, found none"):
        open_store(f"http://127.0.0.1:{port}", results=tmp_path / "never")
    assert time.monotonic() - started < 5
    assert not (tmp_path / "never").exists()


def test_a_server_that_does_not_answer_is_one_quick_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "REACH_TIMEOUT_S", 0.3)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match=r"found none within 0\.3 s"):
            open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", results=tmp_path)


@pytest.mark.parametrize("uri", ["results/mlruns", "file:///tmp/mlruns"])
def test_plain_folders_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no longer writes to plain folders"):
        open_store(uri, results=tmp_path)


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="expected a folder that can be written"):
        open_store(results=tmp_path / "file" / "results")


def test_a_file_that_is_no_database_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are not the tables that you are looking for" * 10)
    with pytest.raises(TrackingError, match="expected an MLflow store at sqlite:///"):
        open_store(results=tmp_path)
