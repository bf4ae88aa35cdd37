"""Suite -> cells -> seeds: what is done, what is to do, and the plan of every process to start.

Idempotent: a seed with a result is skipped, one that stopped is continued from its checkpoint, and a cell that was
recorded under another configuration is refused with the difference. Cells are plain values, so that only the process
that builds them needs the plugins and torch.
"""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlflow.cell import CellIdentity, SuitePlan
from rlflow.identity import cell_identity, difference, params
from rlflow.launch import CHECKPOINT, Progress, SeedPlan
from rlflow.leaderboard import CellRun, SeedState
from rlflow.registry import did_you_mean
from rlflow.settings import ConfigError, TrainerConfig
from rlflow.suite import Suite

MAX_DIFFERENCES = 12
# Other packages start in the open division: nobody has looked whether they keep the conditions of the closed one.
OWN_PACKAGE = "rlflow"
RESULTS = ("finished", "diverged")

State = Literal["to do", "resume", "running", "finished", "diverged"]


class MatrixError(RuntimeError):
    """A matrix that cannot run as asked; nothing has been started."""


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One pair of the suite with its whole configuration; seeds differ in `trainer.seed` alone.

    Attributes:
        resolved: `Config.resolved`.
        params: The same with dotted keys, as MLflow gives it back.
        trainer: Its hardware and budget.
        identity: The cell.
    """

    resolved: Mapping[str, Any]
    params: Mapping[str, str]
    trainer: TrainerConfig
    identity: CellIdentity

    @property
    def name(self) -> str:
        """`algorithm task`, which `--only` matches."""
        return f"{self.identity.algorithm} {self.identity.task}"

    @property
    def plugins(self) -> tuple[str, str]:
        """Registered algorithm and task; the entrant may be a variant with a name of its own."""
        return str(self.resolved["algorithm"]["name"]), self.identity.task


@dataclass(frozen=True, kw_only=True)
class Job:
    """One seed of one cell.

    Attributes:
        cell: The cell.
        seed: Training seed.
        state: What has been recorded.
        wall_s: Seconds that its process took, or its training alone where it ran on another machine.
        folder: Of the seed.
    """

    cell: PlannedCell
    seed: int
    state: State
    wall_s: float
    folder: Path

    @property
    def pending(self) -> bool:
        """Whether there is something to do."""
        return self.state in ("to do", "resume")

    def plan(self, *, tracking_uri: str, results: Path, num_threads: int, device: str | None = None) -> SeedPlan:
        """What its process is told."""
        resolved: dict[str, Any] = dict(self.cell.resolved)
        resolved["trainer"] = resolved["trainer"] | {"seed": self.seed, "num_threads": num_threads}
        return SeedPlan(
            resolved=resolved,
            identity=self.cell.identity,
            folder=self.folder,
            tracking_uri=tracking_uri,
            results=results,
            resume=self.state == "resume",
            device=device,
        )


def plan_cells(suite: Suite, budget: str, added: Sequence[str] = ()) -> list[PlannedCell]:
    """Every pair of the suite, and of `added` algorithms with its tasks; tasks outermost, in the suite's order.

    Raises:
        UnknownNameError: Unknown algorithm or task.
        ConfigError: A setting of the suite that does not fit.
        MissingCapabilityError: A pair that cannot run.
        MatrixError: A variant that is no other configuration.
    """
    algorithms = list(dict.fromkeys([*suite.algorithms, *added]))
    cells = [_planned(suite, budget, algorithm, task) for task in suite.tasks for algorithm in algorithms]
    names: dict[str, str] = {}
    for cell in cells:
        twin = names.setdefault(cell.identity.cell_id, cell.name)
        if twin != cell.name:
            raise MatrixError(f"{twin} and {cell.name} have one configuration; give the variant another setting")
    return cells


def selected(cells: Sequence[PlannedCell], pattern: str | None) -> list[PlannedCell]:
    """Cells whose `algorithm task` holds `pattern`, or matches it where it has wildcards.

    Raises:
        MatrixError: None does.
    """
    if pattern is None:
        return list(cells)
    wild = any(character in pattern for character in "*?[")
    chosen = [c for c in cells if (fnmatch.fnmatch(c.name, pattern) if wild else pattern in c.name)]
    if not chosen:
        names = [c.name for c in cells]
        raise MatrixError(f"--only {pattern!r} matches none of {len(names)} cells{did_you_mean(pattern, names)}")
    return chosen


def refuse_other_configurations(cells: Iterable[PlannedCell], recorded: Sequence[CellRun]) -> None:
    """Refuse to mix results of two configurations in one cell of the board.

    Raises:
        MatrixError: Names the parameters that differ.
    """
    for cell in cells:
        key = (cell.identity.algorithm, cell.identity.task, cell.identity.policy)
        for other in recorded:
            if (other.algorithm, other.task, other.policy) != key or other.cell_id == cell.identity.cell_id:
                continue
            lines = difference(cell.params, other.params) or ["version of the task"]
            more = f"\n  ... and {len(lines) - MAX_DIFFERENCES} more" if len(lines) > MAX_DIFFERENCES else ""
            raise MatrixError(
                f"{cell.name} is recorded in {cell.identity.suite} with another configuration "
                f"({other.cell_id}, planned {cell.identity.cell_id}):\n  "
                + "\n  ".join(lines[:MAX_DIFFERENCES])
                + f"{more}\nraise the suite's version, undo the change, or choose another --results"
            )


def make_jobs(
    cells: Sequence[PlannedCell],
    seeds: Sequence[int],
    states: Mapping[tuple[str, int], SeedState],
    results: Path,
) -> list[Job]:
    """Seeds outermost, so that a board with every pair comes first and its precision later."""
    return [_job(cell, seed, states.get((cell.identity.cell_id, seed)), results) for seed in seeds for cell in cells]


def suite_plan(suite: Suite, seeds: Sequence[int], added: Sequence[str] = ()) -> SuitePlan:
    """What the board expects, also where `--only` runs a part of it."""
    return SuitePlan(
        digest=suite.digest,
        algorithms=tuple(dict.fromkeys([*suite.algorithms, *added])),
        tasks=tuple(suite.tasks),
        seeds=tuple(seeds),
    )


def estimate_s(jobs: Sequence[Job]) -> dict[tuple[str, int], float]:
    """Seconds of pending jobs by `(cell_id, seed)`: mean of the cell's finished seeds, else of the task's.

    Absent where nothing comparable has finished.
    """
    answer = {}
    for job in jobs:
        if not job.pending:
            continue
        own = list(_walls(jobs, cell_id=job.cell.identity.cell_id))
        alike = own or list(_walls(jobs, task=job.cell.identity.task))
        if alike:
            answer[job.cell.identity.cell_id, job.seed] = statistics.fmean(alike)
    return answer


def _walls(jobs: Iterable[Job], cell_id: str | None = None, task: str | None = None) -> Iterator[float]:
    for job in jobs:
        identity = job.cell.identity
        if job.state == "finished" and (cell_id in (None, identity.cell_id)) and (task in (None, identity.task)):
            yield job.wall_s


def _planned(suite: Suite, budget: str, algorithm: str, task: str) -> PlannedCell:
    from rlflow.config import resolve

    try:
        config = resolve(suite.registered(algorithm), task, layers=suite.layers(algorithm, task, budget))
    except ConfigError as error:
        raise ConfigError(f"suite {suite.name}, budget {budget}, {algorithm} on {task}: {error}") from error
    identity = cell_identity(config, suite=suite.experiment(budget), division=suite.division, suite_digest=suite.digest)
    if identity.plugin != OWN_PACKAGE:
        identity = replace(identity, division="open")
    return PlannedCell(
        resolved=config.resolved,
        params=params(config),
        trainer=config.trainer,
        identity=replace(identity, algorithm=algorithm),
    )


def _job(cell: PlannedCell, seed: int, recorded: SeedState | None, results: Path) -> Job:
    identity = cell.identity
    name = f"{identity.algorithm}-{identity.task.replace('/', '-')}-{identity.cell_id}"
    folder = (results / "runs" / identity.suite / name / f"seed{seed}").resolve()
    return Job(
        cell=cell,
        seed=seed,
        state=_state(recorded, folder),
        wall_s=0.0 if recorded is None else Progress.read(folder).wall_s or recorded.wall_s,
        folder=folder,
    )


def _state(recorded: SeedState | None, folder: Path) -> State:
    if recorded is None:
        return "to do"
    if recorded.state == "finished":
        return "finished"
    if recorded.state == "diverged":
        return "diverged"
    if recorded.state == "running":
        return "running"
    return "resume" if (folder / CHECKPOINT).exists() else "to do"
