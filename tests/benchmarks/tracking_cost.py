"""Share of a cell's time that is spent on MLflow: seconds inside the tracker against seconds of all its seeds.

    python tests/benchmarks/tracking_cost.py [--pairs ppo:control/halfcheetah ...] [--budget quick] [--seeds 5]

Trains the seeds of each pair of `core` as the matrix does, one process each, with a clock around everything that the
loop asks of its tracker: start, points, files, end with the cell's summary, and the curve, which the last seed draws.
Importing MLflow, and its migration of an empty database, are left out. Prints Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlflow import run
from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import SeedPlan, quiet_libraries
from rlflow.matrix import suite_plan
from rlflow.store import open_store
from rlflow.suite import load_suite
from rlflow.tracking import SeedTracker, ensure_board

DEFAULT_PAIRS = ("ppo:control/halfcheetah", "ppo:reasoning/countdown", "flow_grpo:image/shapes")
LIMIT = 0.02


class Clock:
    """Seconds inside the timed functions, counted once where one calls another."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time counted."""

        def call(*arguments: Any, **named: Any) -> Any:
            begin, self._depth = time.perf_counter(), self._depth + 1
            try:
                return function(*arguments, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begin

        return call


@contextmanager
def timed_tracker(clock: Clock) -> Iterator[None]:
    """Every way of a run into the tracking store has the clock."""
    names = ("log", "artifact", "answers", "flush", "finish")
    before = {name: getattr(SeedTracker, name) for name in names}
    opened = run._open_tracker
    try:
        for name, function in before.items():
            setattr(SeedTracker, name, clock.timed(function))
        run._open_tracker = clock.timed(opened)
        yield
    finally:
        for name, function in before.items():
            setattr(SeedTracker, name, function)
        run._open_tracker = opened


def measure(pair: str, budget: str, seed: int, results: Path) -> tuple[float, float]:
    """Seconds of one seed's whole run and of those the tracker's."""
    quiet_libraries()
    algorithm, task = pair.split(":")
    suite = load_suite("core")
    given = [f"trainer.seed={seed}"]
    config = resolve(algorithm, task, given, layers=suite.layers(algorithm, task, budget))
    store = open_store(results=results)
    resolved: dict[str, Any] = dict(config.resolved)
    resolved["trainer"] = resolved["trainer"] | {"num_threads": 1}
    plan = SeedPlan(
        resolved=resolved,
        identity=cell_identity(config, suite=suite.experiment(budget)),
        folder=results / "runs" / pair.replace("/", "-") / str(seed),
        tracking_uri=store.uri,
        results=results,
        resume=False,
    )
    clock = Clock()
    begin = time.perf_counter()
    with timed_tracker(clock):
        end = run.train(plan, lambda _: None)
    assert end.outcome == "finished", end.detail
    return time.perf_counter() - begin, clock.seconds


def measure_cell(pair: str, budget: str, num_seeds: int, results: Path) -> tuple[float, float]:
    """Seconds of all seeds of a cell and of those the tracker's."""
    suite = load_suite("core")
    ensure_board(open_store(results=results), suite.experiment(budget), suite_plan(suite, range(num_seeds)))
    spawn = multiprocessing.get_context("spawn")
    whole, tracked = 0.0, 0.0
    for seed in range(num_seeds):
        with spawn.Pool(1) as process:
            seconds = process.apply(measure, (pair, budget, seed, results))
        whole, tracked = whole + seconds[0], tracked + seconds[1]
    return whole, tracked


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", nargs="+", default=DEFAULT_PAIRS, help="ALGORITHM:TASK")
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print("| pair | seeds | cell, s | tracker, s | share | limit |\n|---|---|---|---|---|---|")
    for pair in options.pairs:
        with tempfile.TemporaryDirectory() as name:
            whole, tracked = measure_cell(pair, options.budget, options.seeds, Path(name))
        share = f"{tracked / whole:.1%} | {LIMIT:.0%}"
        print(f"| {pair} | {options.seeds} | {whole:.1f} | {tracked:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
