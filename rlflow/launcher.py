"""Where the processes of a matrix run: the contract of a launcher, and this machine as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from rlflow.launch import Child, SeedPlan, limit_threads, start, warm_up
from rlflow.pool import Start
from rlflow.registry import Entry, find

if TYPE_CHECKING:
    from rlflow.settings import TrainerConfig
    from rlflow.store import Store

JOBS_PER_GPU = 4
CUDA_ACCELERATORS = ("auto", "gpu", "cuda")


class LaunchError(RuntimeError):
    """The processes cannot be started where they were asked for; nothing has been recorded yet."""


class Launcher(Protocol):
    """Starts the process of a seed somewhere.

    Attributes:
        num_jobs: How many run at a time.
    """

    num_jobs: int

    def share(self, trainer: TrainerConfig, index: int) -> tuple[int, str | None]:
        """Threads of the `index`th seed, and its CUDA_VISIBLE_DEVICES; None leaves that to the place where it runs."""

    def ready(
        self, store: Store, plans: Sequence[SeedPlan], say: Callable[[str], None]
    ) -> AbstractContextManager[Start]:
        """What starts a seed, while the block runs; `say` tells a person what happens elsewhere."""


class ThisMachine:
    """Forks of one server on the cores and GPUs of this machine.

    Args:
        num_jobs: At a time; None: one for each core, or JOBS_PER_GPU for each device.
        devices: Of `cuda_devices`.
    """

    def __init__(self, num_jobs: int | None, devices: Sequence[str]) -> None:
        self._devices = devices
        cores = num_cores()
        self.num_jobs = num_jobs or (min(cores, JOBS_PER_GPU * len(self._devices)) if self._devices else cores)
        self._num_threads = max(1, cores // self.num_jobs)

    def share(self, trainer: TrainerConfig, index: int) -> tuple[int, str | None]:
        """An equal share of the cores; the GPUs in turn."""
        return self._num_threads, self._devices[index % len(self._devices)] if self._devices else None

    @contextmanager
    def ready(self, store: Store, plans: Sequence[SeedPlan], say: Callable[[str], None]) -> Iterator[Start]:
        """See `Launcher`."""
        limit_threads(self._num_threads)
        context = warm_up(module_names(entries_of(plan.names for plan in plans)))

        def begin(plan: SeedPlan) -> Child:
            return start(plan, context)

        yield begin


def entries_of(pairs: Iterable[tuple[str, str]]) -> list[Entry]:
    """Registered algorithms and tasks of `(algorithm, task)` pairs, each once."""
    found = [find(kind, name) for pair in pairs for kind, name in zip(("algorithm", "task"), pair, strict=True)]
    return list({entry.target: entry for entry in found}.values())


def module_names(entries: Sequence[Entry]) -> list[str]:
    """Modules that the entries live in, sorted."""
    return sorted({entry.target.partition(":")[0] for entry in entries})


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cuda_devices(accelerator: str) -> list[str]:
    """Visible CUDA devices as values of CUDA_VISIBLE_DEVICES; none where the CPU is asked for."""
    if accelerator not in CUDA_ACCELERATORS:
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]
