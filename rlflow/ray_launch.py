"""The seeds of a matrix as tasks of a running Ray cluster, one each, with the CPUs and GPUs that they need.

The cluster is examined before anything is recorded.  `rlflow.ray_seed` follows a seed over the loss of its nodes,
`rlflow.ray_node` is the other end of a task.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlflow.cell import CellIdentity
from rlflow.doctor import EXTRAS, PACKAGES
from rlflow.launch import Child, Progress, SeedPlan
from rlflow.launcher import CUDA_ACCELERATORS, JOBS_PER_GPU, LaunchError, entries_of, module_names
from rlflow.leaderboard import SeedState, read_states
from rlflow.matrix import PlannedCell
from rlflow.nodes import Demand, complaints, demand
from rlflow.pool import Start
from rlflow.settings import TrainerConfig
from rlflow.store import Store, default_uri
from rlflow.tracking_cells import ensure_cell, summarise_cell

try:
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise LaunchError(f"expected Ray to be installed, found: {error}; {EXTRAS['ray']}") from error

from rlflow.ray_node import INTERRUPTED, REPORT_S, Ending, Notice, NoticeBoard, run_seed
from rlflow.ray_seed import Loss, RaySeed

REACH_TIMEOUT_S = 5.0
EXAMINE_TIMEOUT_S = 180.0
# Ray misses a node after about half of this.
LOSS_TIMEOUT_S = 60.0
RUNNING_CLUSTER = "auto"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What Ray keeps free for one seed."""

    cpus: int
    gpus: float

    def fits(self, node: Mapping[str, Any]) -> int:
        """How many of these a node holds."""
        whole = node["Resources"]
        seeds = whole.get("CPU", 0) // self.cpus
        return int(min(seeds, whole.get("GPU", 0) // self.gpus) if self.gpus else seeds)


def request(trainer: TrainerConfig, on_gpus: bool) -> Request:
    """A CPU per thread; a GPU per device, or a share of one, as on a single machine, where there is one device.

    Raises:
        LaunchError: GPUs are asked for and the cluster has none.
    """
    cpus = max(1, trainer.num_threads) * trainer.devices
    if trainer.accelerator in CUDA_ACCELERATORS and on_gpus:
        return Request(cpus=cpus, gpus=trainer.devices if trainer.devices > 1 else 1 / JOBS_PER_GPU)
    if trainer.accelerator in CUDA_ACCELERATORS and trainer.accelerator != "auto":
        raise LaunchError(f"expected GPUs for trainer.accelerator={trainer.accelerator}, found none in the cluster")
    return Request(cpus=cpus, gpus=0)


class RayLauncher:
    """See `rlflow.launcher.Launcher`.

    Args:
        num_jobs: Tasks at a time; None fills the nodes that are there now.
        cells: To be run.
        wanted: What the nodes have been asked for.
        modules: Modules of the plugins.
    """

    def __init__(
        self, num_jobs: int | None, cells: Sequence[PlannedCell], wanted: Demand, modules: Sequence[str]
    ) -> None:
        nodes = alive()
        self._on_gpus = any(node["Resources"].get("GPU", 0) for node in nodes)
        self._wanted, self._modules = wanted, tuple(modules)
        requests = {request(cell.trainer, self._on_gpus) for cell in cells}
        _room(requests, nodes)
        staying = _examine([node for node in nodes if any(one.fits(node) for one in requests)], wanted)
        self.num_jobs = num_jobs or _room(requests, staying)

    def share(self, trainer: TrainerConfig, index: int) -> tuple[int, str | None]:
        """One thread, if the configuration does not say otherwise; Ray shares out the GPUs."""
        return max(1, trainer.num_threads), None

    @contextmanager
    def ready(self, store: Store, plans: Sequence[SeedPlan], say: Callable[[str], None]) -> Iterator[Start]:
        """See `Launcher`."""
        tasks = RayTasks(self._on_gpus, self._wanted, self._modules, say)
        started: dict[str, CellIdentity] = {}

        def begin(plan: SeedPlan) -> Child:
            identity = started.setdefault(plan.identity.cell_id, plan.identity)
            # Nodes have no lock in common: here the cells are created one at a time, with the seeds to come.
            ensure_cell(store, identity, seeds=(plan.seed,), config=plan.resolved)

            def state() -> SeedState | None:
                return read_states(store, identity.suite).get((identity.cell_id, plan.seed))

            placed = replace(plan, tracking_uri=store.uri, results=plan.results.resolve())
            return RaySeed(placed, tasks, state, say)

        yield begin
        # For the same reason a summary may have missed a seed that ended at the same time.
        for identity in started.values():
            summarise_cell(store, identity)


class RayTasks:
    """See `rlflow.ray_seed.Cluster`."""

    def __init__(self, on_gpus: bool, wanted: Demand, modules: tuple[str, ...], say: Callable[[str], None]) -> None:
        self._on_gpus, self._wanted, self._modules, self._say = on_gpus, wanted, modules, say
        # A soft affinity may still place the actor on another node, whose loss would be that of the matrix.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(NoticeBoard).options(num_cpus=0, scheduling_strategy=here).remote()
        self._notices: dict[str, Notice] = {}
        self._apart: set[str] = set()
        self._answer: Any | None = None
        self._asked_s = 0.0

    def submit(self, plan: SeedPlan, attempt: str) -> Any:
        """See `Cluster`."""
        plan.write()
        Progress().write(plan.folder)
        needs = request(TrainerConfig(**plan.resolved["trainer"]), self._on_gpus)
        task = ray.remote(run_seed).options(
            name=f"rlflow {plan.identity.algorithm} {plan.identity.task} seed {plan.seed}",
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            # A task that Ray repeats by itself would start the seed anew.
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        return task.remote(plan.text(), attempt, self._board, self._wanted, self._modules)

    def outcome(self, task: Any) -> Ending | Loss | None:
        """See `Cluster`."""
        done, _ = ray.wait([task], timeout=0)
        if not done:
            return None
        try:
            ending: Ending = ray.get(task)
        except TaskCancelledError:
            return Ending(code=INTERRUPTED, cause="taken back before it began")
        except RayTaskError as error:
            return Ending(code=1, cause=f"the task failed: {_last_line(error)}")
        except RayError as error:
            return Loss(reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return ending

    def notice(self, attempt: str) -> Notice | None:
        """See `Cluster`; never waits for the notice board."""
        if self._answer is None and time.monotonic() - self._asked_s > REPORT_S:
            self._answer, self._asked_s = self._board.notices.remote(), time.monotonic()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._notices, self._answer = ray.get(self._answer), None
            for node in {notice.node for notice in self._notices.values() if not notice.shared} - self._apart:
                self._apart.add(node)
                self._say(f"node {node} does not share the results folder: a seed that it loses starts anew")
        return self._notices.get(attempt)

    def ask(self, attempt: str, times: int) -> None:
        """See `Cluster`."""
        self._board.ask.remote(attempt, times)

    def cancel(self, task: Any) -> None:
        """See `Cluster`."""
        ray.cancel(task)


@contextmanager
def connect(
    address: str | None, *, num_jobs: int | None, cells: Sequence[PlannedCell], tracking_uri: str | None, results: Path
) -> Iterator[RayLauncher]:
    """The cluster at `address` (`HOST:PORT`), or the one that this machine runs.

    Raises:
        LaunchError: There is none, or it cannot run the cells; every fault of every node is named.
    """
    _reach(address)
    try:
        ray.init(address=address or RUNNING_CLUSTER, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise LaunchError(
            f"expected a Ray cluster at {address or 'this machine'}, found none that answers ({_last_line(error)}); "
            "start it with `ray start --head`, or name it with --address HOST:6379"
        ) from error
    try:
        entries = entries_of(cell.plugins for cell in cells)
        names = module_names(entries)
        distributions = [*PACKAGES, *(entry.package for entry in entries)]
        wanted = demand(distributions, names, tracking_uri or default_uri(results))
        yield RayLauncher(num_jobs, cells, wanted, names)
    finally:
        ray.shutdown()


def alive() -> list[dict[str, Any]]:
    """Nodes of the cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _reach(address: str | None) -> None:
    """One quick connection: Ray's own tries last a minute."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise LaunchError(
            f"expected a Ray cluster at {address}, found none within {REACH_TIMEOUT_S:g} s ({error}); "
            f"start it there with `ray start --head --port={port}`"
        ) from error


def _room(requests: Iterable[Request], nodes: Sequence[Mapping[str, Any]]) -> int:
    """Seeds that the nodes hold at a time."""
    rooms = {one: sum(one.fits(node) for node in nodes) for one in requests}
    for one, room in rooms.items():
        if not room:
            found = (
                ", ".join(f"{_name(node)} with {node['Resources'].get('CPU', 0):g}" for node in nodes) or "none with"
            )
            raise LaunchError(f"expected a node with {one.cpus} CPUs and {one.gpus:g} GPUs, found {found} CPUs")
    return max(rooms.values())


def _examine(nodes: Sequence[Mapping[str, Any]], wanted: Demand) -> list[Mapping[str, Any]]:
    """Ask every node what a seed would stumble over; the nodes that are still there afterwards."""
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(complaints).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[task.remote(wanted)] = node
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=EXAMINE_TIMEOUT_S)
    faults = [f"{_name(asked[task])}: no answer within {EXAMINE_TIMEOUT_S:g} s" for task in silent]
    staying = []
    for task in done:
        node = asked[task]
        try:
            faults += [f"{_name(node)}: {fault}" for fault in ray.get(task)]
        except RayError as error:
            # A node that has just been lost is on the list until the cluster misses it: others can do its work.
            if not isinstance(error, RayTaskError) and _leaves(node):
                continue
            faults.append(f"{_name(node)}: cannot run this rlflow, install it there ({_last_line(error)})")
        staying.append(node)
    if faults:
        raise LaunchError("expected nodes like this machine, found:\n  " + "\n  ".join(faults))
    return staying


def _leaves(node: Mapping[str, Any]) -> bool:
    """Whether the cluster strikes a node that did not answer from its list."""
    begin = time.monotonic()
    while any(other["NodeID"] == node["NodeID"] for other in alive()):
        if time.monotonic() - begin > LOSS_TIMEOUT_S:
            return False
        time.sleep(REPORT_S)
    return True


def _name(node: Mapping[str, Any]) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
