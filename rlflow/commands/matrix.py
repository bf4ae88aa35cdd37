"""`rlflow matrix`: a whole suite, as far as it is not done yet."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.commands.options import DEFAULT_BUDGET, DEFAULT_RESULTS, Results, TrackingUri

if TYPE_CHECKING:
    from rich.console import Console

    from rlflow.matrix import Job
    from rlflow.pool import Ended
    from rlflow.store import Store
    from rlflow.suite import Suite

JOBS_PER_GPU = 4


def matrix(
    suite: Annotated[str, typer.Argument(help="Registered suite, or a path to a suite file.")],
    budget: Annotated[str, typer.Option(help="Budget of the suite.")] = DEFAULT_BUDGET,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0..N-1; the suite's number if not given.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; one per core, or four per GPU, if not given.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Cells whose `algorithm task` holds this text or pattern.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="A further algorithm, on all tasks of the suite.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is done and what is to do.")] = False,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Run every seed of every cell of SUITE that has no result, then print and write the leaderboard."""
    from rlflow.suite import load_suite

    loaded = load_suite(suite)
    loaded.budget(budget)
    _run(
        loaded,
        budget=budget,
        seeds=range(seeds or loaded.seeds),
        num_jobs=jobs,
        only=only,
        added=add or [],
        dry_run=dry_run,
        tracking_uri=tracking_uri,
        results=results,
    )


def _run(
    suite: Suite,
    *,
    budget: str,
    seeds: Sequence[int],
    num_jobs: int | None,
    only: str | None,
    added: Sequence[str],
    dry_run: bool,
    tracking_uri: str | None,
    results: Path,
) -> None:
    from rich.console import Console

    from rlflow.display import grid
    from rlflow.leaderboard import read_cells, read_states
    from rlflow.matrix import estimate_s, make_jobs, plan_cells, refuse_other_configurations, selected, suite_plan

    cells = plan_cells(suite, budget, added)
    chosen = selected(cells, only)
    devices = _devices(chosen[0].config.trainer.accelerator)
    num_jobs = num_jobs or (min(_num_cores(), JOBS_PER_GPU * len(devices)) if devices else _num_cores())
    store = _store(tracking_uri, results, dry_run)
    experiment = suite.experiment(budget)
    states = {} if store is None else read_states(store, experiment)
    if store is not None:
        refuse_other_configurations(chosen, read_cells(store, experiment))
    jobs = make_jobs(chosen, seeds, states, results)
    console = Console(soft_wrap=True, highlight=False)
    console.print(grid(jobs, estimate_s(jobs), num_jobs))
    if dry_run or store is None:
        return
    from rlflow.tracking import ensure_board

    with _alone(results, experiment):
        ensure_board(store, experiment, suite_plan(suite, seeds, added))
        ended, stopped = _train(jobs, store, num_jobs, devices, tracking_uri, results)
    _print_board(console, store, experiment, results / budget / f"{suite.name}@{suite.version}")
    failed = sum(end.progress.outcome in ("failed", "interrupted") for end in ended)
    if failed or stopped:
        console.print(f"{failed} seeds without a result; the same command continues them")
        raise typer.Exit(130 if stopped else 1)


def _train(
    jobs: Sequence[Job],
    store: Store,
    num_jobs: int,
    devices: Sequence[str],
    tracking_uri: str | None,
    results: Path,
) -> tuple[list[Ended], bool]:
    from rlflow.display import MatrixView
    from rlflow.launch import limit_threads, start, warm_up
    from rlflow.matrix import estimate_s
    from rlflow.pool import run_all
    from rlflow.registry import find

    pending = [job for job in jobs if job.pending]
    num_threads = max(1, _num_cores() // num_jobs)
    plans = [
        job.plan(
            tracking_uri=tracking_uri or store.uri,
            results=results,
            num_threads=num_threads,
            device=devices[i % len(devices)] if devices else None,
        )
        for i, job in enumerate(pending)
    ]
    if not plans:
        return [], False
    limit_threads(num_threads)
    names = {("task", job.cell.identity.task) for job in pending}
    names |= {("algorithm", job.cell.config.algorithm_name) for job in pending}
    context = warm_up(sorted({find(*name).target.partition(":")[0] for name in names}))
    with MatrixView(len(plans), num_jobs, estimate_s(jobs)) as view:
        ended, stopped = run_all(plans, num_jobs, lambda plan: start(plan, context), view)
    for end in ended:
        if end.died:
            _record_death(store, end)
    return ended, stopped


def _record_death(store: Store, end: Ended) -> None:
    """Close the run that a killed process has left open."""
    from rlflow.leaderboard import read_states
    from rlflow.tracking import SeedTracker, ensure_cell

    identity, outcome = end.plan.identity, end.progress.outcome
    state = read_states(store, identity.suite).get((identity.cell_id, end.plan.seed))
    if state is None or state.state not in ("stale", "running"):
        return
    assert outcome is not None
    cell = ensure_cell(store, identity, seeds=(end.plan.seed,))
    tracker = SeedTracker(store=store, run_id=state.run_id, cell_run_id=cell, identity=identity, attempt=state.attempt)
    tracker.finish(outcome, end.progress.detail)


def _print_board(console: Console, store: Store, experiment: str, folder: Path) -> None:
    from rlflow.leaderboard import read_board
    from rlflow.report import publish_board
    from rlflow.report_text import terminal_table

    board = read_board(store, experiment)
    files = publish_board(store, board, folder)
    console.print(terminal_table(board))
    console.print(f"{files[0]} and {len(files) - 1} more files beside it; tracking {store.uri}", markup=False)


def _store(tracking_uri: str | None, results: Path, dry_run: bool) -> Store | None:
    from rlflow.store import DEFAULT_DATABASE, open_store

    if dry_run and tracking_uri is None and not (results / DEFAULT_DATABASE).exists():
        return None
    return open_store(tracking_uri, results=results, create=not dry_run)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices(accelerator: str) -> list[str]:
    """Visible CUDA devices as values of CUDA_VISIBLE_DEVICES; none where the CPU is asked for."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


@contextmanager
def _alone(results: Path, experiment: str) -> Iterator[None]:
    """Hold the suite's lock, so that two matrices do not run one seed twice; the system frees it with the process."""
    from rlflow.matrix import MatrixError

    path = results / "locks" / f"{experiment}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MatrixError(
                f"another `rlflow matrix` is running {experiment} in {results}; wait for it or stop it"
            ) from error
        yield
