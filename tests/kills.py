"""Killing a seed at a moment, and comparing everything that it leaves with what an undisturbed one leaves."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from rlflow.launch import Progress, SeedPlan, start
from rlflow.store import Store, ensure_experiment, history, search_runs
from tests.fakes import load

DEADLINE_S = 120
# Clocks and memory are those of the machine, not of the run.
MEASURED = ("cost/wall_s", "cost/gpu_s", "cost/peak_gb")


def kill_after(plan: SeedPlan, context: ForkServerContext, evaluations: int, delay_s: float) -> None:
    """Start the seed and kill its process `delay_s` after the given number of evaluations."""
    child = start(plan, context)
    deadline = time.monotonic() + DEADLINE_S
    while Progress.read(plan.folder).evaluations < evaluations:
        assert child.exit_code() is None, (plan.folder / "log.txt").read_text()
        assert time.monotonic() < deadline, f"fewer than {evaluations} evaluations within {DEADLINE_S} s"
        time.sleep(0.002)
    time.sleep(delay_s)
    child.kill()
    while child.exit_code() is None:
        time.sleep(0.01)
    assert child.exit_code() == -signal.SIGKILL, "the run had ended before it was killed"


def curves(store: Store, suite: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of the suite's only seed as it was recorded, without those of the machine."""
    (run,) = search_runs(store, ensure_experiment(store, suite), {"kind": "seed"})
    names = [n for n in run.data.metrics if n not in MEASURED and not (n.startswith("cost/") and n.endswith("_s"))]
    return {name: [(p.step, p.value) for p in history(store, run.info.run_id, name)] for name in names}


def assert_same(found: Any, expected: Any, place: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{place}[{index}]")
    else:
        assert found == expected, place


def state_of(folder: Path) -> dict[str, Any]:
    """Everything in a checkpoint that the next iteration would depend on."""
    checkpoint = load(folder)
    state = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "rlflow")}
    del state["rlflow"]["cost"]["seconds"]
    return state
