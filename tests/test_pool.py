"""The pool: how many run at once, who goes down with whom, and what Ctrl+C does, with children that are scripted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlflow import pool
from rlflow.cell import CellIdentity
from rlflow.launch import Progress, SeedPlan
from rlflow.pool import Ended, Running, run_all


class Scripted:
    """Ends after `num_polls` looks, or when it is told to, with the given exit code."""

    def __init__(self, plan: SeedPlan, num_polls: int, code: int, ends: bool = True) -> None:
        self.plan, self.left, self.code, self.ends = plan, num_polls, code, ends
        self.calls: list[str] = []

    def exit_code(self) -> int | None:
        self.left -= 1
        return self.code if self.left < 0 else None

    def progress(self) -> Progress:
        return Progress.read(self.plan.folder)

    def cause(self) -> str:
        return f"scripted end {self.code}"

    def stop(self) -> None:
        self.calls.append("stop")
        if self.ends:
            self.left, self.code = 0, -signal.SIGTERM

    def kill(self) -> None:
        self.calls.append("kill")
        self.left, self.code = 0, -signal.SIGKILL


class Seen:
    """A watcher that remembers, and may act when it is polled."""

    def __init__(self, act: Callable[[int], None] = lambda _: None) -> None:
        self.most_running, self.num_polls, self.asked, self.act = 0, 0, list[int](), act

    def started(self, plan: SeedPlan) -> None:
        pass

    def ended(self, end: Ended) -> None:
        pass

    def stopping(self, num_asked: int) -> None:
        self.asked.append(num_asked)

    def polled(self, running: Sequence[Running], num_waiting: int) -> None:
        self.num_polls += 1
        self.most_running = max(self.most_running, len(running))
        self.act(self.num_polls)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POLL_S", 0.001)


@pytest.fixture
def plans(tmp_path: Path) -> list[SeedPlan]:
    identity = CellIdentity(
        suite="s@1", cell_id="v1-x", algorithm="ppo", task="toy", task_version="1", policy="gaussian",
        anchor_base=0.0, anchor_reference=1.0, budget=10,
    )  # fmt: skip
    made = []
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        resolved = {"trainer": {"seed": seed}}
        made.append(SeedPlan(resolved=resolved, identity=identity, folder=folder, tracking_uri="", results=tmp_path))
    return made


def test_every_plan_runs_and_no_more_at_once_than_asked(plans: list[SeedPlan]) -> None:
    def start(plan: SeedPlan) -> Scripted:
        Progress(samples=10, score=1.0, outcome="finished").write(plan.folder)
        return Scripted(plan, num_polls=3, code=0)

    seen = Seen()
    ended, stopped = run_all(plans, 2, start, seen)
    assert [end.plan.seed for end in ended] == [0, 1, 2, 3]
    assert {end.progress.outcome for end in ended} == {"finished"}
    assert (stopped, seen.most_running) == (False, 2)


def test_a_killed_process_is_a_failure_and_the_others_go_on(plans: list[SeedPlan]) -> None:
    def start(plan: SeedPlan) -> Scripted:
        if plan.seed == 1:
            return Scripted(plan, num_polls=0, code=-signal.SIGKILL)
        Progress(outcome="finished").write(plan.folder)
        return Scripted(plan, num_polls=2, code=0)

    ended, _ = run_all(plans, 2, start, Seen())
    outcomes = {end.plan.seed: (end.progress.outcome, end.died) for end in ended}
    assert outcomes == {0: ("finished", False), 1: ("failed", True), 2: ("finished", False), 3: ("finished", False)}
    (dead,) = [end for end in ended if end.died]
    assert dead.progress.detail == "scripted end -9"


def test_one_interrupt_stops_the_children_and_starts_nothing_more(plans: list[SeedPlan]) -> None:
    children: list[Scripted] = []

    def start(plan: SeedPlan) -> Scripted:
        children.append(Scripted(plan, num_polls=1000, code=0))
        return children[-1]

    def act(num_polls: int) -> None:
        if num_polls == 3:
            os.kill(os.getpid(), signal.SIGINT)

    seen = Seen(act)
    before = signal.getsignal(signal.SIGINT)
    ended, stopped = run_all(plans, 2, start, seen)
    assert stopped
    assert [child.calls for child in children] == [["stop"], ["stop"]]
    assert [end.progress.outcome for end in ended] == ["interrupted", "interrupted"]
    assert seen.asked == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_third_interrupt_kills(plans: list[SeedPlan]) -> None:
    children: list[Scripted] = []

    def start(plan: SeedPlan) -> Scripted:
        children.append(Scripted(plan, num_polls=1000, code=0, ends=False))
        return children[-1]

    def act(num_polls: int) -> None:
        if num_polls in (2, 4, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    ended, stopped = run_all(plans[:1], 1, start, Seen(act))
    assert stopped
    assert children[0].calls == ["stop", "stop", "kill"]
    assert ended[0].progress.outcome == "interrupted"


def test_half_a_progress_file_is_never_read(tmp_path: Path) -> None:
    assert Progress.read(tmp_path) == Progress()
    Progress(samples=5, score=0.5, outcome="diverged", detail="loss").write(tmp_path)
    assert Progress.read(tmp_path) == Progress(samples=5, score=0.5, outcome="diverged", detail="loss")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
