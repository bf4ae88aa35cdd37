"""From a suite to jobs, and the whole matrix through its command: skip, resume, refuse, survive."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rlflow.display import grid
from rlflow.leaderboard import CellRun, SeedState, read_states
from rlflow.matrix import (
    Job,
    MatrixError,
    estimate_s,
    make_jobs,
    plan_cells,
    refuse_other_configurations,
    selected,
    suite_plan,
)
from rlflow.registry import Entry, find
from rlflow.store import Store
from rlflow.suite import Suite, parse_suite
from rlflow.tracking import start_seed
from tests.matrix_command import Meanwhile, invoke, tags
from tests.mlflow_layout import assert_layout
from tests.toys import EXPERIMENT, SUITE

pytest_plugins = ("tests.mlflow_fixtures",)


@pytest.fixture
def suite() -> Suite:
    return parse_suite(SUITE, "toys.yaml")


def state(outcome: str, wall_s: float = 0.0) -> SeedState:
    return SeedState(run_id="r", state=outcome, detail="", attempt=1, wall_s=wall_s)


def test_cells_are_every_pair_of_the_suite_and_of_added_algorithms(suite: Suite) -> None:
    cells = plan_cells(suite, "quick", ["flowrl"])
    assert [cell.name for cell in cells] == ["ppo toy", "fpo toy", "flowrl toy"]
    assert {cell.identity.suite for cell in cells} == {EXPERIMENT}
    assert len({cell.identity.cell_id for cell in cells}) == 3
    assert suite_plan(suite, range(2), ["flowrl"]).algorithms == ("ppo", "fpo", "flowrl")


def test_a_variant_is_a_cell_of_its_own_and_has_to_differ() -> None:
    variant = "{name: ppo-wide, algorithm: ppo, settings: {algorithm.clip: %s}}"
    cells = plan_cells(parse_suite(SUITE.replace("[ppo, fpo]", f"[ppo, {variant % 0.4}]"), "toys.yaml"), "quick")
    assert [(cell.name, cell.plugins) for cell in cells] == [
        ("ppo toy", ("ppo", "toy")),
        ("ppo-wide toy", ("ppo", "toy")),
    ]
    assert [cell.resolved["algorithm"]["clip"] for cell in cells] == [0.2, 0.4]
    assert len({cell.identity.cell_id for cell in cells}) == 2
    with pytest.raises(MatrixError, match="ppo toy and ppo-wide toy have one configuration"):
        plan_cells(parse_suite(SUITE.replace("[ppo, fpo]", f"[ppo, {variant % 0.2}]"), "toys.yaml"), "quick")


def test_only_takes_text_and_patterns(suite: Suite) -> None:
    cells = plan_cells(suite, "quick")
    assert [cell.name for cell in selected(cells, "ppo")] == ["ppo toy"]
    assert [cell.name for cell in selected(cells, "f* toy")] == ["fpo toy"]
    with pytest.raises(MatrixError, match=r"matches none of 2 cells; did you mean ppo toy"):
        selected(cells, "pppo toy")


def test_seeds_are_outermost_and_states_come_from_the_store(suite: Suite, tmp_path: Path) -> None:
    cells = plan_cells(suite, "quick")
    ppo, fpo = (cell.identity.cell_id for cell in cells)
    recorded = {
        (ppo, 0): state("finished", 12.0),
        (fpo, 0): state("stale"),
        (ppo, 1): state("diverged"),
        (fpo, 1): state("running"),
        (ppo, 2): state("failed"),
    }
    first = make_jobs(cells, range(4), recorded, tmp_path)
    (first[4].folder).mkdir(parents=True)
    (first[4].folder / "last.ckpt").touch()
    jobs = make_jobs(cells, range(4), recorded, tmp_path)
    assert [(job.cell.identity.algorithm, job.seed) for job in jobs[:3]] == [("ppo", 0), ("fpo", 0), ("ppo", 1)]
    # Without a checkpoint there is nothing to continue: fpo 0 starts anew, ppo 2 goes on.
    assert [job.state for job in jobs] == [
        "finished", "to do", "diverged", "running", "resume", "to do", "to do", "to do"
    ]  # fmt: skip
    assert [job.pending for job in jobs] == [False, True, False, False, True, True, True, True]
    assert len({job.folder for job in jobs}) == 8

    # More seeds than columns are numbers by state.
    console = Console(width=80)
    with console.capture() as shown:
        console.print(grid(make_jobs(cells, range(7), recorded, tmp_path), {}, 2))
    lines = [line.split() for line in shown.get().splitlines()]
    assert lines[:3] == [
        ["cell", "diverged", "finished", "resume", "running", "to", "do"],
        ["ppo", "toy", "1", "0", "2", "3-6"],
        ["fpo", "toy", "1", "0,", "2-6"],
    ]


def test_the_estimate_is_the_mean_of_the_cell_else_of_the_task(suite: Suite, tmp_path: Path) -> None:
    cells = plan_cells(suite, "quick")
    ppo, fpo = (cell.identity.cell_id for cell in cells)
    assert estimate_s(make_jobs(cells, range(3), {}, tmp_path)) == {}
    recorded = {(ppo, 0): state("finished", 10.0), (ppo, 1): state("finished", 20.0)}
    estimates = estimate_s(make_jobs(cells, range(3), recorded, tmp_path))
    assert estimates == {(ppo, 2): 15.0, (fpo, 0): 15.0, (fpo, 1): 15.0, (fpo, 2): 15.0}


def test_a_plan_carries_seed_threads_and_checkpoint(suite: Suite, tmp_path: Path) -> None:
    job = Job(cell=plan_cells(suite, "quick")[0], seed=3, state="resume", wall_s=0.0, folder=tmp_path)
    plan = job.plan(tracking_uri="sqlite:///x.db", results=tmp_path, num_threads=2)
    assert (plan.seed, plan.resolved["trainer"]["num_threads"], plan.resume) == (3, 2, True)
    assert job.cell.resolved["trainer"]["seed"] == 0


def test_another_configuration_under_the_same_cell_is_refused_with_the_difference(suite: Suite) -> None:
    cells = plan_cells(suite, "quick")
    (other, _) = plan_cells(parse_suite(SUITE.replace("96", "128"), "toys.yaml"), "quick")
    recorded = CellRun(
        run_id="r", cell_id=other.identity.cell_id, algorithm="ppo", task="toy", policy="gaussian", seeds=(0,),
        params=dict(other.params),
    )  # fmt: skip
    with pytest.raises(MatrixError, match=r"trainer.budget: planned 96, recorded 128"):
        refuse_other_configurations(cells, [recorded])
    refuse_other_configurations(cells[1:], [recorded])


def test_a_matrix_is_idempotent_refuses_changes_and_adds_algorithms(store: Store, tmp_path: Path) -> None:
    suite, results = tmp_path / "toys.yaml", store.lock_path.parent
    suite.write_text(SUITE)
    first = invoke(suite, results)
    assert first.exit_code == 0, first.output
    assert len(re.findall(r"finished +(ppo|fpo) toy seed 0", first.output)) == 2
    states = read_states(store, EXPERIMENT)
    assert [seed.state for seed in states.values()] == ["finished", "finished"]
    board = results / "quick" / "toys@1"
    assert {"leaderboard.md", "leaderboard.html", "leaderboard.csv"} <= {path.name for path in board.iterdir()}

    assert_layout(store, EXPERIMENT, parse_suite(SUITE, "toys.yaml").digest, [0, 32, 64, 96])

    added = invoke(suite, results, "--add", "reinforce_pp")
    assert added.exit_code == 0, added.output
    assert "1 of 3 seeds to run" in added.output
    assert "finished    reinforce_pp toy seed 0" in added.output
    after = read_states(store, EXPERIMENT)
    assert {key: after[key].run_id for key in states} == {key: seed.run_id for key, seed in states.items()}
    assert "reinforce_pp" in (board / "leaderboard.md").read_text()

    suite.write_text(SUITE.replace("trainer.budget: 96", "trainer.budget: 112"))
    refused = invoke(suite, results)
    assert refused.exit_code == 2
    assert "trainer.budget: planned 112, recorded 96" in refused.output
    assert len(read_states(store, EXPERIMENT)) == 3


def test_a_kill_takes_one_seed_down_and_ctrl_c_leaves_everything_to_continue(store: Store, tmp_path: Path) -> None:
    suite, results, experiment = tmp_path / "toys.yaml", store.lock_path.parent, "toys@1-endless"
    suite.write_text(SUITE)

    def kill_and_interrupt(during: Meanwhile) -> None:
        during.wait_until(lambda: len(list(results.glob("runs/toys@1-endless/*/seed0/last.ckpt"))) == 2)
        os.kill(int(tags(store, experiment, "fpo")["rlflow.process"].rpartition(":")[2]), signal.SIGKILL)
        time.sleep(1.0)
        during.interrupt()

    cut = invoke(suite, results, "--budget", "endless", meanwhile=kill_and_interrupt)
    assert cut.exit_code == 130, cut.output
    assert re.search(r"failed +fpo toy seed 0", cut.output)
    assert "killed by signal 9" in cut.output
    assert re.search(r"interrupted +ppo toy seed 0", cut.output)
    assert sorted(seed.state for seed in read_states(store, experiment).values()) == ["failed", "interrupted"]
    recorded = {name: tags(store, experiment, name)["mlflow.parentRunId"] for name in ("ppo", "fpo")}

    # A suite that is half run is not gone on with under other settings.
    suite.write_text(SUITE.replace("trainer.budget: 16000000", "trainer.budget: 32000000"))
    edited = invoke(suite, results, "--budget", "endless")
    assert (edited.exit_code, "trainer.budget: planned 32000000, recorded 16000000" in edited.output) == (2, True)
    suite.write_text(SUITE)

    # Both go on in the same MLflow runs.
    def interrupt(during: Meanwhile) -> None:
        during.wait_until(
            lambda: [tags(store, experiment, name)["rlflow.attempt"] for name in ("ppo", "fpo")] == ["2", "2"]
        )
        time.sleep(1.0)
        during.interrupt()

    again = invoke(suite, results, "--budget", "endless", meanwhile=interrupt)
    assert again.exit_code == 130, again.output
    assert len(re.findall(r"continued +(ppo|fpo) toy seed 0", again.output)) == 2
    assert [seed.state for seed in read_states(store, experiment).values()] == ["interrupted", "interrupted"]
    assert {name: tags(store, experiment, name)["mlflow.parentRunId"] for name in ("ppo", "fpo")} == recorded


def test_two_matrices_do_not_run_one_suite_at_once(store: Store, tmp_path: Path) -> None:
    suite, results = tmp_path / "toys.yaml", store.lock_path.parent
    suite.write_text(SUITE)
    (results / "locks").mkdir()
    with (results / "locks" / f"{EXPERIMENT}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        refused = invoke(suite, results)
    assert refused.exit_code == 2
    assert f"another `rlflow matrix` is running {EXPERIMENT}" in refused.output
    # What is recorded is not even looked at: it would be old when the other one has ended.
    assert "to do" not in refused.output
    assert read_states(store, EXPERIMENT) == {}


def test_a_seed_that_others_run_is_left_to_them_and_owed(store: Store, tmp_path: Path) -> None:
    path, results = tmp_path / "toys.yaml", store.lock_path.parent
    path.write_text(SUITE)
    cell = plan_cells(parse_suite(SUITE, str(path)), "quick")[0]
    elsewhere = start_seed(store, cell.identity, seed=0, config=cell.resolved)
    shown = invoke(path, results, "--only", "ppo")
    assert shown.exit_code == 1, shown.output
    assert re.search(r"ppo toy +running", shown.output)
    assert "0 of 1 seeds to run\n" in shown.output
    assert "1 seeds were being trained by other processes" in shown.output
    elsewhere.finish("interrupted")


def test_algorithms_of_other_packages_are_in_the_open_division(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def divisions() -> dict[str, str]:
        return {cell.name: cell.identity.division for cell in plan_cells(suite, "quick", ["flowrl"])}

    assert divisions() == {"ppo toy": "closed", "fpo toy": "closed", "flowrl toy": "closed"}
    ids = [cell.identity.cell_id for cell in plan_cells(suite, "quick", ["flowrl"])]

    def found(kind: str, name: str) -> Entry:
        return replace(find(kind, name), package="rlflow-flowrl" if name == "flowrl" else "rlflow")

    monkeypatch.setattr("rlflow.identity.find", found)
    assert divisions() == {"ppo toy": "closed", "fpo toy": "closed", "flowrl toy": "open"}
    # A division is a label: results stay what they are.
    assert [cell.identity.cell_id for cell in plan_cells(suite, "quick", ["flowrl"])] == ids


def test_a_dry_run_shows_the_grid_and_creates_nothing(tmp_path: Path) -> None:
    suite = tmp_path / "toys.yaml"
    suite.write_text(SUITE)
    shown = invoke(suite, tmp_path / "results", "--seeds", "3", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"ppo toy +to do +to do +to do", shown.output)
    assert "6 of 6 seeds to run, 2 at a time: unknown until a seed of each task has finished" in shown.output
    assert not (tmp_path / "results").exists()
