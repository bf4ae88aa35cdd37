"""Board speed: seconds to read, rank and write the leaderboard of a thousand finished seeds from a SQLite store.

    python tests/benchmarks/board_speed.py [--algorithms 10] [--tasks 10] [--seeds 10] [--points 21] [--store FOLDER]

The store is made through MLflow's client and holds what a matrix leaves: tags and params of every run, the evaluation
curves, and `cost/wall_s` at every iteration (ten between two evaluations).  `--store` keeps it and uses it again.
The limit holds for what `rlflow leaderboard` does: open, read, rank, print; the files are timed beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from mlflow.entities import Metric, Param
from rich.console import Console

from rlflow.cell import CellIdentity, SuitePlan
from rlflow.leaderboard import read_board
from rlflow.report import write_board
from rlflow.report_text import terminal_table
from rlflow.store import Store, open_store
from rlflow.tracking import ensure_board
from rlflow.tracking_cells import ensure_cell

SUITE = "speed@1"
LIMIT_S = 5.0
BUDGET = 20_000
ITERATIONS_PER_EVALUATION = 10
NUM_PARAMS = 60
EVALUATED = ("score", "quality", *(f"failure_{index}" for index in range(8)))
COSTS = ("wall_s", "gpu_s", "tokens", "env_steps", "policy_forwards", "optimizer_steps", "peak_gb")
PARAMS = {f"section.setting_{index}": str(index / 7) for index in range(NUM_PARAMS)}
MAX_METRICS = 1000
GUARDS = ("quality",)

Answer = TypeVar("Answer")


def fill(store: Store, algorithms: int, tasks: int, seeds: int, points: int) -> None:
    """One experiment with `algorithms x tasks x seeds` finished seeds of `points` evaluations."""
    names = [f"algorithm_{index:02}" for index in range(algorithms)]
    places = [f"family/task_{index:02}" for index in range(tasks)]
    plan = SuitePlan(digest="d", algorithms=tuple(names), tasks=tuple(places), seeds=tuple(range(seeds)))
    ensure_board(store, SUITE, plan)
    generator = np.random.default_rng(0)
    for row, algorithm in enumerate(names):
        for task in places:
            identity = CellIdentity(
                suite=SUITE,
                cell_id=f"v1-{algorithm}-{task}",
                algorithm=algorithm,
                task=task,
                task_version="1",
                policy="flow",
                anchor_base=0.0,
                anchor_reference=10.0,
                budget=BUDGET,
                guards=GUARDS,
                suite_digest="d",
            )
            cell = ensure_cell(store, identity, seeds=range(seeds))
            for seed in range(seeds):
                height = 4 + row / 5 + float(generator.normal(0, 0.5))
                _seed(store, cell, identity, seed, height, points)


def _seed(store: Store, cell: str, identity: CellIdentity, seed: int, height: float, points: int) -> None:
    experiment = store.client.get_experiment_by_name(identity.suite).experiment_id
    tags = {
        **identity.tags(),
        "rlflow.kind": "seed",
        "rlflow.seed": str(seed),
        "rlflow.attempt": "1",
        "rlflow.outcome": "finished",
        "rlflow.detail": "",
        "rlflow.hardware": "CPU x 2",
        "rlflow.git_sha": "0" * 40,
        "rlflow.git_dirty": "false",
        "rlflow.lock_sha": "0" * 16,
        "rlflow.heartbeat": "0",
        "rlflow.process": "machine:1",
        "mlflow.parentRunId": cell,
    }
    run_id = store.client.create_run(experiment, run_name=f"seed {seed}", tags=tags).info.run_id
    store.client.log_batch(run_id, params=[Param(name, value) for name, value in PARAMS.items()])
    metrics = []
    for step in np.linspace(0, BUDGET, (points - 1) * ITERATIONS_PER_EVALUATION + 1).astype(int).tolist():
        metrics += [Metric(f"cost/{name}", step / 100 + seed, step, step) for name in COSTS]
    for step in np.linspace(0, BUDGET, points).astype(int).tolist():
        value = height * (1 - float(np.exp(-4 * step / BUDGET)))
        metrics += [Metric(f"eval/{name}", value, step, step) for name in EVALUATED]
    for start in range(0, len(metrics), MAX_METRICS):
        store.client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
    store.client.set_terminated(run_id)


def timed(name: str, action: Callable[[], Answer], spent: dict[str, tuple[float, float]]) -> Answer:
    """The answer of `action`; its wall-clock and CPU seconds are kept in `spent`."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = action()
    spent[name] = (time.perf_counter() - wall, time.process_time() - cpu)
    return answer


def main() -> None:
    """Make the store, time each stage, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("algorithms", 10), ("tasks", 10), ("seeds", 10), ("points", 21)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--store", type=Path, help="folder of the store; made and filled where it is missing")
    parser.add_argument("--write", action="store_true", help="also write the files and figures")
    arguments = parser.parse_args()
    shape = (arguments.algorithms, arguments.tasks, arguments.seeds, arguments.points)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch) / "results"
        if not (folder / "mlflow.db").exists():
            fill(open_store(results=folder), *shape)
        spent: dict[str, tuple[float, float]] = {}
        store = timed("open", lambda: open_store(results=folder, create=False), spent)
        board = timed("read and rank", lambda: read_board(store, SUITE), spent)
        console = Console(file=io.StringIO(), width=200)
        timed("print", lambda: console.print(terminal_table(board)), spent)
        limited = tuple(map(sum, zip(*spent.values(), strict=True)))
        if arguments.write:
            timed("write files", lambda: write_board(board, Path(scratch) / "board"), spent)
    seeds = sum(len(cell.seeds) for entrant in board.entrants for cell in entrant.cells.values())
    print(json.dumps({"seeds": seeds, "ranked": len(board.ranked), "points": arguments.points}))
    for name, (wall, cpu) in {**spent, f"leaderboard (limit {LIMIT_S:g} s)": limited}.items():
        print(f"{name:28} {wall:7.2f} s wall  {cpu:7.2f} s CPU")


if __name__ == "__main__":
    main()
