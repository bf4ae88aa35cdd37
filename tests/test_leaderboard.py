"""Reading the board back from a real MLflow store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlflow import provenance
from rlflow.cell import CellIdentity, SuitePlan
from rlflow.leaderboard import read_board, read_cell, read_cells, read_states
from rlflow.store import Store, TrackingError, ensure_experiment, log_metrics, set_tags
from rlflow.tracking import ensure_board, start_seed
from rlflow.tracking_cells import ensure_cell
from tests.mlflow_fixtures import served

pytest_plugins = ("tests.mlflow_fixtures",)

Make = Callable[..., CellIdentity]
EXACT = 1e-9
CONFIG = {"algorithm": {"clip": 0.2}}


def run_seed(store: Store, identity: CellIdentity, seed: int, scores: list[float]) -> str:
    """A finished seed with `scores` at equal fractions of the budget of 400 samples."""
    tracker = start_seed(store, identity, seed=seed, config=CONFIG)
    for index, score in enumerate(scores):
        tracker.log({"eval/score": score, "cost/wall_s": float(index)}, index * 400 // (len(scores) - 1))
    tracker.finish("finished")
    return tracker.run_id


def test_the_board_is_read_from_the_curves(store: Store, identity: Make) -> None:
    run_seed(store, identity("ppo", note="tight"), 0, [0, 3, 6, 6, 6])
    run_seed(store, identity("ppo", note="tight"), 1, [0, 1, 7, 8, 9])
    run_seed(store, identity("fpo"), 0, [0, 9, 3, 3, 3])
    run_seed(store, identity("fpo"), 1, [0, 9, 2, 2, 2])
    board = read_board(store, "toy@1")
    assert board.columns == ("toy/walk",)
    # ppo: finals 6 and 8 of anchors 0 and 10; fpo: 3 and 2, although both reached 9
    assert [(e.algorithm, e.headline) for e in board.ranked] == [
        ("ppo", pytest.approx(0.7, abs=EXACT)),
        ("fpo", pytest.approx(0.25, abs=EXACT)),
    ]
    cell = board.ranked[0].cells["toy/walk"]
    assert (cell.raw.tolist(), cell.launched, cell.wall_s, cell.note) == ([6.0, 8.0], (0, 1), 8.0, "tight")
    assert cell.seeds[1].steps == (0, 100, 200, 300, 400)
    assert cell.seeds[1].scores == (0.0, 1.0, 7.0, 8.0, 9.0)
    assert (board.footnotes, board.warnings) == (("tight",), ())
    # a second per evaluation, 100 samples apart
    assert (cell.seeds[1].seconds, cell.seeds[1].on_gpu) == ((0.0, 1.0, 2.0, 3.0, 4.0), False)
    assert cell.seeds[1].hardware == provenance.hardware()
    assert board.provenance[0].startswith("commit ")
    assert board == read_board(store, "toy@1")


def test_seconds_are_read_at_the_evaluations_or_not_at_all(store: Store, identity: Make) -> None:
    for seed, last_cost in ((0, {"cost/wall_s": 40.0, "cost/gpu_s": 40.0}), (1, {})):
        tracker = start_seed(store, identity(), seed=seed, config=CONFIG)
        for step in (0, 100, 200, 300):
            tracker.log({"eval/score": 1.0, "cost/wall_s": step / 10}, step)
            tracker.log({"cost/wall_s": step / 10 + 5}, step + 50)
        tracker.log({"eval/score": 1.0, **last_cost}, 400)
        tracker.finish("finished")
    first, second = read_board(store, "toy@1").entrants[0].cells["toy/walk"].seeds
    assert (first.seconds, first.on_gpu) == ((0.0, 10.0, 20.0, 30.0, 40.0), True)
    # No cost at the last evaluation: no curve against seconds.
    assert (second.seconds, second.on_gpu) == ((), False)


def test_what_a_run_has_spent_is_its_last_value(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    for step in (0, 100, 200, 300, 400):
        spent = {"cost/wall_s": step / 10, "cost/tokens": step * 8.0, "cost/optimizer_steps": step / 50}
        tracker.log({"eval/score": 1.0, **spent, "cost/rollout_s": 1.0}, step)
    tracker.finish("finished")
    (seed,) = read_board(store, "toy@1").entrants[0].cells["toy/walk"].seeds
    assert seed.costs == {"wall_s": 40.0, "tokens": 3200.0, "optimizer_steps": 8.0}


def test_one_cell_is_read_like_the_board(store: Store, identity: Make) -> None:
    run_seed(store, identity("ppo"), 0, [0, 3, 6, 6, 6])
    run_seed(store, identity("ppo"), 1, [0, 1, 7, 8, 9])
    run_seed(store, identity("fpo"), 0, [0, 9, 3, 3, 3])
    (ppo,) = [entrant for entrant in read_board(store, "toy@1").entrants if entrant.algorithm == "ppo"]
    assert read_cell(store, "toy@1", identity("ppo").cell_id) == ppo.cells["toy/walk"]


def test_guards_are_read_before_training_and_at_the_end(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(guards=("quality", "absent")), seed=0, config=CONFIG)
    for step, quality in ((0, 0.8), (200, 0.9), (400, 0.6)):
        tracker.log({"eval/score": 1.0, "eval/quality": quality, "eval/other": 1.0}, step)
    tracker.finish("finished")
    (entrant,) = read_board(store, "toy@1").entrants
    assert entrant.cells["toy/walk"].seeds[0].guards == {"quality": (0.8, 0.6)}


def test_every_launched_seed_is_counted(store: Store, identity: Make) -> None:
    plan = SuitePlan(digest="d1", algorithms=("ppo", "fpo"), tasks=("toy/walk",), seeds=(0, 1, 2))
    ensure_board(store, "toy@1", plan)
    run_seed(store, identity("ppo"), 0, [0, 6, 6, 6])
    start_seed(store, identity("ppo"), seed=1, config=CONFIG).finish("failed", "out of memory")
    start_seed(store, identity("ppo"), seed=2, config=CONFIG).finish("diverged", "loss at 100")
    board = read_board(store, "toy@1")
    assert (board.digest, board.ranked) == ("d1", ())
    cell = next(e for e in board.entrants if e.algorithm == "ppo").cells["toy/walk"]
    # The failed seed is owed; the diverged one counts as the untrained policy.
    assert (cell.raw.tolist(), len(cell.launched), cell.complete) == ([6.0, 0.0], 3, False)
    assert [seed.outcome for seed in cell.seeds] == ["finished", "failed", "diverged"]
    assert [e.algorithm for e in board.entrants] == ["fpo", "ppo"]


def test_a_planned_seed_that_never_started_is_owed(store: Store, identity: Make) -> None:
    ensure_board(store, "toy@1", SuitePlan(digest="d1", algorithms=("ppo",), tasks=("toy/walk",), seeds=(0, 1, 2)))
    run_seed(store, identity(), 0, [0, 6, 6, 6])
    (entrant,) = read_board(store, "toy@1").entrants
    assert (entrant.cells["toy/walk"].launched, entrant.complete) == ((0, 1, 2), False)


def test_runs_of_others_are_ignored_and_counted(store: Store, identity: Make) -> None:
    run_seed(store, identity(), 0, [0, 6, 6, 6])
    experiment = ensure_experiment(store, "toy@1")
    store.client.create_run(experiment)
    # Somebody has given the kinds of rlflow to runs of their own, which have nothing else of it.
    for kind in ("seed", "cell"):
        store.client.create_run(experiment, tags={"rlflow.kind": kind, "rlflow.cell_id": identity().cell_id})
    board = read_board(store, "toy@1")
    assert board.warnings == ("3 runs of the experiment were not written by rlflow and are ignored",)
    assert board.ranked[0].headline == pytest.approx(0.6, abs=EXACT)
    assert [seed.state for seed in read_states(store, "toy@1").values()] == ["finished"]
    assert len(read_cells(store, "toy@1")) == 1


def test_a_point_that_was_doubled_counts_once(store: Store, identity: Make) -> None:
    run_id = run_seed(store, identity(), 0, [0, 6, 6, 6, 6])
    log_metrics(store, run_id, {"eval/score": 9.0}, 400)
    # (6 + 6 + 9) / 3: the point that was written last
    assert read_board(store, "toy@1").ranked[0].cells["toy/walk"].raw.tolist() == [7.0]


def test_a_finished_seed_that_is_short_of_its_budget_does_not_count(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config=CONFIG)
    for step in (0, 100, 200):
        tracker.log({"eval/score": 1.0}, step)
    tracker.finish("finished")
    board = read_board(store, "toy@1")
    assert board.ranked == ()
    assert "seed 0 is finished but does not count: expected evaluations up to 400 samples" in board.warnings[0]


def test_a_changed_configuration_replaces_a_cell_and_says_so(store: Store, identity: Make) -> None:
    run_seed(store, identity(), 0, [0, 9, 9, 9])
    run_seed(store, identity(cell_id="v1-changed"), 0, [0, 6, 6, 6])
    board = read_board(store, "toy@1")
    assert board.ranked[0].headline == pytest.approx(0.6, abs=EXACT)
    assert "is replaced by the newer v1-changed" in board.warnings[0]


def test_the_first_result_of_a_seed_counts(store: Store, identity: Make) -> None:
    run_seed(store, identity(), 0, [0, 6, 6, 6])
    lucky = run_seed(store, identity(), 1, [0, 9, 9, 9])
    set_tags(store, lucky, {"rlflow.seed": "0"})
    board = read_board(store, "toy@1")
    assert "seed 0: several results, the first one counts" in board.warnings[0]
    cell = board.entrants[0].cells["toy/walk"]
    assert (cell.raw.tolist(), cell.complete) == ([6.0], False)


def test_states_tell_what_the_matrix_has_to_do(store: Store, identity: Make) -> None:
    run_seed(store, identity(), 0, [0, 6, 6, 6])
    start_seed(store, identity(), seed=1, config=CONFIG).finish("interrupted")
    running = start_seed(store, identity(), seed=2, config=CONFIG)
    lost = start_seed(store, identity(), seed=3, config=CONFIG)
    set_tags(store, lost.run_id, {"rlflow.heartbeat": "0"})
    states = read_states(store, "toy@1")
    cell_id = identity().cell_id
    assert {seed: states[cell_id, seed].state for seed in range(4)} == {
        0: "finished",
        1: "interrupted",
        2: "running",
        3: "stale",
    }
    assert (states[cell_id, 1].attempt, states[cell_id, 0].wall_s) == (1, 3.0)
    running.finish("interrupted")
    lost.finish("interrupted")


def test_cells_tell_their_configuration(store: Store, identity: Make) -> None:
    ensure_cell(store, identity("ppo"), seeds=(0, 1), config=CONFIG)
    (cell,) = read_cells(store, "toy@1")
    assert (cell.algorithm, cell.seeds, cell.params) == ("ppo", (0, 1), {"algorithm.clip": "0.2"})


def test_a_suite_that_has_not_run_is_named_with_those_that_have(store: Store, identity: Make) -> None:
    ensure_cell(store, identity(), seeds=(0,))
    with pytest.raises(TrackingError, match=r"'core@1' in sqlite.*found \['toy@1'\]; run `rlflow matrix` first"):
        read_board(store, "core@1")
    assert (read_states(store, "core@1"), read_cells(store, "core@1")) == ({}, [])


def test_a_server_and_its_database_tell_the_same(store: Store, identity: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # One cell and three seeds: more than one page.
    monkeypatch.setattr("rlflow.leaderboard_runs.PAGE", 2)
    for seed in range(3):
        run_seed(store, identity(guards=("score",)), seed, [0, 6, 6, 6])
    board = read_board(store, "toy@1")
    assert len(board.ranked[0].cells["toy/walk"].raw) == 3
    assert read_board(served(store), "toy@1") == board
    assert read_states(served(store), "toy@1") == read_states(store, "toy@1")
    assert read_cells(served(store), "toy@1") == read_cells(store, "toy@1")


def test_a_deleted_run_is_no_part_of_the_board(store: Store, identity: Make) -> None:
    run_seed(store, identity(), 0, [0, 6, 6, 6])
    store.client.delete_run(run_seed(store, identity(), 1, [0, 9, 9, 9]))
    assert read_board(store, "toy@1").entrants[0].cells["toy/walk"].raw.tolist() == [6.0]


def test_a_deleted_cell_is_missed_aloud(store: Store, identity: Make) -> None:
    run_seed(store, identity("ppo"), 0, [0, 6, 6, 6])
    run_seed(store, identity("fpo"), 0, [0, 3, 3, 3])
    run_seed(store, identity("fpo"), 1, [0, 3, 3, 3])
    cell = next(found for found in read_cells(store, "toy@1") if found.algorithm == "fpo")
    store.client.delete_run(cell.run_id)
    board = read_board(store, "toy@1")
    assert [entrant.algorithm for entrant in board.entrants] == ["ppo"]
    (warning,) = board.warnings
    assert warning.endswith(f"left out: `mlflow runs restore --run-id {cell.run_id}`")
    store.client.restore_run(cell.run_id)
    assert read_board(store, "toy@1").warnings == ()
