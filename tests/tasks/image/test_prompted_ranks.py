"""A pipeline trained by two gloo processes is the one that a single process trains on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import assert_same_weights, fit, load, task_loop, weights
from tests.tasks.image.tiny_task import save_folder, settings_of

RANKS = 1e-5
"""Two ranks add the same float32 numbers in another order; Adam's normalised step keeps a part of that."""

ROOT = Path(__file__).parents[3]
# The KL asks for the velocities of the model with its LoRA off; FPO has no likelihood but losses at probes.
RUNS = ["flow_grpo algorithm.beta=0.04", "fpo algorithm.baseline=group task.flow.kl=velocity algorithm.beta=0.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("prompted"))


def words_of(folder: Path, run: str) -> list[str]:
    """Two iterations of 2 prompts x 4 images, two optimiser steps each, so that a rank has one prompt."""
    _, *settings = run.split()
    return [*settings_of(folder), "task.rows_per_pass=2", "update.lr=0.001", "trainer.budget=16", *settings]


@pytest.fixture(scope="module")
def two_ranks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], Any]]:
    """Checkpoint and log of each run on two processes."""
    out = tmp_path_factory.mktemp("ranks")
    more = ["trainer.strategy=ddp", "trainer.devices=2"]
    runs = [" ".join([run.split()[0], "image/prompted", *words_of(folder, run), *more]) for run in RUNS]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.ddp_run", str(out), *runs]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(load(out / str(i)), json.loads((out / str(i) / "logged.json").read_text())) for i in range(len(RUNS))]


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_two_processes_train_a_pipeline_as_one_does(
    number: int, folder: Path, two_ranks: list[tuple[dict[str, Any], Any]], tmp_path: Path
) -> None:
    alone = task_loop(RUNS[number].split()[0], "image/prompted", tmp_path, *words_of(folder, RUNS[number]))
    before = weights(alone)
    fit(alone)
    one, (two, logged) = load(tmp_path), two_ranks[number]
    assert_same_weights(two, one, atol=RANKS)
    # What was compared: a LoRA that moved a hundred times further than the tolerance.
    moved = {name: float((value - before[name]).abs().max()) for name, value in one["state_dict"].items()}
    assert max(value for name, value in moved.items() if "lora_B" in name) > 100 * RANKS
    assert two["rlflow"]["samples"] == one["rlflow"]["samples"] == 16
    # The rewards of both ranks' pictures, and the evaluation, are in what the first rank logs.
    compared = 0
    for (step, ours), (_, theirs) in zip(logged, alone.tracker.calls, strict=True):
        for name in (name for name in theirs if name.startswith(("reward/", "rollout/", "advantage/", "eval/"))):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), f"{name} at {step}"
            compared += name in ("reward/jpeg_compressibility", "eval/score")
    assert compared == 4
