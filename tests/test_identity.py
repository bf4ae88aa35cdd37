"""Cell identity: the same from a plan and from MLflow, moved by what moves results and by nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlflow.cell import CellIdentity
from rlflow.config import resolve
from rlflow.identity import cell_id, cell_identity, difference, params
from rlflow.store import Store, ensure_experiment, search_runs
from rlflow.tracking import start_seed

pytest_plugins = ("tests.mlflow_fixtures",)


def toy_id(*overrides: str, version: str = "1") -> str:
    return cell_id(params(resolve("ppo", "toy", overrides)), version)


def test_a_finished_run_gives_the_id_of_its_plan(store: Store) -> None:
    config = resolve("ppo", "toy", ["trainer.seed=4", "update.lr=1e-05", "trainer.budget=64"])
    identity = cell_identity(config, suite="toys@1-full")
    start_seed(store, identity, seed=4, config=config.resolved).finish("interrupted")
    (run,) = search_runs(store, ensure_experiment(store, "toys@1-full"), {"kind": "seed"})
    assert params(config) == run.data.params
    assert cell_id(run.data.params, run.data.tags["rlflow.task_version"]) == identity.cell_id
    assert difference(params(config), run.data.params) == []


@pytest.mark.parametrize(
    "override",
    [
        "trainer.seed=7",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "trainer.num_threads=3",
        "trainer.answer_rows=0",
        "trainer.answer_traces=8",
        "update.micro_batch=4",
        "update.micro_batch_decisions=64",
    ],
)
def test_seed_hardware_and_memory_are_not_part_of_the_cell(override: str) -> None:
    assert toy_id(override) == toy_id()


@pytest.mark.parametrize(
    "override",
    [
        "algorithm.clip=0.3",
        "task.group_size=8",
        "task.kind=flow",
        "update.lr=1e-3",
        "trainer.budget=64",
        "trainer.num_evaluations=5",
        "trainer.precision=bf16-mixed",
    ],
)
def test_what_moves_results_is_part_of_the_cell(override: str) -> None:
    assert toy_id(override) != toy_id()


def test_task_version_and_algorithm_are_part_of_the_cell() -> None:
    assert toy_id(version="2") != toy_id(version="1")
    assert cell_id(params(resolve("fpo", "toy")), "1") != toy_id()


def test_the_content_of_a_named_folder_is_part_of_the_cell(tmp_path: Path) -> None:
    def identity() -> CellIdentity:
        return cell_identity(resolve("ppo", "reasoning/countdown", [f"task.base={tmp_path}"]), suite="s@1-full")

    (tmp_path / "weights").write_bytes(b"one")
    first = identity()
    assert re.fullmatch(r"1\+base\.[0-9a-f]{12}", first.task_version)
    assert identity() == first
    (tmp_path / "weights").write_bytes(b"two")
    assert identity().cell_id != first.cell_id
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "weights").rename(tmp_path / "other")
    assert identity().cell_id != first.cell_id


def test_the_difference_names_key_and_both_values() -> None:
    planned = params(resolve("ppo", "toy", ["update.lr=1e-3", "trainer.seed=1"]))
    found = params(resolve("ppo", "toy", ["trainer.seed=2"])) | {"update.gone": "1"}
    assert difference(planned, found) == [
        "update.gone: planned (absent), recorded 1",
        "update.lr: planned 0.001, recorded 0.0003",
    ]
