"""Share of a run's time that is spent on MLflow: seconds inside the tracker against seconds of the whole run.

    python tests/benchmarks/tracking_cost.py [--pairs ppo:control/halfcheetah ...] [--budget quick]

Trains one seed of each pair of `core` as the matrix does, with a clock around everything that the loop asks of its
tracker: start, points, files, end with the cell's summary and curve. Importing MLflow, and its migration of an empty
database, happen once per matrix and are left out. Prints Markdown.
"""

from __future__ import annotations

import argparse
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
from rlflow.store import open_store
from rlflow.suite import load_suite
from rlflow.tracking import SeedTracker

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
    names = ("log", "artifact", "flush", "finish")
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


def measure(pair: str, budget: str, results: Path) -> tuple[float, float]:
    """Seconds of the whole run and of those the tracker's."""
    algorithm, task = pair.split(":")
    suite = load_suite("core")
    config = resolve(algorithm, task, layers=suite.layers(algorithm, task, budget))
    store = open_store(results=results)
    resolved: dict[str, Any] = dict(config.resolved)
    resolved["trainer"] = resolved["trainer"] | {"num_threads": 1}
    plan = SeedPlan(
        resolved=resolved,
        identity=cell_identity(config, suite=suite.experiment(budget)),
        folder=results / "runs" / pair.replace("/", "-"),
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


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", nargs="+", default=DEFAULT_PAIRS, help="ALGORITHM:TASK")
    parser.add_argument("--budget", default="quick")
    options = parser.parse_args()
    quiet_libraries()
    print("| pair | run, s | tracker, s | share | limit |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for pair in options.pairs:
            whole, tracked = measure(pair, options.budget, Path(name))
            print(f"| {pair} | {whole:.1f} | {tracked:.2f} | {tracked / whole:.1%} | {LIMIT:.0%} |", flush=True)


if __name__ == "__main__":
    main()
