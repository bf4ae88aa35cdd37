"""This machine as a launcher: how cores and GPUs are shared out."""

from __future__ import annotations

import pytest

from rlflow import launcher
from rlflow.launcher import ThisMachine, cuda_devices, entries_of, module_names
from rlflow.settings import TrainerConfig

TRAINER = TrainerConfig(accelerator="cpu")


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "num_cores", lambda: 8)


@pytest.mark.parametrize(("asked", "num_jobs", "threads"), [(None, 8, 1), (3, 3, 2), (16, 16, 1)])
def test_cores_are_shared_out_evenly(asked: int | None, num_jobs: int, threads: int) -> None:
    here = ThisMachine(asked, [])
    assert here.num_jobs == num_jobs
    assert here.share(TRAINER, 5) == (threads, None)


def test_gpus_are_taken_in_turn_by_four_seeds_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(launcher, "JOBS_PER_GPU", 2)
    here = ThisMachine(None, cuda_devices("auto"))
    assert here.num_jobs == 4
    assert [here.share(TRAINER, i) for i in range(3)] == [(2, "4"), (2, "6"), (2, "4")]
    assert cuda_devices("cpu") == []


def test_plugins_are_found_once_each() -> None:
    entries = entries_of([("ppo", "toy"), ("fpo", "toy")])
    assert sorted(entry.name for entry in entries) == ["fpo", "ppo", "toy"]
    assert {"algorithms.ppo", "rlflow.toy"} <= set(module_names(entries))
