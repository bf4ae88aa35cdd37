"""One process per training seed: what it is told, what it reports, how it is started and stopped.

The fork server imports torch, Lightning, MLflow and this package once (8 CPU seconds) and forks a process per seed in
milliseconds, so that all seeds also run the code that was there when the matrix began; it holds no CUDA context and no
threads of its own.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from rlflow.cell import CellIdentity
from rlflow.tracker import Outcome

PLAN_FILE = "plan.json"
PROGRESS_FILE = "progress.json"
LOG_FILE = "log.txt"
CHECKPOINT = "last.ckpt"
# Where Lightning starts this program again for the other ranks, they take the plan of the first.
PLAN_VARIABLE = "RLFLOW_PLAN"
PRELOAD = ["rlflow.cli", "rlflow.run", "rlflow.tracking", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"]


@dataclass(frozen=True, kw_only=True)
class SeedPlan:
    """Everything that one training process needs, as plain values.

    Attributes:
        resolved: `Config.resolved`, with the seed.
        identity: The cell that the seed belongs to.
        folder: Checkpoint, samples, log and progress of this seed.
        tracking_uri: MLflow store.
        results: Folder of the store's lock.
        resume: Continue the recorded run from the checkpoint in the folder; without it a checkpoint is ignored.
        device: Value of CUDA_VISIBLE_DEVICES; None leaves it alone.
        tags: Further tags of the run, a person's own.
    """

    resolved: Mapping[str, Any]
    identity: CellIdentity
    folder: Path
    tracking_uri: str
    results: Path
    resume: bool = False
    device: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Training seed."""
        return int(self.resolved["trainer"]["seed"])

    def write(self) -> Path:
        """Keep the plan in its folder; the file is the argument of `python -m rlflow.run`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / PLAN_FILE
        path.write_text(self.text(), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> SeedPlan:
        """The plan that `write` kept."""
        return cls.parse(path.read_text(encoding="utf-8"))

    @property
    def names(self) -> tuple[str, str]:
        """Registered algorithm and task; the entrant may be a variant with a name of its own."""
        return str(self.resolved["algorithm"]["name"]), self.identity.task

    def text(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self) | {"folder": str(self.folder), "results": str(self.results)}, indent=1)

    @classmethod
    def parse(cls, text: str) -> SeedPlan:
        """The plan that `text` wrote."""
        values = json.loads(text)
        values["identity"] = CellIdentity(**values["identity"])
        values["folder"], values["results"] = Path(values["folder"]), Path(values["results"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a seed is.

    Attributes:
        samples: Samples consumed.
        score: Newest evaluation; None before the first.
        evaluations: How many this process has made.
        wall_s: Seconds since this process began, with evaluation, artifacts and set-up.
        outcome: None while it runs.
        detail: Stage and step of a divergence, or the error.
    """

    samples: int = 0
    score: float | None = None
    evaluations: int = 0
    wall_s: float = 0.0
    outcome: Outcome | None = None
    detail: str = ""

    def write(self, folder: Path) -> None:
        """Replace the progress file at once, so that a reader never sees half of it."""
        temporary = folder / f".{PROGRESS_FILE}"
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        temporary.replace(folder / PROGRESS_FILE)

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Progress of the seed in `folder`; nothing done where the file is not there yet."""
        try:
            return cls(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()


class Child(Protocol):
    """A running training process, of this machine or of another."""

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""

    def progress(self) -> Progress:
        """How far it is; without an outcome while it runs and where it died."""

    def cause(self) -> str:
        """Why it died, and where its output is, for a person."""

    def stop(self) -> None:
        """Ask it to write its checkpoint and end; the second time it ends without."""

    def kill(self) -> None:
        """End it without asking."""


class Process(ABC):
    """A child on this machine, whose folder holds its progress and output."""

    _process: BaseProcess | subprocess.Popen[bytes]

    def __init__(self, process: BaseProcess | subprocess.Popen[bytes], folder: Path) -> None:
        self._process, self._folder = process, folder

    @abstractmethod
    def exit_code(self) -> int | None:
        """See `Child`."""

    def progress(self) -> Progress:
        """See `Child`."""
        return Progress.read(self._folder)

    def cause(self) -> str:
        """See `Child`."""
        code = self.exit_code()
        assert code is not None
        end = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process ended without a result ({end}); see {self._folder / LOG_FILE}"

    def stop(self) -> None:
        """See `Child`."""
        self._process.terminate()

    def kill(self) -> None:
        """See `Child`."""
        self._process.kill()


class Fork(Process):
    """A child of the fork server."""

    _process: BaseProcess

    def exit_code(self) -> int | None:
        """See `Child`."""
        return self._process.exitcode


class Command(Process):
    """A `python -m rlflow.run` of its own, which Lightning can start again for the other ranks."""

    _process: subprocess.Popen[bytes]

    def __init__(self, path: Path) -> None:
        with (path.parent / LOG_FILE).open("a") as log:
            # A session of its own keeps the terminal's Ctrl+C away: the matrix stops its children itself.
            process = subprocess.Popen(
                [sys.executable, "-m", "rlflow.run", str(path)], stdout=log, stderr=log, start_new_session=True
            )
        super().__init__(process, path.parent)

    def exit_code(self) -> int | None:
        """See `Child`."""
        return self._process.poll()


def quiet_libraries() -> None:
    """Silence progress bars and migrations; to be called before the libraries are imported."""
    for name, value in {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints the traceback of every error that it raises; who catches one tells it in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def limit_threads(num_threads: int) -> None:
    """Give every library of the processes to come `num_threads`; to be called before `warm_up`."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(num_threads)


def warm_up(modules: Sequence[str] = ()) -> ForkServerContext:
    """Start the fork server; it imports its own list and `modules`, those of the plugins, in the background."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, *modules])
    forkserver.ensure_running()
    return context


def start(plan: SeedPlan, context: ForkServerContext) -> Child:
    """Start the process of one seed; its output goes to the log in its folder."""
    path = plan.write()
    Progress().write(plan.folder)
    if int(plan.resolved["trainer"]["devices"]) > 1:
        return Command(path)
    process = context.Process(target=_forked, args=(str(path),), name=f"rlflow {plan.identity.cell_id} {plan.seed}")
    process.start()
    return Fork(process, plan.folder)


def _forked(path: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan = SeedPlan.read(Path(path))
    with (plan.folder / LOG_FILE).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if plan.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = plan.device
    from rlflow.run import main

    sys.exit(main([path]))
