"""The only reader of MLflow: a suite's board and the state of its seeds, from the tracking store alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlflow.board import Board, Cell, SeedResult
from rlflow.cell import SuitePlan
from rlflow.ranking import make_board
from rlflow.stats import final_score, normalised_score
from rlflow.store import Store, TrackingError, history
from rlflow.tracker import SCORE_METRIC
from rlflow.tracking import stale

if TYPE_CHECKING:
    from mlflow.entities import Run

PAGE = 1000


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


def read_board(store: Store, suite: str) -> Board:
    """The leaderboard of `suite`, a pure function of the store's content (and of the clock only for stale runs).

    Raises:
        TrackingError: There is no such experiment; the known ones are named.
    """
    runs = _suite_runs(store, suite)
    plan = _plan(runs)
    seeds, warnings = _newest_seeds(runs)
    cell_runs, cell_warnings = _newest_cells(runs)
    cells = [_cell(store, run, seeds, plan, warnings) for run in cell_runs]
    num_ignored = sum("rlflow.kind" not in run.data.tags for run in runs)
    if num_ignored:
        warnings.append(f"{num_ignored} runs of the experiment were not written by rlflow and are ignored")
    known = {run.data.tags["rlflow.cell_id"] for run in cell_runs}
    shown = [run for (cell_id, _), run in seeds.items() if cell_id in known]
    digests = sorted({run.data.tags.get("rlflow.suite_digest", "") for run in cell_runs})
    if len(digests) > 1:
        warnings.append(f"cells come from {len(digests)} versions of the suite file: {digests}")
    return make_board(
        suite,
        plan.digest if plan else "/".join(digests),
        cells,
        plan=plan,
        warnings=[*cell_warnings, *warnings],
        provenance=_provenance(shown),
    )


def read_states(store: Store, suite: str) -> dict[tuple[str, int], SeedState]:
    """State of every seed by `(cell_id, seed)`; empty where the suite has never run.  Reads no curves."""
    if store.client.get_experiment_by_name(suite) is None:
        return {}
    seeds, _ = _newest_seeds(_suite_runs(store, suite))
    return {
        key: SeedState(
            run_id=run.info.run_id,
            state=_state(run),
            detail=run.data.tags.get("rlflow.detail", ""),
            attempt=int(run.data.tags["rlflow.attempt"]),
            wall_s=run.data.metrics.get("cost/wall_s", 0.0),
        )
        for key, run in seeds.items()
    }


def read_cells(store: Store, suite: str) -> list[CellRun]:
    """Every launched cell with its params, oldest first; empty where the suite has never run."""
    if store.client.get_experiment_by_name(suite) is None:
        return []
    return [
        CellRun(
            run_id=run.info.run_id,
            cell_id=run.data.tags["rlflow.cell_id"],
            algorithm=run.data.tags["rlflow.algorithm"],
            task=run.data.tags["rlflow.task"],
            policy=run.data.tags["rlflow.policy"],
            seeds=tuple(json.loads(run.data.tags["rlflow.seeds"])),
            params=dict(run.data.params),
        )
        for run in _of_kind(_suite_runs(store, suite), "cell")
    ]


def _suite_runs(store: Store, suite: str) -> list[Run]:
    """All runs of the experiment, oldest first."""
    experiment = store.client.get_experiment_by_name(suite)
    if experiment is None:
        known = sorted(e.name for e in store.client.search_experiments() if e.name != "Default")
        raise TrackingError(
            f"expected an experiment {suite!r} in {store.uri}, found {known}; run `rlflow matrix` first"
        )
    runs: list[Run] = []
    token: str | None = None
    while token is None or token:
        page = store.client.search_runs(
            [experiment.experiment_id], max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        runs += page
        token = page.token or ""
    return runs


def _of_kind(runs: list[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.data.tags.get("rlflow.kind") == kind]


def _plan(runs: list[Run]) -> SuitePlan | None:
    boards = [run.data.tags for run in _of_kind(runs, "leaderboard") if "rlflow.suite_digest" in run.data.tags]
    if not boards:
        return None
    tags = boards[0]
    return SuitePlan(
        digest=tags["rlflow.suite_digest"],
        algorithms=tuple(json.loads(tags["rlflow.algorithms"])),
        tasks=tuple(json.loads(tags["rlflow.tasks"])),
        seeds=tuple(json.loads(tags["rlflow.seeds"])),
    )


def _newest_cells(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """One cell per algorithm, task and policy; an older one with another identity is named, not mixed in."""
    newest: dict[tuple[str, str, str], Run] = {}
    warnings = []
    for run in _of_kind(runs, "cell"):
        tags = run.data.tags
        key = (tags["rlflow.algorithm"], tags["rlflow.task"], tags["rlflow.policy"])
        older = newest.get(key)
        if older is not None and older.data.tags["rlflow.cell_id"] != tags["rlflow.cell_id"]:
            warnings.append(
                f"{' | '.join(key)}: cell {older.data.tags['rlflow.cell_id']} is replaced by the newer "
                f"{tags['rlflow.cell_id']}, which has another configuration"
            )
        newest[key] = run
    return list(newest.values()), warnings


def _newest_seeds(runs: list[Run]) -> tuple[dict[tuple[str, int], Run], list[str]]:
    """The run of each `(cell_id, seed)`: the one with a result, else the newest."""
    seeds: dict[tuple[str, int], Run] = {}
    warnings = []
    for run in _of_kind(runs, "seed"):
        key = (run.data.tags["rlflow.cell_id"], int(run.data.tags["rlflow.seed"]))
        older = seeds.get(key)
        if older is not None and _has_result(older):
            # The first result counts: otherwise a seed could be repeated until it is lucky.
            if _has_result(run):
                warnings.append(f"cell {key[0]} seed {key[1]}: several results, the first one counts")
            continue
        seeds[key] = run
    return seeds, warnings


def _has_result(run: Run) -> bool:
    return run.data.tags.get("rlflow.outcome") in ("finished", "diverged")


def _state(run: Run) -> str:
    return "stale" if stale(run.data.tags, time.time()) else str(run.data.tags.get("rlflow.outcome", "failed"))


def _cell(
    store: Store, run: Run, seeds: Mapping[tuple[str, int], Run], plan: SuitePlan | None, warnings: list[str]
) -> Cell:
    tags = run.data.tags
    base, reference = float(tags["rlflow.anchor_base"]), float(tags["rlflow.anchor_reference"])
    launched = set(json.loads(tags["rlflow.seeds"])) | set(plan.seeds if plan else ())
    own = {seed: found for (cell_id, seed), found in seeds.items() if cell_id == tags["rlflow.cell_id"]}
    name = f"{tags['rlflow.algorithm']} | {tags['rlflow.task']} | {tags['rlflow.policy']}"
    return Cell(
        algorithm=tags["rlflow.algorithm"],
        task=tags["rlflow.task"],
        task_version=tags["rlflow.task_version"],
        policy=tags["rlflow.policy"],
        cell_id=tags["rlflow.cell_id"],
        anchor_base=base,
        anchor_reference=reference,
        budget=int(tags["rlflow.budget"]),
        unit=tags["rlflow.unit"],
        division=tags["rlflow.division"],
        note=tags.get("rlflow.note", ""),
        launched=tuple(sorted(launched | set(own))),
        seeds=tuple(
            _seed(store, seed, own[seed], (base, reference), int(tags["rlflow.budget"]), name, warnings)
            for seed in sorted(own)
        ),
    )


def _seed(
    store: Store,
    seed: int,
    run: Run,
    anchors: tuple[float, float],
    budget: int,
    cell: str,
    warnings: list[str],
) -> SeedResult:
    state = _state(run)
    # One value per step: the last one written, should a resume have doubled a point.
    points = sorted(history(store, run.info.run_id, SCORE_METRIC), key=lambda point: (point.step, point.timestamp))
    curve = {point.step: point.value for point in points}
    final = normalised = None
    if state == "diverged":
        final, normalised = anchors[0], 0.0
    elif state == "finished":
        try:
            final = final_score(list(curve), list(curve.values()), budget)
            normalised = float(normalised_score(final, *anchors))
        except ValueError as error:
            warnings.append(f"{cell} | seed {seed} is finished but does not count: {error}")
    return SeedResult(
        seed=seed,
        outcome=state,
        detail=run.data.tags.get("rlflow.detail", ""),
        steps=tuple(curve),
        scores=tuple(curve.values()),
        final=final,
        normalised=normalised,
        guards=_guards(store, run) if state == "finished" else {},
        wall_s=run.data.metrics.get("cost/wall_s", 0.0),
        run_id=run.info.run_id,
    )


def _guards(store: Store, run: Run) -> dict[str, tuple[float, float]]:
    """First and last value of each guard that the task has declared."""
    guards = {}
    for name in filter(None, run.data.tags.get("rlflow.guards", "").split(",")):
        points = sorted(
            history(store, run.info.run_id, f"eval/{name}"), key=lambda point: (point.step, point.timestamp)
        )
        if points:
            guards[name] = (points[0].value, points[-1].value)
    return guards


def _provenance(runs: list[Run]) -> tuple[str, ...]:
    commits = sorted(
        {
            run.data.tags.get("rlflow.git_sha", "unknown")[:10]
            + (" + uncommitted changes" if run.data.tags.get("rlflow.git_dirty") == "true" else "")
            for run in runs
        }
    )
    hardware = sorted({run.data.tags.get("rlflow.hardware", "unknown") for run in runs})
    return (f"commit {', '.join(commits)}", f"hardware {'; '.join(hardware)}") if runs else ()
