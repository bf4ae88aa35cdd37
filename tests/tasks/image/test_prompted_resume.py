"""A run of a pipeline that SIGKILL ends after a checkpoint and that is resumed is the undisturbed run, bit for bit."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import SeedPlan, limit_threads, warm_up
from rlflow.run import train
from rlflow.store import Store
from tests.kills import assert_same, curves, kill_after, state_of
from tests.tasks.image.tiny_task import save_folder, settings_of

pytest_plugins = ("tests.mlflow_fixtures",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("resumed"))


@pytest.fixture(scope="module")
def fork_server() -> ForkServerContext:
    limit_threads(1)
    return warm_up()


def plan_of(folder: Path, rank: int, store: Store, out: Path, *, suite: str, resume: bool = False) -> SeedPlan:
    words = [
        *settings_of(folder), f"task.trained.lora_rank={rank}", "trainer.budget=64", "trainer.num_evaluations=5",
        "trainer.num_threads=1", "algorithm.beta=0.04", "task.flow.window=1", "task.flow.window_place=sliding",
        "task.flow.window_every=3", "task.model.cached_prompts=2",
    ]  # fmt: skip
    config = resolve("flow_grpo", "image/prompted", words)
    return SeedPlan(
        resolved=config.resolved, identity=cell_identity(config, suite=suite), folder=out, tracking_uri=store.uri,
        results=store.lock_path.parent, resume=resume,
    )  # fmt: skip


@pytest.mark.parametrize("rank", [2, 0], ids=["lora", "full"])
def test_a_killed_and_resumed_run_is_the_undisturbed_one(
    rank: int, folder: Path, store: Store, tmp_path: Path, fork_server: ForkServerContext
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(plan_of(folder, rank, store, whole, suite="whole@1"), print).outcome == "finished"
    # Of evaluations after 0, 2, 4, 6 and 8 iterations the third: the checkpoint of the second is there.
    kill_after(plan_of(folder, rank, store, killed, suite="kill@1"), fork_server, evaluations=3, delay_s=0.0)
    assert 2 <= state_of(killed)["rlflow"]["iteration"] < 8
    again = plan_of(folder, rank, store, killed, suite="kill@1", resume=True)
    assert train(again, print).outcome == "finished"
    found, expected = state_of(killed), state_of(whole)
    assert_same(found, expected, "checkpoint")
    assert curves(store, "kill@1") == curves(store, "whole@1")
    # What was compared: trained weights that have moved, their average, which is another, the window's place.
    weights, averaged = expected["state_dict"], expected["rlflow"]["averaged"]
    assert int(weights["policy.iteration"]) == 8
    assert any("lora_B" in name for name in weights) is (rank > 0)
    trained = [value for name, value in weights.items() if "lora_B" in name or (rank == 0 and "bias" in name)]
    assert any(bool(value.any()) for value in trained)
    shapes = [value.shape for value in averaged]
    assert len(shapes) > 4
    assert not all(any(torch.equal(a, w) for w in weights.values()) for a in averaged)
