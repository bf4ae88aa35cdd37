"""A store that goes away in the middle of a run and comes back: nothing lost, nothing doubled."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from rlflow import journal, tracking
from rlflow.cell import CellIdentity
from rlflow.journal import Journal, Write, batches
from rlflow.leaderboard import read_board
from rlflow.store import Store, TrackingError, history, may_pass, open_store
from rlflow.tracking import start_seed
from tests.servers import Server

pytest_plugins = ("tests.mlflow_fixtures",)

Make = Callable[..., CellIdentity]
CONFIG = {"trainer": {"seed": 0}}


def points(store: Store, run_id: str, name: str = "eval/score") -> list[tuple[int, float]]:
    """The recorded curve."""
    return [(point.step, point.value) for point in history(store, run_id, name)]


def test_a_server_that_drops_in_mid_run_gets_everything_once_when_it_returns(
    server: Server, identity: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RETRY_AFTER_S", 0.0)
    store = open_store(server.uri, results=tmp_path / "results")
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.log({"eval/score": 1.0}, 0)
    tracker.flush()
    server.stop()
    (tmp_path / "grid.png").write_bytes(b"png")
    for step in (100, 200, 300):
        tracker.log({"eval/score": float(step)}, step)
        tracker.flush()
    tracker.artifact(tmp_path / "grid.png", "samples")
    assert len(list(store.journal_folder.iterdir())) == 1
    server.start()
    tracker.log({"eval/score": 400.0}, 400)
    tracker.flush()
    assert list(store.journal_folder.iterdir()) == []
    tracker.finish("finished")
    assert points(store, tracker.run_id) == [(0, 1.0), (100, 100.0), (200, 200.0), (300, 300.0), (400, 400.0)]
    assert [file.path for file in store.client.list_artifacts(tracker.run_id, "samples")] == ["samples/grid.png"]
    (cell,) = read_board(store, "toy@1").entrants[0].cells.values()
    # (200 + 300 + 400) / 3
    assert cell.raw.tolist() == [300.0]


def test_what_a_dead_process_kept_is_delivered_by_the_next_attempt(
    server: Server, identity: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.2)
    store = open_store(server.uri, results=tmp_path / "results")
    first = start_seed(store, identity(), seed=0, config=CONFIG)
    first.log({"eval/score": 0.0}, 0)
    server.stop()
    for step in (200, 300):
        first.log({"eval/score": float(step)}, step)
    with pytest.raises(TrackingError, match=r"1 writes are kept in .*\.jsonl and are delivered when the same command"):
        first.finish("finished")
    server.start()
    store.client.set_tag(first.run_id, "rlflow.heartbeat", "0")
    second = start_seed(store, identity(), seed=0, config=CONFIG, resume=True)
    assert (second.run_id, second.last_step) == (first.run_id, 300)
    second.log({"eval/score": 300.0}, 300)
    second.log({"eval/score": 400.0}, 400)
    second.finish("finished")
    assert points(store, first.run_id) == [(0, 0.0), (200, 200.0), (300, 300.0), (400, 400.0)]


def test_a_write_whose_answer_was_lost_is_not_doubled(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    way = Journal(store, tracker.run_id)
    for _ in range(2):
        way.send(Write(metrics=[("eval/score", 0.5, 1_700_000_000_000, 100)], tags={"rlflow.detail": "twice"}))
    assert points(store, tracker.run_id) == [(100, 0.5)]
    tracker.finish("interrupted")


class Away:
    """A client that fails with `error` until it is cleared."""

    def __init__(self, client: object, error: Exception | None) -> None:
        self.client, self.error = client, error

    def __getattr__(self, name: str) -> object:
        if self.error is not None:
            raise self.error
        return getattr(self.client, name)


def test_a_locked_database_delays_and_a_refused_write_raises(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.finish("interrupted")
    away = Away(store.client, MlflowException("database is locked"))
    way = Journal(replace(store, client=away), tracker.run_id)  # type: ignore[arg-type]
    way.send(Write(metrics=[("eval/score", 0.5, 1, 100)]))
    way.send(Write(metrics=[("eval/score", 0.6, 1, 200)]))
    kept = store.journal_folder / f"{tracker.run_id}.jsonl"
    assert [json.loads(line)["metrics"][0][3] for line in kept.read_text().splitlines()] == [100, 200]
    with kept.open("a") as file:
        file.write('{"metrics": [["eval/sc')
    # A crash has cut the third line short; the new process delivers the two whole ones, in order.
    Journal(store, tracker.run_id).deliver(0.0)
    assert points(store, tracker.run_id) == [(100, 0.5), (200, 0.6)]
    assert not kept.exists()
    with pytest.raises(MlflowException, match="Invalid"):
        Journal(store, tracker.run_id).send(Write(metrics=[("bad#name", 0.5, 1, 100)]))


def test_half_a_line_is_never_joined_by_the_next_one(
    store: Store, identity: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.finish("interrupted")
    client = Away(store.client, MlflowException("database is locked"))
    away: Store = replace(store, client=client)  # type: ignore[arg-type]
    kept = store.journal_folder / f"{tracker.run_id}.jsonl"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Journal(away, tracker.run_id).send(Write(metrics=[("eval/score", 0.1, 1, 0)]))
    assert not kept.exists()
    Journal(away, tracker.run_id).send(Write(metrics=[("eval/score", 0.5, 1, 100)]))
    with kept.open("a") as file:
        file.write('{"metrics": [["eval/sc')
    # The next process keeps more behind what the crash has cut short.
    Journal(away, tracker.run_id).send(Write(metrics=[("eval/score", 0.6, 1, 200)]))
    Journal(store, tracker.run_id).deliver(0.0)
    assert points(store, tracker.run_id) == [(100, 0.5), (200, 0.6)]


def test_errors_that_may_pass() -> None:
    assert may_pass(ConnectionResetError())
    assert may_pass(MlflowException("API request failed"))
    assert not may_pass(MlflowException.invalid_parameter_value("a name"))
    assert not may_pass(ValueError("a bug"))


def test_batches_are_of_a_size_that_mlflow_takes() -> None:
    writes = batches([("loss/a", 0.0, 1, step) for step in range(2001)])
    assert [len(write.metrics) for write in writes] == [1000, 1000, 1]
