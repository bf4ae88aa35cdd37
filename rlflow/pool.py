"""Runs planned seeds in processes of their own, a few at a time; one that dies takes nothing else down."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Protocol

from rlflow.launch import Child, Progress, SeedPlan

POLL_S = 0.2
Start = Callable[[SeedPlan], Child]


@dataclass(kw_only=True)
class Running:
    """A seed that is being trained."""

    plan: SeedPlan
    child: Child
    started_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A seed whose process has ended; `died` where the process could not say how."""

    plan: SeedPlan
    progress: Progress
    wall_s: float
    died: bool


class Watcher(Protocol):
    """Is told what the pool does."""

    def started(self, plan: SeedPlan) -> None:
        """A process has been started."""

    def polled(self, running: Sequence[Running], num_waiting: int) -> None:
        """Some time has passed."""

    def ended(self, end: Ended) -> None:
        """A process has ended."""

    def stopping(self, num_asked: int) -> None:
        """Somebody asked to stop, for the `num_asked`th time."""


def run_all(plans: Sequence[SeedPlan], num_jobs: int, start: Start, watcher: Watcher) -> tuple[list[Ended], bool]:
    """Run every plan, `num_jobs` at a time.

    SIGINT and SIGTERM start nothing more and ask the children to write their checkpoints; the second one ends them
    at once, the third kills them.

    Returns:
        The ended seeds in order of their end, and whether somebody asked to stop.
    """
    waiting, running, ended = list(plans), list[Running](), list[Ended]()
    obeyed = 0
    with _stop_requests() as asked:
        while running or (waiting and not asked()):
            while waiting and len(running) < num_jobs and not asked():
                plan = waiting.pop(0)
                running.append(Running(plan=plan, child=start(plan)))
                watcher.started(plan)
            time.sleep(POLL_S)
            while obeyed < asked():
                obeyed += 1
                watcher.stopping(obeyed)
                for one in running:
                    one.child.kill() if obeyed > 2 else one.child.stop()
            for one in [r for r in running if r.child.exit_code() is not None]:
                running.remove(one)
                ended.append(_end(one, stopped=obeyed > 0))
                watcher.ended(ended[-1])
            watcher.polled(running, len(waiting))
        return ended, asked() > 0


def _end(one: Running, stopped: bool) -> Ended:
    progress = one.child.progress()
    died = progress.outcome is None
    if died:
        progress = replace(progress, outcome="interrupted" if stopped else "failed", detail=one.child.cause())
    return Ended(plan=one.plan, progress=progress, wall_s=time.monotonic() - one.started_s, died=died)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """Count SIGINT and SIGTERM while the block runs."""
    count = 0

    def listen(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1

    before = {number: signal.signal(number, listen) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
