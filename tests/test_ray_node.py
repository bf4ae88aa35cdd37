"""The agent of a seed: what it passes on, what it obeys, and what it leaves behind, with children that are scripted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlflow import ray_node
from rlflow.launch import Progress
from rlflow.nodes import demand
from rlflow.ray_node import Ending, Notice, NoticeBoard, run_seed, watch


class ScriptedChild:
    """Ends with a code once it is told in one of the ways that it listens to, or after `num_looks`."""

    def __init__(self, num_looks: int, *, listens_to: str = "") -> None:
        self.left, self.listens_to = num_looks, listens_to
        self.calls: list[str] = []

    def exit_code(self) -> int | None:
        self.left -= 1
        return 0 if self.left < 0 else None

    def progress(self) -> Progress:
        return Progress(samples=len(self.calls))

    def cause(self) -> str:
        return "scripted"

    def stop(self) -> None:
        self._hear("stop")

    def kill(self) -> None:
        self._hear("kill")

    def _hear(self, call: str) -> None:
        self.calls.append(call)
        if call == self.listens_to:
            self.left = 0


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_node, "REPORT_S", 0.0)


def test_every_request_is_obeyed_once_and_the_third_kills() -> None:
    child = ScriptedChild(100, listens_to="kill")
    asked = iter([0, 1, 1, 2, 3])
    assert watch(child, lambda progress: next(asked)) == 0
    assert child.calls == ["stop", "stop", "kill"]


def test_progress_is_reported_until_the_process_ends() -> None:
    seen: list[Progress] = []

    def report(progress: Progress) -> int:
        seen.append(progress)
        return 0

    assert watch(ScriptedChild(3), report) == 0
    assert len(seen) == 3


def test_a_process_whose_matrix_is_gone_is_asked_to_stop() -> None:
    child = ScriptedChild(100)

    def report(progress: Progress) -> int:
        raise ConnectionError("no notice board")

    with pytest.raises(ConnectionError):
        watch(child, report)
    assert child.calls == ["stop"]


def test_a_node_that_does_not_fit_starts_nothing_and_says_why(tmp_path: Path) -> None:
    wanted = demand(["numpy"], [], "sqlite:////somewhere/mlflow.db")
    other = replace(wanted, versions={**wanted.versions, "numpy": "0.1"})
    ending = run_seed("not looked at", "a", None, other, ())
    assert isinstance(ending, Ending)
    assert ending.code == 1
    assert ending.progress.outcome is None
    assert f"numpy {wanted.versions['numpy']} instead of 0.1" in ending.cause


def test_the_board_keeps_the_newest_notice_and_the_requests_of_each_attempt() -> None:
    board = NoticeBoard()
    board.ask("a", 2)
    notices = [Notice(progress=Progress(samples=n), node="n", shared=True) for n in (1, 2)]
    assert [board.pin("a", notices[0]), board.pin("a", notices[1]), board.pin("b", notices[0])] == [2, 2, 0]
    assert board.notices() == {"a": notices[1], "b": notices[0]}
