"""One seed on a Ray cluster as a `Child` of the pool: a task after another until the process has ended by itself.

A node that is lost may only be out of sight, with the process still at work.  The seed therefore goes on elsewhere
when the tracking store says that nobody is running it: recorded as stopped, or without a heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from rlflow.launch import CHECKPOINT, Progress, SeedPlan
from rlflow.leaderboard import SeedState
from rlflow.matrix import RESULTS
from rlflow.ray_node import INTERRUPTED, Ending, Notice
from rlflow.tracker import Outcome

MAX_LOSSES = 3
CHECK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A task that ended without telling how its process did."""

    reason: str


class Cluster(Protocol):
    """What a seed asks of Ray."""

    def submit(self, plan: SeedPlan, attempt: str) -> Any:
        """Queue a task; a handle of it."""

    def outcome(self, task: Any) -> Ending | Loss | None:
        """How a task ended; None while it waits or runs."""

    def notice(self, attempt: str) -> Notice | None:
        """Newest notice of an attempt; None before its first."""

    def ask(self, attempt: str, times: int) -> None:
        """Ask an attempt to stop, for the `times`th time."""

    def cancel(self, task: Any) -> None:
        """Take back a task that waits for a node."""


class RaySeed:
    """See `rlflow.launch.Child`.

    Args:
        plan: The seed.
        cluster: Where it runs.
        state: Reads what the tracking store knows of it.
        say: Tells a person.
    """

    def __init__(
        self,
        plan: SeedPlan,
        cluster: Cluster,
        state: Callable[[], SeedState | None],
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._cluster, self._state, self._say = plan, cluster, state, say
        self._asked = self._num_losses = 0
        self._checked_s = 0.0
        self._seen = Progress()
        self._shared = True
        self._end: Ending | None = None
        self._submit()

    def exit_code(self) -> int | None:
        """See `Child`; a seed that waits to go on elsewhere still runs."""
        if self._end is None:
            if self._task is None:
                self._recover()
            else:
                self._look()
        return None if self._end is None else self._end.code

    def progress(self) -> Progress:
        """See `Child`."""
        return self._seen if self._end is None or self._end.progress.outcome is None else self._end.progress

    def cause(self) -> str:
        """See `Child`."""
        assert self._end is not None
        return self._end.cause

    def stop(self) -> None:
        """See `Child`."""
        self._asked += 1
        self._ask()

    def kill(self) -> None:
        """See `Child`."""
        self._asked = 3
        self._ask()

    def _submit(self) -> None:
        self._attempt = f"{self._plan.identity.cell_id} {self._plan.seed} {self._num_losses}"
        self._task: Any | None = self._cluster.submit(self._plan, self._attempt)

    def _ask(self) -> None:
        if self._task is None:
            return
        self._cluster.ask(self._attempt, self._asked)
        if self._cluster.notice(self._attempt) is None:
            self._cluster.cancel(self._task)

    def _look(self) -> None:
        notice = self._cluster.notice(self._attempt)
        if notice is not None:
            self._seen, self._shared = notice.progress, notice.shared
        outcome = self._cluster.outcome(self._task)
        if isinstance(outcome, Ending):
            self._end = outcome
        elif outcome is not None:
            self._task = None
            self._lose(outcome.reason)

    def _lose(self, reason: str) -> None:
        self._num_losses += 1
        name = f"{self._plan.identity.algorithm} {self._plan.identity.task} seed {self._plan.seed}"
        if self._num_losses > MAX_LOSSES:
            self._end = Ending(code=1, cause=f"lost {self._num_losses} times, the last time by: {reason}")
            return
        self._say(f"          lost        {name} ({self._num_losses} of at most {MAX_LOSSES}): {reason}")

    def _recover(self) -> None:
        """Go on where the last checkpoint is, once nobody runs the seed any more."""
        if self._asked:
            self._end = Ending(code=INTERRUPTED, cause="stopped while it waited for a node")
            return
        if time.monotonic() - self._checked_s < CHECK_S:
            return
        self._checked_s = time.monotonic()
        known = self._state()
        if known is not None and known.state == "running":
            return
        if known is not None and known.state in RESULTS:
            outcome = cast(Outcome, known.state)
            self._end = Ending(code=0, progress=replace(self._seen, outcome=outcome, detail=known.detail))
            return
        resume = known is not None and self._shared and (self._plan.folder / CHECKPOINT).exists()
        self._plan = replace(self._plan, resume=resume)
        self._submit()
