"""The matrix on a Ray cluster of this machine: the same board, also when a node is lost, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from rlflow import provenance, ray_launch
from rlflow.board import Board, SeedResult
from rlflow.leaderboard import read_board, read_states
from rlflow.ray_launch import Request, request
from rlflow.report_measures import COUNTS
from rlflow.settings import TrainerConfig
from rlflow.store import Store, ensure_experiment, open_store, search_runs
from tests.matrix_command import Meanwhile, invoke, tags
from tests.toys import SUITE

pytest_plugins = ("tests.mlflow_fixtures",)
# A cluster on a busy machine takes minutes to start its workers.
pytestmark = pytest.mark.timeout(900)

# A hundred iterations, judged every fifth: long enough to lose the node after the first checkpoint.
LONG = "  long: {settings: {trainer.budget: 1600, trainer.num_evaluations: 21}}\n"
ARGUMENTS = {"num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with one CPU; a test may add nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Its handlers at exit could only be set on the main thread, and a node is added from another one.
        started = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={"num_cpus": 1, "include_dashboard": False, **ARGUMENTS},
        )
        yield started
        started.shutdown()


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "toys.yaml"
    path.write_text(SUITE + LONG)
    return path


def on_ray(cluster: Cluster, suite: Path, results: Path, *arguments: str, **options: Any) -> Any:
    return invoke(suite, results, "--launcher", "ray", "--address", cluster.address, *arguments, **options)


def without_clock(seed: SeedResult) -> SeedResult:
    counts = {name: seed.costs[name] for name in COUNTS}
    return replace(seed, wall_s=0.0, costs=counts, seconds=(), run_id="")


def timeless(board: Board) -> Any:
    """What does not depend on clocks and ids."""
    return [
        (
            entrant.algorithm,
            entrant.headline,
            entrant.rank,
            [without_clock(seed) for cell in entrant.cells.values() for seed in cell.seeds],
        )
        for entrant in board.entrants
    ]


def begun_on(node_id: str, results: Path) -> list[Path]:
    """Folders of the seeds that have a checkpoint and run on a node."""
    logs = [path.with_name("log.txt") for path in results.glob("runs/*/*/seed0/last.ckpt")]
    return [log.parent for log in logs if node_id in log.read_text()]


def up_to_the_node(pid: int) -> list[psutil.Process]:
    """The process and its parents below the node's own, which ends them in its time."""
    parents = psutil.Process(pid).parents()
    names = [parent.name() for parent in parents]
    return [psutil.Process(pid), *parents[: names.index("raylet")]]


def test_a_lost_node_costs_no_seed_and_the_board_is_that_of_this_machine(
    cluster: Cluster, suite: Path, store: Store, tmp_path: Path
) -> None:
    results, experiment = store.lock_path.parent, "toys@1-long"
    moved: list[str] = []

    def lose_a_node_that_joins(during: Meanwhile) -> None:
        # The matrix is on the head then: the node of the matrix itself must not be the lost one.
        during.wait_until(ray.is_initialized)
        second = cluster.add_node(num_cpus=1, **ARGUMENTS)
        during.wait_until(lambda: begun_on(second.node_id, results))
        (there,) = begun_on(second.node_id, results)
        moved.append(there.parent.name.partition("-")[0])
        pid = int(tags(store, experiment, moved[0])["rlflow.process"].rpartition(":")[2])
        # A machine takes its processes with it: the run must not write a last checkpoint, nor its task report a death.
        processes = up_to_the_node(pid)
        for process in processes:
            process.suspend()
        try:
            cluster.remove_node(second, allow_graceful=False)
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    done = on_ray(cluster, suite, results, "--budget", "long", meanwhile=lose_a_node_that_joins)
    assert done.exit_code == 0, done.output
    assert re.search(rf"lost +{moved[0]} toy seed 0 \(1 of at most 3\)", done.output)
    assert len(re.findall(r"finished +(ppo|fpo) toy seed 0", done.output)) == 2
    states = {name: tags(store, experiment, name) for name in ("ppo", "fpo")}
    # The seed went on in its MLflow run; a start anew would be a run of its own.
    assert {name: int(t["rlflow.attempt"]) for name, t in states.items()} == {
        name: 1 + (name == moved[0]) for name in states
    }
    superseded = search_runs(store, ensure_experiment(store, experiment), {"kind": "superseded"})
    assert superseded == []

    alone = tmp_path / "alone"
    assert invoke(suite, alone, "--budget", "long").exit_code == 0
    here = read_board(open_store(results=alone), experiment)
    assert timeless(read_board(store, experiment)) == timeless(here)
    # Neither is equal because it is empty.
    assert [entrant.complete for entrant in here.entrants] == [True, True]


def test_ctrl_c_takes_back_what_waits_and_leaves_a_checkpoint_of_what_runs(
    cluster: Cluster, suite: Path, store: Store
) -> None:
    results, experiment = store.lock_path.parent, "toys@1-endless"

    def interrupt(during: Meanwhile) -> None:
        during.wait_until(lambda: len(list(results.glob(f"runs/{experiment}/*/seed0/last.ckpt"))) == 1)
        during.interrupt()

    cut = on_ray(cluster, suite, results, "--budget", "endless", "--jobs", "2", meanwhile=interrupt)
    assert cut.exit_code == 130, cut.output
    assert len(re.findall(r"interrupted +(ppo|fpo) toy seed 0", cut.output)) == 2
    assert [seed.state for seed in read_states(store, experiment).values()] == ["interrupted"]
    assert len(list(results.glob(f"runs/{experiment}/*/seed0/last.ckpt"))) == 1


def test_a_file_as_tracking_store_is_refused_where_a_node_is_another_machine(
    cluster: Cluster, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "machine", lambda: "laptop-1234")
    refused = on_ray(cluster, suite, tmp_path / "results")
    assert refused.exit_code == 2
    assert re.search(r"node \S+ \(\S+\): expected a tracking server that every node reaches, found", refused.output)
    assert "a file of laptop-1234: start `mlflow server" in refused.output
    assert not (tmp_path / "results").exists()


def test_a_node_that_is_lost_while_it_is_examined_is_left_out(
    cluster: Cluster, suite: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, nodes = cluster.add_node(num_cpus=1, **ARGUMENTS), ray_launch.alive

    def listed_before_the_loss() -> list[dict[str, Any]]:
        listed = nodes()
        assert second.node_id in [node["NodeID"] for node in listed]
        cluster.remove_node(second, allow_graceful=False)
        monkeypatch.setattr(ray_launch, "alive", nodes)
        return listed

    monkeypatch.setattr(ray_launch, "alive", listed_before_the_loss)
    done = on_ray(cluster, suite, store.lock_path.parent)
    assert done.exit_code == 0, done.output
    assert len(re.findall(r"finished +(ppo|fpo) toy seed 0", done.output)) == 2
    assert second not in cluster.worker_nodes


def test_a_node_with_another_version_is_named(
    cluster: Cluster, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == "lightning" else real(name))
    refused = on_ray(cluster, suite, tmp_path / "results")
    assert refused.exit_code == 2
    assert f"lightning {real('lightning')} instead of 9.9.9" in refused.output
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("settings", "on_gpus", "expected"),
    [
        # Threads times devices; one device shares its GPU with three other seeds, as on one machine.
        ({"num_threads": 0}, False, Request(cpus=1, gpus=0)),
        ({"num_threads": 2, "devices": 3, "accelerator": "cpu"}, True, Request(cpus=6, gpus=0)),
        ({"num_threads": 2}, True, Request(cpus=2, gpus=0.25)),
        ({"num_threads": 2, "devices": 4, "accelerator": "gpu"}, True, Request(cpus=8, gpus=4)),
    ],
)
def test_requests_follow_threads_and_devices(settings: dict[str, Any], on_gpus: bool, expected: Request) -> None:
    assert request(TrainerConfig(**settings), on_gpus) == expected


def test_a_node_holds_what_its_scarcest_resource_allows() -> None:
    node = {"Resources": {"CPU": 7.0, "GPU": 2.0, "memory": 1.0}}
    # 7 // 2 = 3 by CPUs, 2 // 0.25 = 8 by GPUs; 4 GPUs are not there.
    assert Request(cpus=2, gpus=0.25).fits(node) == 3
    assert Request(cpus=1, gpus=1).fits(node) == 2
    assert Request(cpus=1, gpus=4).fits(node) == 0
    assert Request(cpus=1, gpus=0).fits({"Resources": {}}) == 0


def test_requests_that_no_node_can_hold_are_refused(cluster: Cluster, suite: Path, tmp_path: Path) -> None:
    original = suite.read_text()
    for change, words in (
        ("trainer.accelerator: gpu", "expected GPUs for trainer.accelerator=gpu, found none in the cluster"),
        ("trainer.accelerator: cpu, trainer.num_threads: 64", "expected a node with 64 CPUs and 0 GPUs, found node"),
    ):
        suite.write_text(original.replace("trainer.accelerator: cpu", change))
        refused = on_ray(cluster, suite, tmp_path / "results")
        assert (refused.exit_code, words in refused.output) == (2, True), refused.output
    assert not (tmp_path / "results").exists()


def test_without_a_cluster_nothing_is_made(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    far = invoke(suite, results, "--launcher", "ray", "--address", "127.0.0.1:9")
    assert (far.exit_code, "expected a Ray cluster at 127.0.0.1:9, found none" in far.output) == (2, True), far.output
    local = invoke(suite, results, "--address", "127.0.0.1:9")
    assert (local.exit_code, "--address 127.0.0.1:9 needs --launcher ray" in local.output) == (2, True)
    monkeypatch.delitem(sys.modules, "rlflow.ray_launch", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    without = invoke(suite, results, "--launcher", "ray")
    assert (without.exit_code, "pip install 'rlflow[ray]'" in without.output) == (2, True), without.output
    assert not results.exists()
