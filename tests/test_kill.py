"""A run that SIGKILL ends at a random moment and that is resumed is the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
from itertools import product
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from rlflow.answers import TABLE
from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import SeedPlan, limit_threads, warm_up
from rlflow.leaderboard import read_states
from rlflow.run import train
from rlflow.store import Store
from rlflow.suite import load_suite
from tests.kills import assert_same, curves, kill_after, state_of

pytest_plugins = ("tests.mlflow_fixtures",)

SUITE = load_suite("core")
EXPERIMENT = "kill@1"
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
    tables = [tmp_path / name / TABLE for name in ("killed", "whole")]
    assert {table.exists() for table in tables} == {task == "reasoning/countdown"}
    assert not tables[1].exists() or tables[0].read_bytes() == tables[1].read_bytes(), when
