"""The only reader of MLflow: a suite's board and the state of its seeds, from the tracking store alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlflow.board import Board, Cell
from rlflow.cell import SuitePlan
from rlflow.leaderboard_runs import RecordedRun, runs_of
from rlflow.leaderboard_seeds import Recorded, provenance, read_curves, seed_result, state_of
from rlflow.ranking import make_board
from rlflow.store import Store, TrackingError

_OF_CELL = ("cell_id", "algorithm", "task", "task_version", "policy", "anchor_base", "anchor_reference", "budget",
            "unit", "division")  # fmt: skip
TAGS_OF_KIND = {
    kind: frozenset(f"rlflow.{name}" for name in names)
    for kind, names in {"cell": (*_OF_CELL, "seeds"), "seed": (*_OF_CELL, "seed", "attempt")}.items()
}


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """A cell as it was launched: what the matrix compares with its plan."""

    run_id: str
    cell_id: str
    algorithm: str
    task: str
    policy: str
    seeds: tuple[int, ...]
    params: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SeedState:
    """Where one seed stands; `state` is an outcome, `running`, or `stale` (tagged as running without a process)."""

    run_id: str
    state: str
    detail: str
    attempt: int
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a suite has come to, before anything is ranked; `digests` are those of its file."""

    plan: SuitePlan | None
    cells: tuple[Cell, ...]
    warnings: tuple[str, ...]
    digests: tuple[str, ...]
    provenance: tuple[str, ...]


def read_results(store: Store, suite: str) -> Results:
    """Cells of `suite` with their seeds, a pure function of the store's content (of the clock only for stale runs).

    Raises:
        TrackingError: There is no such experiment; the known ones are named.
    """
    runs = _suite_runs(store, suite)
    plan = _plan(runs)
    seeds, warnings = _newest_seeds(runs)
    cell_runs, cell_warnings = _newest_cells(runs)
    known = {run.tags["rlflow.cell_id"] for run in cell_runs}
    shown = [run for (cell_id, _), run in seeds.items() if cell_id in known]
    recorded = read_curves(store, shown)
    cells = [_cell(run, seeds, plan, recorded, warnings) for run in cell_runs]
    num_ignored = sum(not _written_here(run) for run in runs)
    if num_ignored:
        warnings.append(f"{num_ignored} runs of the experiment were not written by rlflow and are ignored")
    all_cells = {run.tags["rlflow.cell_id"] for run in _of_kind(runs, "cell")}
    orphans = [(cell_id, run) for (cell_id, _), run in seeds.items() if cell_id not in all_cells]
    for parent in sorted({run.tags.get("mlflow.parentRunId", cell_id) for cell_id, run in orphans}):
        warnings.append(f"seeds of a cell that has been deleted are left out: `mlflow runs restore --run-id {parent}`")
    digests = sorted({run.tags.get("rlflow.suite_digest", "") for run in cell_runs})
    if len(digests) > 1:
        warnings.append(f"cells come from {len(digests)} versions of the suite file: {digests}")
    return Results(
        plan=plan,
        cells=tuple(cells),
        warnings=(*cell_warnings, *warnings),
        digests=tuple(digests),
        provenance=provenance(shown),
    )


def read_board(store: Store, suite: str) -> Board:
    """The leaderboard of `suite` (see `read_results`)."""
    results = read_results(store, suite)
    return make_board(
        suite,
        results.plan.digest if results.plan else "/".join(results.digests),
        results.cells,
        plan=results.plan,
        warnings=results.warnings,
        provenance=results.provenance,
    )


def read_cell(store: Store, suite: str, cell_id: str) -> Cell:
    """One cell with its seeds, whatever else the suite holds."""
    runs = _suite_runs(store, suite, cell_id)
    seeds, warnings = _newest_seeds(runs)
    return _cell(_of_kind(runs, "cell")[-1], seeds, None, read_curves(store, list(seeds.values())), warnings)


def read_states(store: Store, suite: str) -> dict[tuple[str, int], SeedState]:
    """State of every seed by `(cell_id, seed)`; empty where the suite has never run.  Reads no curves."""
    if store.client.get_experiment_by_name(suite) is None:
        return {}
    seeds, _ = _newest_seeds(_suite_runs(store, suite))
    return {
        key: SeedState(
            run_id=run.run_id,
            state=state_of(run),
            detail=run.tags.get("rlflow.detail", ""),
            attempt=int(run.tags["rlflow.attempt"]),
            wall_s=run.metrics.get("cost/wall_s", 0.0),
        )
        for key, run in seeds.items()
    }


def read_cells(store: Store, suite: str) -> list[CellRun]:
    """Every launched cell with its params, oldest first; empty where the suite has never run."""
    if store.client.get_experiment_by_name(suite) is None:
        return []
    return [
        CellRun(
            run_id=run.run_id,
            cell_id=run.tags["rlflow.cell_id"],
            algorithm=run.tags["rlflow.algorithm"],
            task=run.tags["rlflow.task"],
            policy=run.tags["rlflow.policy"],
            seeds=tuple(json.loads(run.tags["rlflow.seeds"])),
            params=dict(run.params),
        )
        for run in _of_kind(_suite_runs(store, suite, params=True), "cell")
    ]


def _suite_runs(store: Store, suite: str, cell_id: str | None = None, *, params: bool = False) -> list[RecordedRun]:
    """All runs of the experiment, or of one cell, oldest first."""
    experiment = store.client.get_experiment_by_name(suite)
    if experiment is None:
        known = sorted(e.name for e in store.client.search_experiments() if e.name != "Default")
        raise TrackingError(
            f"expected an experiment {suite!r} in {store.uri}, found {known}; run `rlflow matrix` first"
        )
    return runs_of(store, str(experiment.experiment_id), cell_id=cell_id, params=params)


def _of_kind(runs: list[RecordedRun], kind: str) -> list[RecordedRun]:
    return [run for run in runs if run.tags.get("rlflow.kind") == kind and _written_here(run)]


def _written_here(run: RecordedRun) -> bool:
    """Whether the run is rlflow's: it says so, and has what rlflow gives to its runs of this kind."""
    kind = run.tags.get("rlflow.kind")
    return kind is not None and run.tags.keys() >= TAGS_OF_KIND.get(kind, frozenset())


def _plan(runs: list[RecordedRun]) -> SuitePlan | None:
    boards = [run.tags for run in _of_kind(runs, "leaderboard") if "rlflow.suite_digest" in run.tags]
    if not boards:
        return None
    tags = boards[0]
    return SuitePlan(
        digest=tags["rlflow.suite_digest"],
        algorithms=tuple(json.loads(tags["rlflow.algorithms"])),
        tasks=tuple(json.loads(tags["rlflow.tasks"])),
        seeds=tuple(json.loads(tags["rlflow.seeds"])),
    )


def _newest_cells(runs: list[RecordedRun]) -> tuple[list[RecordedRun], list[str]]:
    """One cell per algorithm, task and policy; an older one with another identity is named, not mixed in."""
    newest: dict[tuple[str, str, str], RecordedRun] = {}
    warnings = []
    for run in _of_kind(runs, "cell"):
        tags = run.tags
        key = (tags["rlflow.algorithm"], tags["rlflow.task"], tags["rlflow.policy"])
        older = newest.get(key)
        if older is not None and older.tags["rlflow.cell_id"] != tags["rlflow.cell_id"]:
            warnings.append(
                f"{' | '.join(key)}: cell {older.tags['rlflow.cell_id']} is replaced by the newer "
                f"{tags['rlflow.cell_id']}, which has another configuration"
            )
        newest[key] = run
    return list(newest.values()), warnings


def _newest_seeds(runs: list[RecordedRun]) -> tuple[dict[tuple[str, int], RecordedRun], list[str]]:
    """The run of each `(cell_id, seed)`: the one with a result, else the newest."""
    seeds: dict[tuple[str, int], RecordedRun] = {}
    warnings = []
    for run in _of_kind(runs, "seed"):
        key = (run.tags["rlflow.cell_id"], int(run.tags["rlflow.seed"]))
        older = seeds.get(key)
        if older is not None and _has_result(older):
            # The first result counts: otherwise a seed could be repeated until it is lucky.
            if _has_result(run):
                warnings.append(f"cell {key[0]} seed {key[1]}: several results, the first one counts")
            continue
        seeds[key] = run
    return seeds, warnings


def _has_result(run: RecordedRun) -> bool:
    return run.tags.get("rlflow.outcome") in ("finished", "diverged")


def _cell(
    run: RecordedRun,
    seeds: Mapping[tuple[str, int], RecordedRun],
    plan: SuitePlan | None,
    recorded: Recorded,
    warnings: list[str],
) -> Cell:
    tags = run.tags
    launched = set(json.loads(tags["rlflow.seeds"])) | set(plan.seeds if plan else ())
    own = {seed: found for (cell_id, seed), found in seeds.items() if cell_id == tags["rlflow.cell_id"]}
    cell = Cell(
        algorithm=tags["rlflow.algorithm"],
        task=tags["rlflow.task"],
        task_version=tags["rlflow.task_version"],
        policy=tags["rlflow.policy"],
        cell_id=tags["rlflow.cell_id"],
        anchor_base=float(tags["rlflow.anchor_base"]),
        anchor_reference=float(tags["rlflow.anchor_reference"]),
        budget=int(tags["rlflow.budget"]),
        unit=tags["rlflow.unit"],
        division=tags["rlflow.division"],
        note=tags.get("rlflow.note", ""),
        launched=tuple(sorted(launched | set(own))),
        seeds=(),
    )
    return replace(cell, seeds=tuple(seed_result(cell, seed, own[seed], recorded, warnings) for seed in sorted(own)))
