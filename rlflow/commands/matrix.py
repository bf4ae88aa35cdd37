"""`rlflow matrix`: a whole suite, as far as it is not done yet."""

from __future__ import annotations

import fcntl
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlflow.commands.options import DEFAULT_BUDGET, DEFAULT_RESULTS, Results, TrackingUri, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rlflow.launcher import Launcher
    from rlflow.matrix import Job, PlannedCell
    from rlflow.pool import Ended
    from rlflow.store import Store
    from rlflow.suite import Suite

MLFLOW_SIDE = ("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "rlflow.report", "rlflow.leaderboard")


def matrix(
    suite: Annotated[str, typer.Argument(help="Registered suite, or a path to a suite file.")],
    budget: Annotated[str, typer.Option(help="Budget of the suite.")] = DEFAULT_BUDGET,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds 0..N-1; the suite's number if not given.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; one per core, or four per GPU, if not given.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Cells whose `algorithm task` holds this text or pattern.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="A further algorithm, on all tasks of the suite.")] = None,
    launcher: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes of this machine, or tasks of a running Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster; the one that this machine is in, if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is done and what is to do.")] = False,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Run every seed of every cell of SUITE that has no result, then print and write the leaderboard."""
    from rlflow.suite import load_suite

    loaded = load_suite(suite)
    loaded.budget(budget)
    added = add or []
    cells, devices = _planned(loaded, budget, added, only)
    with _launcher(launcher, address, jobs, cells, devices, tracking_uri, results) as place:
        _run(
            loaded,
            cells,
            place,
            budget=budget,
            seeds=range(seeds or loaded.seeds),
            added=added,
            dry_run=dry_run,
            tracking_uri=tracking_uri,
            results=results,
        )


def _planned(
    suite: Suite, budget: str, added: Sequence[str], only: str | None
) -> tuple[list[PlannedCell], Sequence[str]]:
    """What `_plan` answers, from a process of its own while this one imports MLflow: each takes seconds.

    A process that has torch has its threads as well, and a fork of it may hang.
    """
    if "torch" in sys.modules:
        return _plan(suite, budget, added, only)
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("fork")) as beside:
        planned = beside.submit(_plan, suite, budget, added, only)
        for module in MLFLOW_SIDE:
            import_module(module)
        return planned.result()


def _plan(suite: Suite, budget: str, added: Sequence[str], only: str | None) -> tuple[list[PlannedCell], Sequence[str]]:
    """Cells, and the CUDA devices for them: what needs the plugins and torch."""
    from rlflow.launcher import cuda_devices
    from rlflow.matrix import plan_cells, selected

    cells = selected(plan_cells(suite, budget, added), only)
    return cells, cuda_devices(cells[0].trainer.accelerator)


def _launcher(
    name: str,
    address: str | None,
    num_jobs: int | None,
    cells: Sequence[PlannedCell],
    devices: Sequence[str],
    tracking_uri: str | None,
    results: Path,
) -> AbstractContextManager[Launcher]:
    if name == "ray":
        from rlflow.ray_launch import connect

        return connect(address, num_jobs=num_jobs, cells=cells, tracking_uri=tracking_uri, results=results)
    if address is not None:
        raise UsageError(f"--address {address} needs --launcher ray, found --launcher {name}")
    from rlflow.launcher import ThisMachine

    return nullcontext(ThisMachine(num_jobs, devices))


def _run(
    suite: Suite,
    cells: Sequence[PlannedCell],
    place: Launcher,
    *,
    budget: str,
    seeds: Sequence[int],
    added: Sequence[str],
    dry_run: bool,
    tracking_uri: str | None,
    results: Path,
) -> None:
    from rich.console import Console

    from rlflow.display import grid
    from rlflow.leaderboard import read_cells, read_states
    from rlflow.matrix import estimate_s, make_jobs, refuse_other_configurations, suite_plan

    store = _store(tracking_uri, results, dry_run)
    experiment = suite.experiment(budget)
    console = Console(soft_wrap=True, highlight=False)
    # What is recorded is read under the lock: a matrix that ends in between would leave this one an old plan.
    with nullcontext() if dry_run or store is None else _alone(results, experiment):
        states = {} if store is None else read_states(store, experiment)
        if store is not None:
            refuse_other_configurations(cells, read_cells(store, experiment))
        jobs = make_jobs(cells, seeds, states, results)
        console.print(grid(jobs, estimate_s(jobs), place.num_jobs))
        if dry_run or store is None:
            return
        from rlflow.outages import told
        from rlflow.tracking import ensure_board

        with told(store):
            ensure_board(store, experiment, suite_plan(suite, seeds, added))
            ended, stopped = _train(jobs, store, place, tracking_uri or store.uri, results)
            _print_board(console, store, experiment, results / budget / f"{suite.name}@{suite.version}")
    failed = sum(end.progress.outcome in ("failed", "interrupted") for end in ended)
    elsewhere = sum(job.state == "running" for job in jobs)
    if failed:
        console.print(f"{failed} seeds without a result; the same command continues them")
    if elsewhere:
        console.print(
            f"{elsewhere} seeds were being trained by other processes; the same command tells what became of them"
        )
    if failed or elsewhere or stopped:
        raise typer.Exit(130 if stopped else 1)


def _train(
    jobs: Sequence[Job], store: Store, place: Launcher, tracking_uri: str, results: Path
) -> tuple[list[Ended], bool]:
    from rlflow.display import MatrixView
    from rlflow.matrix import estimate_s
    from rlflow.pool import run_all

    plans = []
    for i, job in enumerate(job for job in jobs if job.pending):
        num_threads, device = place.share(job.cell.trainer, i)
        plans.append(job.plan(tracking_uri=tracking_uri, results=results, num_threads=num_threads, device=device))
    if not plans:
        return [], False
    with MatrixView(len(plans), place.num_jobs, estimate_s(jobs)) as view, place.ready(store, plans, view.say) as start:
        ended, stopped = run_all(plans, place.num_jobs, start, view)
    for end in ended:
        if end.died:
            _record_death(store, end)
    return ended, stopped


def _record_death(store: Store, end: Ended) -> None:
    """Close the run that a killed process has left open."""
    from rlflow.leaderboard import read_states
    from rlflow.tracking import SeedTracker
    from rlflow.tracking_cells import ensure_cell

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
