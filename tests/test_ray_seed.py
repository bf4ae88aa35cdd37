"""One seed over the loss of its nodes, on a cluster that is scripted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlflow import ray_seed
from rlflow.cell import CellIdentity
from rlflow.launch import Progress, SeedPlan
from rlflow.leaderboard import SeedState
from rlflow.ray_node import Ending, Notice
from rlflow.ray_seed import Loss, RaySeed

DONE = Ending(code=0, progress=Progress(samples=10, score=1.0, outcome="finished"))
LOST = Loss(reason="NodeDiedError: gone")


class ScriptedCluster:
    """Every task has the next of the given outcomes at once; None runs for ever."""

    def __init__(self, *outcomes: Ending | Loss | None, notice: Notice | None = None) -> None:
        self.outcomes, self.newest = list(outcomes), notice
        self.plans: list[SeedPlan] = []
        self.asked: list[int] = []
        self.cancelled: list[int] = []

    def submit(self, plan: SeedPlan, attempt: str) -> Any:
        self.plans.append(plan)
        return len(self.plans) - 1

    def outcome(self, task: Any) -> Ending | Loss | None:
        return self.outcomes[task]

    def notice(self, attempt: str) -> Notice | None:
        return self.newest

    def ask(self, attempt: str, times: int) -> None:
        self.asked.append(times)

    def cancel(self, task: Any) -> None:
        self.cancelled.append(task)


class Store:
    """What is recorded, and how often somebody has looked."""

    def __init__(self, *states: str | None) -> None:
        self.states = list(states)
        self.num_looks = 0

    def __call__(self) -> SeedState | None:
        state = self.states[min(self.num_looks, len(self.states) - 1)]
        self.num_looks += 1
        return None if state is None else SeedState(run_id="r", state=state, detail="", attempt=1, wall_s=0.0)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_seed, "CHECK_S", 0.0)


@pytest.fixture
def plan(tmp_path: Path) -> SeedPlan:
    identity = CellIdentity(
        suite="s@1", cell_id="v1-x", algorithm="ppo", task="toy", task_version="1", policy="gaussian",
        anchor_base=0.0, anchor_reference=1.0, budget=10,
    )  # fmt: skip
    (tmp_path / "last.ckpt").touch()
    return SeedPlan(
        resolved={"trainer": {"seed": 0}}, identity=identity, folder=tmp_path, tracking_uri="", results=tmp_path
    )


def notice(samples: int, *, shared: bool = True) -> Notice:
    return Notice(progress=Progress(samples=samples, score=0.5), node="n1", shared=shared)


def polls(seed: RaySeed, most: int = 20) -> int | None:
    for _ in range(most):
        if (code := seed.exit_code()) is not None:
            return code
    return None


def test_a_task_that_ends_gives_its_code_and_progress(plan: SeedPlan) -> None:
    cluster = ScriptedCluster(DONE, notice=notice(5))
    seed = RaySeed(plan, cluster, Store("finished"), print)
    assert polls(seed) == 0
    assert seed.progress() == DONE.progress


def test_progress_comes_from_the_notice_board_while_it_runs(plan: SeedPlan) -> None:
    seed = RaySeed(plan, ScriptedCluster(None, notice=notice(5)), Store(None), print)
    assert polls(seed) is None
    assert seed.progress() == Progress(samples=5, score=0.5)


def test_a_lost_seed_goes_on_from_its_checkpoint_once_nobody_runs_it(plan: SeedPlan) -> None:
    said: list[str] = []
    cluster, store = ScriptedCluster(LOST, DONE, notice=notice(5)), Store("running", "running", "stale")
    seed = RaySeed(plan, cluster, store, said.append)
    for _ in range(3):
        assert seed.exit_code() is None
    # Two looks found it running, which it may be on a node that is only out of sight.
    assert (store.num_looks, len(cluster.plans)) == (2, 1)
    assert seed.progress().samples == 5
    assert polls(seed) == 0
    assert [p.resume for p in cluster.plans] == [False, True]
    assert [line.split() for line in said] == [
        ["lost", "ppo", "toy", "seed", "0", "(1", "of", "at", "most", "3):", "NodeDiedError:", "gone"]
    ]


@pytest.mark.parametrize(
    ("state", "shared", "checkpoint"), [("stale", False, True), ("stale", True, False), (None, True, True)]
)
def test_without_a_run_or_its_checkpoint_a_lost_seed_starts_anew(
    plan: SeedPlan, state: str | None, shared: bool, checkpoint: bool
) -> None:
    if not checkpoint:
        (plan.folder / "last.ckpt").unlink()
    cluster = ScriptedCluster(LOST, DONE, notice=notice(5, shared=shared))
    assert polls(RaySeed(plan, cluster, Store(state), print)) == 0
    assert [p.resume for p in cluster.plans] == [False, False]


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
def test_a_seed_that_got_its_result_out_of_sight_is_not_run_again(plan: SeedPlan, outcome: str) -> None:
    cluster = ScriptedCluster(LOST, notice=notice(10))
    seed = RaySeed(plan, cluster, Store("running", outcome), print)
    assert polls(seed) == 0
    assert (seed.progress().outcome, len(cluster.plans)) == (outcome, 1)


def test_the_fourth_loss_is_a_failure_and_no_divergence(plan: SeedPlan) -> None:
    cluster = ScriptedCluster(LOST, LOST, LOST, LOST, notice=notice(5))
    seed = RaySeed(plan, cluster, Store("stale"), lambda _: None)
    assert polls(seed) == 1
    assert len(cluster.plans) == 4
    # The pool makes a failure of a child without an outcome.
    assert seed.progress().outcome is None
    assert seed.cause() == "lost 4 times, the last time by: NodeDiedError: gone"


def test_requests_to_stop_reach_the_agent_and_take_back_what_waits(plan: SeedPlan) -> None:
    running = ScriptedCluster(None, notice=notice(5))
    seed = RaySeed(plan, running, Store(None), print)
    seed.stop()
    seed.stop()
    seed.kill()
    assert (running.asked, running.cancelled) == ([1, 2, 3], [])
    waiting = ScriptedCluster(None)
    RaySeed(plan, waiting, Store(None), print).stop()
    assert (waiting.asked, waiting.cancelled) == ([1], [0])


def test_a_lost_seed_that_is_asked_to_stop_does_not_go_on(plan: SeedPlan) -> None:
    cluster = ScriptedCluster(LOST, DONE, notice=notice(5))
    seed = RaySeed(plan, cluster, Store("running"), lambda _: None)
    assert seed.exit_code() is None
    seed.stop()
    assert polls(seed) == 130
    assert len(cluster.plans) == 1
