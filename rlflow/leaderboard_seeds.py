"""From the runs of seeds to their results: curves of scores, guards and seconds, read for all of them together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlflow.board import Cell, SeedResult
from rlflow.curves import Curve, curves
from rlflow.leaderboard_runs import COSTS, RecordedRun
from rlflow.stats import final_score, normalised_score
from rlflow.store import Store
from rlflow.tracker import SCORE_METRIC
from rlflow.tracking import stale

COST_METRIC = "cost/wall_s"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Curves by run: scores, training seconds at the evaluations, and those of each guard by its name."""

    scores: Mapping[str, Curve]
    seconds: Mapping[str, Curve]
    guards: Mapping[str, Mapping[str, Curve]]


def read_curves(store: Store, runs: Sequence[RecordedRun]) -> Recorded:
    """Everything that the results of `runs` are made of, with one query per metric."""
    run_ids = [run.run_id for run in runs]
    scores = curves(store, run_ids, SCORE_METRIC)
    evaluated = {step for curve in scores.values() for step in curve}
    guarded: dict[str, list[str]] = {}
    for run in runs:
        for name in _guard_names(run):
            guarded.setdefault(name, []).append(run.run_id)
    return Recorded(
        scores=scores,
        seconds=curves(store, run_ids, COST_METRIC, evaluated) if evaluated else {},
        guards={name: curves(store, ids, f"eval/{name}") for name, ids in guarded.items()},
    )


def seed_result(cell: Cell, seed: int, run: RecordedRun, recorded: Recorded, warnings: list[str]) -> SeedResult:
    """The result of one seed of `cell`, whose own seeds are not looked at; adds to `warnings` why it does not count."""
    state, run_id = state_of(run), run.run_id
    curve = dict(sorted(recorded.scores[run_id].items()))
    final = normalised = None
    if state == "diverged":
        final, normalised = cell.anchor_base, 0.0
    elif state == "finished":
        try:
            final = final_score(list(curve), list(curve.values()), cell.budget)
            normalised = float(normalised_score(final, cell.anchor_base, cell.anchor_reference))
        except ValueError as error:
            name = f"{cell.algorithm} | {cell.task} | {cell.policy}"
            warnings.append(f"{name} | seed {seed} is finished but does not count: {error}")
    seconds = recorded.seconds.get(run_id, {})
    return SeedResult(
        seed=seed,
        outcome=state,
        detail=run.tags.get("rlflow.detail", ""),
        steps=tuple(curve),
        scores=tuple(curve.values()),
        seconds=tuple(seconds[step] for step in curve) if set(curve) <= set(seconds) else (),
        final=final,
        normalised=normalised,
        guards=_guards(run, recorded) if state == "finished" else {},
        wall_s=run.metrics.get(COST_METRIC, 0.0),
        costs={name: run.metrics[f"cost/{name}"] for name in COSTS if f"cost/{name}" in run.metrics},
        on_gpu=run.metrics.get("cost/gpu_s", 0.0) > 0,
        hardware=run.tags.get("rlflow.hardware", ""),
        run_id=run_id,
    )


def state_of(run: RecordedRun) -> str:
    """The outcome of a run, `running`, or `stale` where it is tagged as running without a process."""
    return "stale" if stale(run.tags, time.time()) else str(run.tags.get("rlflow.outcome", "failed"))


def provenance(runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    """Commits and hardware of `runs`, a line each; nothing where there are none."""
    commits = sorted(
        {
            run.tags.get("rlflow.git_sha", "unknown")[:10]
            + (" + uncommitted changes" if run.tags.get("rlflow.git_dirty") == "true" else "")
            for run in runs
        }
    )
    hardware = sorted({run.tags.get("rlflow.hardware", "unknown") for run in runs})
    return (f"commit {', '.join(commits)}", f"hardware {'; '.join(hardware)}") if runs else ()


def _guard_names(run: RecordedRun) -> list[str]:
    return [name for name in run.tags.get("rlflow.guards", "").split(",") if name]


def _guards(run: RecordedRun, recorded: Recorded) -> dict[str, tuple[float, float]]:
    """First and last value of each guard that the task has declared."""
    guards = {}
    for name in _guard_names(run):
        curve = recorded.guards[name][run.run_id]
        if curve:
            guards[name] = (curve[min(curve)], curve[max(curve)])
    return guards
