"""Two processes with sharded weights train as one with whole weights, and read and write its checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlflow.checkpoint import read_checkpoint
from rlflow.config import ConfigError, resolve
from rlflow.launch import CHECKPOINT
from rlflow.run import BuildError, build
from tests.fsdp_run import MIDDLE, new_loop, trained
from tests.tiny_models import save_tiny
from tests.vllm_stub import Stub, serving

RANKS = 1e-5
"""Two ranks add the same float32 numbers in another order; Adam's normalised step keeps a part of that."""
LOGGED = 1e-4

ROOT = Path(__file__).parent.parent
RUNS = [
    # A frozen copy as the reference, log Z, and rows that fall unevenly on the ranks.
    "flowrl update.micro_batch=2",
    "ppo task.lm.critic=separate task.trained.gradient_checkpointing=true",
    "reinforce_pp task.trained.lora_rank=2",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("Qwen2", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Any]]:
    """Folder and log of each run in this process."""
    folder = tmp_path_factory.mktemp("alone")
    loops = [trained(run, base, folder / str(number))[0] for number, run in enumerate(RUNS)]
    return [(loop.folder, loop.tracker.calls) for loop in loops]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    """One server for all tests of this file, which live as long as the runs that ask it."""
    with serving() as stub:
        yield stub


@pytest.fixture(scope="module")
def sharded(
    base: Path, alone: list[tuple[Path, Any]], server: Stub, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Folders of the runs on two gloo processes.

    The last but one is sampled by a server, the last goes on from the middle of the first one's run alone.
    """
    folder = tmp_path_factory.mktemp("sharded")
    apart = f"ppo task.engine=vllm task.vllm.server={server.address} task.vllm.canary_tolerance=100"
    runs = [*RUNS, apart, f"{RUNS[0]} resume={alone[0][0] / MIDDLE}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.fsdp_run", str(folder), str(base), *runs]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # FSDP's hooks hang on the tensors that a policy returns, which an operation in place takes off a view.
    assert "returned a view" not in done.stderr
    return [folder / str(number) for number in range(len(runs))]


def state(folder: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    assert checkpoint is not None
    return checkpoint


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights, moments and random streams."""
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for name, value in expected["state_dict"].items():
        assert type(found["state_dict"][name]) is Tensor
        assert torch.allclose(found["state_dict"][name], value, atol=RANKS, rtol=0), name
    (one,), (two,) = expected["optimizer_states"], found["optimizer_states"]
    assert two["param_groups"] == one["param_groups"]
    assert two["state"].keys() == one["state"].keys()
    for index, moments in one["state"].items():
        for name, value in moments.items():
            assert torch.allclose(two["state"][index][name], value, atol=RANKS, rtol=0), (index, name)
    for name, stream in expected["rlflow"]["streams"].items():
        assert torch.equal(found["rlflow"]["streams"][name], stream), name


def assert_logged_alike(found: Any, expected: Any) -> set[str]:
    """Losses, norms, rewards and scores; their names.

    Means over the tokens of a rank, which `advantage/` has, weigh the ranks alike and differ.
    """
    alike = ("loss/", "update/", "reward/", "rollout/", "eval/")
    assert [step for step, _ in found] == [step for step, _ in expected]
    compared = set()
    for (step, two), (_, one) in zip(found, expected, strict=True):
        for name in (n for n in one if n.startswith(alike)):
            assert two[name] == pytest.approx(one[name], rel=LOGGED, abs=LOGGED), f"{name} at {step}"
            compared.add(name)
    return compared


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_sharded_processes_train_as_one(
    number: int, base: Path, alone: list[tuple[Path, Any]], sharded: list[Path]
) -> None:
    folder, logged = alone[number]
    expected = state(folder)
    assert_same_training(state(sharded[number]), expected)
    compared = assert_logged_alike(json.loads((sharded[number] / "logged.json").read_text()), logged)
    assert compared >= {"update/grad_norm_actor", "reward/overlong", "eval/completion_tokens"}
    assert any(name.startswith("loss/") for name in compared)
    before = new_loop(RUNS[number], base, folder).state_dict()
    # The weights moved a hundred times further than the tolerance.
    assert max(float((expected["state_dict"][k] - v).abs().max()) for k, v in before.items()) > 100 * RANKS


def test_each_process_holds_its_part_of_the_weights(sharded: list[Path]) -> None:
    for folder in sharded:
        (first, total), (second, same) = (json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1))
        assert first + second == total == same
        # Rows that do not divide by two make the first part a little larger.
        assert first <= 0.52 * total


def test_a_run_goes_on_from_one_process_in_two_and_from_two_in_one(
    base: Path, alone: list[tuple[Path, Any]], sharded: list[Path], tmp_path: Path
) -> None:
    expected = state(alone[0][0])
    assert_same_training(state(sharded[-1]), expected)
    back, _ = trained(f"{RUNS[0]} resume={sharded[0] / MIDDLE}", base, tmp_path)
    assert_same_training(state(back.folder), expected)


def test_a_server_gets_whole_weights_once_from_all_processes(base: Path, server: Stub, sharded: list[Path]) -> None:
    final = state(sharded[-2])["state_dict"]
    before = new_loop("ppo", base, sharded[-2]).state_dict()
    assert server.weights.keys() == {name.removeprefix("policy.actor.") for name in final if "actor.model." in name}
    moved = []
    for name, weight in server.weights.items():
        # The last evaluation asked with the final weights.
        assert torch.equal(weight, final[f"policy.actor.{name}"]), name
        moved.append(float((weight - before[f"policy.actor.{name}"]).abs().max()))
    assert max(moved) > 100 * RANKS
    # Untrained, and after each of three iterations; evaluation and next rollout share them.
    assert server.paths.count("/update_weights") == 4


@pytest.mark.parametrize(
    ("algorithm", "task", "overrides", "message"),
    [
        ("ppo", "toy", ["task.kind=gaussian"], "expected a policy of layers .*, found GaussianPolicy; take .*=ddp"),
        ("ppo", "reasoning/countdown", ["task.engine=transformers-cb"], "expected task.engine=.* found Con"),
    ],
)
def test_what_needs_whole_weights_is_refused(
    algorithm: str, task: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    config = resolve(algorithm, task, [*overrides, "trainer.strategy=fsdp"])
    with pytest.raises(BuildError, match=rf"trainer\.strategy=fsdp: {message}"):
        build(config, tmp_path)


def test_an_average_of_sharded_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy=fsdp: expected update\.ema=0, found 0\.9"):
        resolve("ppo", "toy", ["update.ema=0.9", "trainer.strategy=fsdp"])
