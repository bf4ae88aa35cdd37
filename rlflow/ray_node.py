"""What runs on the nodes of a Ray cluster: an agent per seed, which starts its process there as on any machine.

An agent pins progress to the notice board and finds there whether it is to stop, so that the nodes need share nothing
but the tracking server.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import ray

from rlflow.launch import LOG_FILE, PLAN_FILE, Child, Progress, SeedPlan, limit_threads, start, warm_up
from rlflow.nodes import Demand, complaints

REPORT_S = 0.5
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What an agent reports: progress, the name of its node, and whether it sees the folder of the plan."""

    progress: Progress
    node: str
    shared: bool


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the process of an agent ended, as a `Child` tells it."""

    code: int
    progress: Progress = field(default_factory=Progress)
    cause: str = ""


class NoticeBoard:
    """Between agents and matrix: newest notice and number of requests to stop, by attempt."""

    def __init__(self) -> None:
        self._notices: dict[str, Notice] = {}
        self._asked: dict[str, int] = {}

    def pin(self, attempt: str, notice: Notice) -> int:
        """Replace the notice of an attempt; how often it has been asked to stop."""
        self._notices[attempt] = notice
        return self._asked.get(attempt, 0)

    def ask(self, attempt: str, times: int) -> None:
        """Ask an attempt to stop, for the `times`th time."""
        self._asked[attempt] = times

    def notices(self) -> dict[str, Notice]:
        """All newest notices."""
        return self._notices


def run_seed(text: str, attempt: str, board: Any, wanted: Demand, modules: tuple[str, ...]) -> Ending:
    """Run one seed on this node, in a process of its own, and watch it.

    Args:
        text: The plan.
        attempt: Its name on the notice board.
        board: Handle of the `NoticeBoard` actor.
        wanted: What the node has to be like; one that has joined since the matrix began has not been asked yet.
        modules: Modules of the plugins, which the fork server imports.
    """
    node = socket.gethostname()
    faults = complaints(wanted)
    if faults:
        return Ending(code=1, cause=f"node {node}: {'; '.join(faults)}")
    plan = SeedPlan.parse(text)
    shared = _holds(plan.folder / PLAN_FILE, text)

    def pin(progress: Progress) -> int:
        return int(ray.get(board.pin.remote(attempt, Notice(progress=progress, node=node, shared=shared))))

    with ThreadPoolExecutor(max_workers=1) as apart:

        def report(progress: Progress) -> int:
            # A task that waits for Ray on its main thread gives its CPUs away meanwhile: the next seed would start.
            return apart.submit(pin, progress).result()

        if report(Progress()):
            return Ending(code=INTERRUPTED, cause="stopped before it began")
        return _watched(plan, modules, node, report)


def _watched(plan: SeedPlan, modules: tuple[str, ...], node: str, report: Callable[[Progress], int]) -> Ending:
    plan.folder.mkdir(parents=True, exist_ok=True)
    with (plan.folder / LOG_FILE).open("a", encoding="utf-8") as log:
        log.write(f"node {node} {ray.get_runtime_context().get_node_id()}\n")
    num_threads = int(plan.resolved["trainer"]["num_threads"])
    child = start(replace(plan, device=_device()), _fork_server(modules, num_threads))
    code = watch(child, report)
    progress = child.progress()
    return Ending(code=code, progress=progress, cause="" if progress.outcome else f"node {node}: {child.cause()}")


def watch(child: Child, report: Callable[[Progress], int]) -> int:
    """Report progress and obey until the process has ended: the first two requests stop it, the third kills it."""
    obeyed = 0
    try:
        while (code := child.exit_code()) is None:
            asked = report(child.progress())
            while obeyed < asked:
                obeyed += 1
                child.kill() if obeyed > 2 else child.stop()
            time.sleep(REPORT_S)
        return code
    finally:
        # The matrix is gone, or has given this task up.
        if child.exit_code() is None:
            child.stop()


def _device() -> str:
    """The GPUs that Ray has given to this task; with none, those of the machine are hidden."""
    return ",".join(ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


@cache
def _fork_server(modules: tuple[str, ...], num_threads: int) -> ForkServerContext:
    """One for all seeds of this Ray worker, whose main module imports Ray in every child."""
    limit_threads(num_threads)
    return warm_up([*modules, "ray"])
