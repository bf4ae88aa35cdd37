"""What a person sees while things train: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from rlflow.launch import Progress, SeedPlan
from rlflow.pool import Ended, Running

if TYPE_CHECKING:
    from rlflow.matrix import Job

MAX_SEED_COLUMNS = 5


class Bar:
    """Progress of one seed."""

    def __init__(self, budget: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._evaluations = 0
        self._started_s = time.monotonic()
        self._bar = RichProgress(
            TextColumn("[cyan]score {task.fields[score]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._row = self._bar.add_task("", total=budget, score="-")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False)

    def show(self, progress: Progress) -> None:
        """Move the bar; an evaluation is a line."""
        if progress.score is not None and progress.evaluations > self._evaluations:
            self._evaluations = progress.evaluations
            elapsed = duration(time.monotonic() - self._started_s)
            self.say(f"{progress.samples:>10,} samples  {elapsed:>8}  score {progress.score:.4g}")
        score = "-" if progress.score is None else f"{progress.score:.4g}"
        self._bar.update(self._row, completed=progress.samples, score=score)


def duration(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class MatrixView:
    """Running seeds as a live table on a terminal; every end is a line anywhere."""

    def __init__(self, num_pending: int, num_jobs: int, estimates: Mapping[tuple[str, int], float]) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._num_pending, self._num_jobs = num_pending, num_jobs
        self._estimates = estimates
        self._ended: list[Ended] = []
        self._started_s = time.monotonic()
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> MatrixView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(line, markup=False)

    def started(self, plan: SeedPlan) -> None:
        """Say so where there is no table."""
        if not self._console.is_terminal:
            self.say(f"          {'continued' if plan.resume else 'started':<12}{_name(plan)}")

    def ended(self, end: Ended) -> None:
        """One line; what went wrong below it."""
        self._ended.append(end)
        progress = end.progress
        width = len(str(self._num_pending))
        count = f"[{len(self._ended):>{width}}/{self._num_pending}]"
        score = "" if progress.score is None else f"score {progress.score:.4g}"
        self.say(f"{count:<10}{progress.outcome:<12}{_name(end.plan):<52}{duration(end.wall_s):>8}  {score}")
        if progress.outcome in ("diverged", "failed"):
            self.say(f"          {progress.detail}")

    def stopping(self, num_asked: int) -> None:
        """What the next Ctrl+C does."""
        self.say(
            {
                1: "stopping: every run writes its checkpoint after this iteration; once more to stop at once",
                2: "stopping at once; once more to kill",
            }.get(num_asked, "killing")
        )

    def polled(self, running: Sequence[Running], num_waiting: int) -> None:
        """Redraw."""
        if not self._console.is_terminal:
            return
        table = Table(box=None, pad_edge=False)
        for name in ("running", "samples", "score", "elapsed", "left"):
            table.add_column(name, justify="left" if name == "running" else "right")
        lefts = []
        for one in running:
            progress, elapsed_s = one.child.progress(), time.monotonic() - one.started_s
            budget = one.plan.identity.budget
            left = self._left_s(one.plan, progress.samples / budget, elapsed_s)
            lefts.append(left)
            score = "-" if progress.score is None else f"{progress.score:.4g}"
            share = f"{progress.samples:,} / {budget:,}"
            table.add_row(_name(one.plan), share, score, duration(elapsed_s), "-" if left is None else duration(left))
        elapsed = duration(time.monotonic() - self._started_s)
        table.caption = f"{len(self._ended)} of {self._num_pending} ended, {num_waiting} waiting, {elapsed} elapsed"
        total_s = self._total_s(lefts, num_waiting)
        if total_s is not None:
            table.caption += f", about {duration(total_s)} left"
        self._live.update(table)

    def _left_s(self, plan: SeedPlan, fraction: float, elapsed_s: float) -> float | None:
        if plan.resume or fraction < 0.02:
            return self._estimates.get((plan.identity.cell_id, plan.seed))
        return elapsed_s * (1 - fraction) / fraction

    def _total_s(self, lefts: Sequence[float | None], num_waiting: int) -> float | None:
        known = [end.wall_s for end in self._ended if end.progress.outcome == "finished"]
        if not known or any(left is None for left in lefts):
            return None
        waiting_s = num_waiting * sum(known) / len(known)
        return (waiting_s + sum(left for left in lefts if left is not None)) / self._num_jobs


def grid(jobs: Sequence[Job], estimates: Mapping[tuple[str, int], float], num_jobs: int) -> Table:
    """The plan: the state of every seed of every cell, of many seeds as numbers by state, and what is left to do."""
    table = Table(box=None, pad_edge=False, title="", show_footer=False)
    table.add_column("cell")
    columns = _by_seed(jobs, estimates) if len({job.seed for job in jobs}) <= MAX_SEED_COLUMNS else _by_state(jobs)
    for name in columns:
        table.add_column(name)
    for cell in dict.fromkeys(job.cell.name for job in jobs):
        table.add_row(cell, *(column.get(cell, "") for column in columns.values()))
    pending = [job for job in jobs if job.pending]
    known = [estimates.get((job.cell.identity.cell_id, job.seed)) for job in pending]
    cost = "unknown until a seed of each task has finished"
    if all(value is not None for value in known):
        cost = f"about {duration(sum(value for value in known if value is not None) / num_jobs)}"
    table.caption = f"{len(pending)} of {len(jobs)} seeds to run"
    if pending:
        table.caption += f", {num_jobs} at a time: {cost}"
    table.caption_justify = "left"
    return table


def _by_seed(jobs: Sequence[Job], estimates: Mapping[tuple[str, int], float]) -> dict[str, dict[str, str]]:
    columns: dict[str, dict[str, str]] = {}
    for job in sorted(jobs, key=lambda one: one.seed):
        columns.setdefault(f"seed {job.seed}", {})[job.cell.name] = _state_text(job, estimates)
    return columns


def _by_state(jobs: Sequence[Job]) -> dict[str, dict[str, str]]:
    seeds: dict[str, dict[str, list[int]]] = {}
    for job in jobs:
        seeds.setdefault(job.state, {}).setdefault(job.cell.name, []).append(job.seed)
    return {state: {name: _ranges(found) for name, found in cells.items()} for state, cells in sorted(seeds.items())}


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def _state_text(job: Job, estimates: Mapping[tuple[str, int], float]) -> str:
    left = estimates.get((job.cell.identity.cell_id, job.seed))
    seconds = job.wall_s if not job.pending else left
    return job.state if not seconds else f"{job.state} ({'~' if job.pending else ''}{duration(seconds)})"


def _name(plan: SeedPlan) -> str:
    return f"{plan.identity.algorithm} {plan.identity.task} seed {plan.seed}"
