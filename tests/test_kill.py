"""A run that SIGKILL ends at a random moment and that is resumed is the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from itertools import product
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import Progress, SeedPlan, limit_threads, start, warm_up
from rlflow.leaderboard import read_states
from rlflow.run import train
from rlflow.store import Store, ensure_experiment, history, search_runs
from rlflow.suite import load_suite
from tests.fakes import load

pytest_plugins = ("tests.mlflow_fixtures",)

SUITE = load_suite("core")
EXPERIMENT = "kill@1"
DEADLINE_S = 120
MAX_DELAY_S = 0.05
# Eight iterations, judged after 0, 2, 4, 6 and 8.
SIZES = {
    "image/shapes": ["trainer.budget=64", "task.groups_per_rollout=2", "task.group_size=4", "task.evaluation_groups=1"],
    "reasoning/countdown": [
        "trainer.budget=64",
        "task.groups_per_rollout=2",
        "task.group_size=4",
        "task.evaluation_prompts=2",
        "task.evaluation_samples=2",
    ],
    "control/halfcheetah": [
        "trainer.budget=512",
        "task.group_size=2",
        "task.num_steps=32",
        "task.eval_episodes=1",
        "task.video=false",
        "update.updates_per_rollout=20",
    ],
}
# Clocks and memory are those of the machine, not of the run.
MEASURED = ("cost/wall_s", "cost/gpu_s", "cost/peak_gb")


@pytest.fixture(scope="module")
def fork_server() -> ForkServerContext:
    limit_threads(1)
    return warm_up()


def plan_of(algorithm: str, task: str, store: Store, folder: Path, *, suite: str, resume: bool = False) -> SeedPlan:
    sizes = [*SIZES[task], "trainer.num_evaluations=5", "trainer.accelerator=cpu", "trainer.num_threads=1"]
    config = resolve(algorithm, task, sizes, layers=SUITE.layers(algorithm, task, "smoke"))
    return SeedPlan(
        resolved=config.resolved,
        identity=cell_identity(config, suite=suite),
        folder=folder,
        tracking_uri=store.uri,
        results=store.lock_path.parent,
        resume=resume,
    )


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


@pytest.mark.parametrize(("algorithm", "task"), list(product(SUITE.algorithms, SUITE.tasks)))
def test_a_killed_and_resumed_run_is_the_undisturbed_one(
    algorithm: str, task: str, store: Store, tmp_path: Path, fork_server: ForkServerContext
) -> None:
    assert train(plan_of(algorithm, task, store, tmp_path / "whole", suite="whole@1"), print).outcome == "finished"
    # Another moment for every pair and every session; the numbers are in the failure's message.
    seed = int.from_bytes(os.urandom(4))
    moment = random.Random(seed)
    # Not after the fourth of five: the rest would be over before a busy machine lets this process kill it.
    evaluations, delay_s = moment.randint(1, 3), moment.uniform(0.0, MAX_DELAY_S)
    killed = plan_of(algorithm, task, store, tmp_path / "killed", suite=EXPERIMENT)
    kill_after(killed, fork_server, evaluations, delay_s)
    (state,) = read_states(store, EXPERIMENT).values()
    assert state.state == "stale"
    resumed = (tmp_path / "killed" / "last.ckpt").exists()
    again = plan_of(algorithm, task, store, tmp_path / "killed", suite=EXPERIMENT, resume=resumed)
    assert train(again, print).outcome == "finished"
    when = f"killed {delay_s:.3f} s after evaluation {evaluations} (seed {seed}, resumed: {resumed})"
    assert_same(state_of(tmp_path / "killed"), state_of(tmp_path / "whole"), when)
    assert curves(store, EXPERIMENT) == curves(store, "whole@1"), when
