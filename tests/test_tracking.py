"""Writing MLflow: layout, resume without doubled points, summaries that plain MLflow can read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlflow import provenance, tracking, tracking_cells
from rlflow.cell import CellIdentity, SuitePlan
from rlflow.store import Store, TrackingError, ensure_experiment, history, search_runs
from rlflow.tracking import SeedTracker, ensure_board, stale, start_seed
from rlflow.tracking_cells import ensure_cell, summarise_cell

pytest_plugins = ("tests.mlflow_fixtures",)

Make = Callable[..., CellIdentity]
EXACT = 1e-9
CONFIG = {
    "algorithm": {"name": "ppo", "clip": 0.2},
    "task": {"sizes": [4, 8], "prompt": "x" * 6000},
    "trainer": {"seed": 0},
}


def run_seed(store: Store, identity: CellIdentity, seed: int, final: float) -> SeedTracker:
    """A finished seed whose last three evaluations are `final`."""
    tracker = start_seed(store, identity, seed=seed, config=CONFIG)
    for step, score in [(0, 0.0), (100, 1.0), (200, final), (300, final), (400, final)]:
        tracker.log({"eval/score": score, "cost/wall_s": step / 100}, step)
    tracker.finish("finished")
    return tracker


def test_a_seed_is_nested_under_its_cell_in_the_experiment_of_the_suite(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(note="GRPO here"), seed=3, config=CONFIG)
    cell = store.client.get_run(tracker.cell_run_id)
    run = store.client.get_run(tracker.run_id)
    assert run.info.experiment_id == cell.info.experiment_id == ensure_experiment(store, "toy@1")
    assert run.data.tags["mlflow.parentRunId"] == tracker.cell_run_id
    assert (cell.data.tags["rlflow.kind"], run.data.tags["rlflow.kind"]) == ("cell", "seed")
    expected = {
        "rlflow.algorithm": "ppo",
        "rlflow.task": "toy/walk",
        "rlflow.policy": "gaussian",
        "rlflow.cell_id": "v1-ppo-toy-walk-gaussian",
        "rlflow.anchor_base": "0.0",
        "rlflow.anchor_reference": "10.0",
        "rlflow.note": "GRPO here",
    }
    assert expected.items() <= cell.data.tags.items()
    assert expected.items() <= run.data.tags.items()
    assert json.loads(cell.data.tags["rlflow.seeds"]) == [3]
    assert {"rlflow.hardware", "rlflow.git_sha", "rlflow.git_dirty", "rlflow.lock_sha"} <= set(run.data.tags)
    assert (run.data.tags["rlflow.attempt"], run.data.tags["rlflow.outcome"], run.info.status) == (
        "1",
        "running",
        "RUNNING",
    )
    tracker.finish("interrupted")


def test_the_config_is_logged_whole(store: Store, identity: Make, tmp_path: Path) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.finish("failed", "disk full")
    params = store.client.get_run(tracker.run_id).data.params
    assert {"algorithm.name": "ppo", "algorithm.clip": "0.2", "task.sizes": "[4, 8]"}.items() <= params.items()
    assert params["task.prompt"].endswith("... (whole in config.yaml)")
    text = Path(store.client.download_artifacts(tracker.run_id, "config.yaml", str(tmp_path))).read_text()
    assert "x" * 6000 in text
    environment = Path(store.client.download_artifacts(tracker.run_id, "environment.txt", str(tmp_path))).read_text()
    assert "mlflow==" in environment


def test_metrics_are_at_samples_and_nothing_infinite_is_stored(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.log({"loss/policy": 0.5, "reward/mean": float("inf")}, 160)
    tracker.log({"loss/policy": 0.25, "reward/mean": 2.0}, 320)
    assert history(store, tracker.run_id, "loss/policy") == []
    tracker.flush()
    assert [(p.step, p.value) for p in history(store, tracker.run_id, "loss/policy")] == [(160, 0.5), (320, 0.25)]
    assert [(p.step, p.value) for p in history(store, tracker.run_id, "reward/mean")] == [(320, 2.0)]
    tracker.finish("interrupted")


def test_artifacts_land_in_the_run(store: Store, identity: Make, tmp_path: Path) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    (tmp_path / "grid.png").write_bytes(b"png")
    tracker.artifact(tmp_path / "grid.png", "samples")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        tracker.artifact(tmp_path / "none.png")
    tracker.finish("interrupted")
    assert [file.path for file in store.client.list_artifacts(tracker.run_id, "samples")] == ["samples/grid.png"]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("finished", "FINISHED"), ("diverged", "FAILED"), ("interrupted", "KILLED"), ("failed", "FAILED")],
)
def test_every_outcome_ends_the_run(store: Store, identity: Make, outcome: str, status: str) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.finish(outcome, "loss at 320")  # type: ignore[arg-type]
    tracker.finish("failed", "a second call is ignored")
    run = store.client.get_run(tracker.run_id)
    assert run.info.status == status
    assert (run.data.tags["rlflow.outcome"], run.data.tags["rlflow.detail"]) == (outcome, "loss at 320")
    with pytest.raises(TrackingError, match="already finished"):
        tracker.log({"eval/score": 1.0}, 10)


def test_the_cell_summarises_its_seeds_and_counts_divergence_as_the_untrained_policy(
    store: Store, identity: Make
) -> None:
    cell = ensure_cell(store, identity(), seeds=(0, 1, 2), config=CONFIG)
    run_seed(store, identity(), 0, 6.0)
    run_seed(store, identity(), 1, 9.0)
    assert store.client.get_run(cell).info.status == "RUNNING"
    start_seed(store, identity(), seed=2, config=CONFIG).finish("diverged", "loss at 160")
    run = store.client.get_run(cell)
    # raw: (6 + 9 + base 0) / 3 = 5, normalised by anchors 0 and 10; se: sqrt((1 + 16 + 25) / 2 / 3)
    assert run.data.metrics["score/n"] == 3
    assert run.data.metrics["score/mean"] == pytest.approx(5.0, abs=EXACT)
    assert run.data.metrics["score/normalised"] == pytest.approx(0.5, abs=EXACT)
    assert run.data.metrics["score/se"] == pytest.approx(7**0.5, abs=EXACT)
    assert run.data.metrics["cost/wall_s"] == 8.0
    assert run.info.status == "FINISHED"


def test_a_cell_gets_its_curve_when_its_last_planned_seed_has_ended(
    store: Store, identity: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_board(store, "toy@1", SuitePlan(digest="d1", algorithms=("ppo",), tasks=("toy/walk",), seeds=(0, 1)))
    cell = run_seed(store, identity(), 0, 6.0).cell_run_id
    assert curve_of(store, cell) is None
    start_seed(store, identity(), seed=1, config=CONFIG).finish("diverged", "loss at 100")
    curve = curve_of(store, cell)
    assert ">mean of 2<" in (curve or "no curve")
    # A figure that cannot be drawn costs no seed its result.
    monkeypatch.setattr("rlflow.figures_curves.cell_svg", lambda _: 1 / 0)
    extra = run_seed(store, identity(), 2, 6.0)
    assert store.client.get_run(extra.run_id).data.tags["rlflow.outcome"] == "finished"
    assert "curve.svg of cell v1-ppo-toy-walk-gaussian could not be drawn: division by zero" in caplog.text
    assert curve_of(store, cell) == curve


def curve_of(store: Store, cell_run: str) -> str | None:
    """The cell's curve.svg, or None where there is none."""
    if "curve.svg" not in {file.path for file in store.client.list_artifacts(cell_run)}:
        return None
    return Path(store.client.download_artifacts(cell_run, "curve.svg")).read_text()


def test_a_resumed_run_is_the_same_run_and_no_point_is_doubled(store: Store, identity: Make) -> None:
    first = start_seed(store, identity(), seed=0, config=CONFIG)
    for step in (0, 100, 200):
        first.log({"eval/score": float(step)}, step)
    first.log({"loss/policy": 1.0}, 300)
    first.finish("interrupted")
    second = start_seed(store, identity(), seed=0, config=CONFIG, resume=True)
    assert (second.run_id, second.attempt, second.last_step) == (first.run_id, 2, 300)
    # The checkpoint was written at step 100: 200 and 300 are trained again.
    for step in (200, 300, 400):
        second.log({"eval/score": float(step), "loss/policy": 1.0}, step)
    second.finish("finished")
    assert [p.step for p in history(store, first.run_id, "eval/score")] == [0, 100, 200, 300, 400]
    assert [p.step for p in history(store, first.run_id, "loss/policy")] == [300, 400]
    run = store.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["rlflow.attempt"]) == ("FINISHED", "2")
    # (200 + 300 + 400) / 3
    assert run.data.metrics["score/final"] == pytest.approx(300.0, abs=EXACT)


def test_a_restart_without_a_checkpoint_keeps_the_old_run_as_superseded(store: Store, identity: Make) -> None:
    first = start_seed(store, identity(), seed=0, config=CONFIG)
    first.finish("failed", "out of memory")
    second = start_seed(store, identity(), seed=0, config=CONFIG)
    assert (second.run_id != first.run_id, second.attempt, second.last_step) == (True, 2, -1)
    assert store.client.get_run(first.run_id).data.tags["rlflow.kind"] == "superseded"
    second.finish("interrupted")


def test_a_result_is_never_replaced(store: Store, identity: Make) -> None:
    run_seed(store, identity(), 0, 6.0)
    with pytest.raises(TrackingError, match="seed 0 of cell v1-ppo-toy-walk-gaussian to have no result"):
        start_seed(store, identity(), seed=0, config=CONFIG)


def test_a_seed_that_another_process_runs_is_refused(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    with pytest.raises(TrackingError, match="found it running in process"):
        start_seed(store, identity(), seed=0, config=CONFIG)
    tracker.finish("interrupted")


def test_a_dead_process_is_recognised_by_its_pid_or_its_heartbeat() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    now = time.time()
    running = {"rlflow.outcome": "running", "rlflow.heartbeat": f"{now:.0f}", "rlflow.process": provenance.process()}
    assert not stale(running)
    assert stale(running | {"rlflow.process": f"{provenance.machine()}:{dead.pid}"})
    assert stale(running, now_s=now + tracking.STALE_AFTER_S + 2)
    # On another machine only the heartbeat can tell.
    assert not stale(running | {"rlflow.process": f"elsewhere-00000000:{dead.pid}"})
    assert not stale(running | {"rlflow.outcome": "finished"}, now_s=now + 1e6)


def test_the_heartbeat_beats_while_the_trainer_is_busy(
    store: Store, identity: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "HEARTBEAT_S", 0.05)
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    store.client.set_tag(tracker.run_id, "rlflow.heartbeat", "0")
    deadline = time.monotonic() + 10
    while store.client.get_run(tracker.run_id).data.tags["rlflow.heartbeat"] == "0":
        assert time.monotonic() < deadline, "no heartbeat within 10 s"
        time.sleep(0.02)
    tracker.finish("interrupted")


def test_cells_and_boards_are_created_once(store: Store, identity: Make) -> None:
    cell = ensure_cell(store, identity(), seeds=(0, 1), config=CONFIG)
    assert ensure_cell(store, identity(), seeds=(1, 2)) == cell
    assert json.loads(store.client.get_run(cell).data.tags["rlflow.seeds"]) == [0, 1, 2]
    board = ensure_board(store, "toy@1")
    plan = SuitePlan(digest="d1", algorithms=("ppo",), tasks=("toy/walk",), seeds=(0, 1))
    assert ensure_board(store, "toy@1", plan) == board
    experiment = ensure_experiment(store, "toy@1")
    assert [run.info.run_id for run in search_runs(store, experiment, {"kind": "leaderboard"})] == [board]
    assert json.loads(store.client.get_run(board).data.tags["rlflow.tasks"]) == ["toy/walk"]


def test_a_cell_that_is_there_gets_what_it_lacks_and_nothing_else(
    store: Store, identity: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = ensure_cell(store, identity(), seeds=(0, 1))
    written: list[dict[str, str]] = []
    monkeypatch.setattr(tracking_cells, "set_tags", lambda store, run_id, tags: written.append(dict(tags)))
    # Machines without a lock in common would take each other's seeds away if they wrote what they have read.
    assert ensure_cell(store, identity(), seeds=(1,)) == cell
    assert written == []
    ensure_cell(store, identity(note="tight bound"), seeds=(0, 2))
    assert written == [{"rlflow.seeds": "[0, 1, 2]", "rlflow.note": "tight bound"}]


def test_a_summary_that_missed_a_seed_is_mended(store: Store, identity: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_seed(store, identity(), 0, final=2.0)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "summarise", lambda *_: None)
        cell = run_seed(store, identity(), 1, final=4.0).cell_run_id
    assert store.client.get_run(cell).data.metrics["score/mean"] == pytest.approx(2.0, abs=EXACT)
    summarise_cell(store, identity())
    metrics = store.client.get_run(cell).data.metrics
    # (2 + 4) / 2 of two seeds.
    assert metrics["score/mean"] == pytest.approx(3.0, abs=EXACT)
    assert metrics["score/n"] == pytest.approx(2.0, abs=EXACT)


def test_plain_mlflow_and_pandas_print_the_board(store: Store, identity: Make) -> None:
    run_seed(store, identity("ppo", "toy/walk"), 0, 6.0)
    run_seed(store, identity("ppo", "toy/jump"), 0, 2.0)
    run_seed(store, identity("fpo", "toy/walk"), 0, 9.0)
    run_seed(store, identity("fpo", "toy/jump"), 0, 5.0)
    lines = f"""
import mlflow
mlflow.set_tracking_uri("{store.uri}")
cells = mlflow.search_runs(experiment_names=["toy@1"], filter_string="tags.`rlflow.kind` = 'cell'")
board = cells.pivot_table(index="tags.rlflow.algorithm", columns="tags.rlflow.task", values="metrics.score/mean")
board["M"] = cells.groupby("tags.rlflow.algorithm")["metrics.score/normalised"].mean()
print(board.sort_values("M", ascending=False).to_csv())
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    # M of fpo: (0.9 + 0.5) / 2, of ppo: (0.6 + 0.2) / 2
    assert done.stdout.split() == ["tags.rlflow.algorithm,toy/jump,toy/walk,M", "fpo,5.0,9.0,0.7", "ppo,2.0,6.0,0.4"]
