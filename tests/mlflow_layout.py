"""What the contract promises of the runs of a matrix in MLflow, asked of a store that a real matrix has written."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rlflow.config import from_resolved
from rlflow.identity import params
from rlflow.store import Store, ensure_experiment, history, search_runs

TAGS = (
    *("kind", "algorithm", "task", "task_version", "policy", "division", "cell_id", "seed", "attempt", "outcome"),
    *("heartbeat", "hardware", "git_sha", "git_dirty", "lock_sha", "plugin"),
)
COSTS = ("wall_s", "gpu_s", "tokens", "env_steps", "policy_forwards", "optimizer_steps", "peak_gb")
BOARD = ("leaderboard.md", "leaderboard.html", "leaderboard.tex", "leaderboard.csv", "pairwise.csv", "MANIFEST.json")


def assert_layout(store: Store, experiment: str, digest: str, steps: list[int]) -> None:
    """Every seed, cell and the board of a finished toy matrix; `steps` are those of its evaluations."""
    number = ensure_experiment(store, experiment)
    runs = {kind: search_runs(store, number, {"kind": kind}) for kind in ("leaderboard", "cell", "seed")}
    assert len(runs["leaderboard"]) == 1
    assert {run.data.tags["rlflow.suite_digest"] for found in runs.values() for run in found} == {digest}
    cells = {run.info.run_id: run for run in runs["cell"]}
    for run in runs["seed"]:
        tags = run.data.tags
        assert [name for name in TAGS if not tags.get(f"rlflow.{name}")] == []
        cell = cells[tags["mlflow.parentRunId"]]
        shared = [f"rlflow.{name}" for name in ("algorithm", "task", "task_version", "policy", "division", "cell_id")]
        assert {name: cell.data.tags[name] for name in shared} == {name: tags[name] for name in shared}
        assert int(tags["rlflow.seed"]) in json.loads(cell.data.tags["rlflow.seeds"])
        # The whole configuration, as text that reads back to it.
        kept = yaml.safe_load(Path(store.client.download_artifacts(run.info.run_id, "config.yaml")).read_text())
        assert run.data.params == params(from_resolved(kept))
        # Samples are the step of every metric, and costs stand where the score does.
        assert [point.step for point in history(store, run.info.run_id, "eval/score")] == steps
        for name in COSTS:
            points = history(store, run.info.run_id, f"cost/{name}")
            assert set(steps) <= {point.step for point in points}, name
            assert [point.value for point in points] == sorted(point.value for point in points), name
        # The UI's axis of time is the time of the points.
        times = [point.timestamp for point in history(store, run.info.run_id, "eval/score")]
        assert times == sorted(set(times))
        assert {"config.yaml", "environment.txt", "checkpoints/last.ckpt", "eval/per_item.csv"} <= files(store, run)
    for run in cells.values():
        assert {"score/mean", "score/normalised", "score/n"} <= run.data.metrics.keys()
        assert {"config.yaml", "curve.svg"} <= files(store, run)
    kept_files = files(store, runs["leaderboard"][0])
    assert {*BOARD, "figures/headline.svg", "figures/curves_toy.svg"} <= kept_files
    note = store.client.get_experiment(number).tags["mlflow.note.content"]
    assert note.startswith(f"# Leaderboard {experiment}\n")


def files(store: Store, run: object) -> set[str]:
    """Paths of all artifacts of a run, one folder deep."""
    run_id = run.info.run_id  # type: ignore[attr-defined]
    found = store.client.list_artifacts(run_id)
    inside = [entry for folder in found if folder.is_dir for entry in store.client.list_artifacts(run_id, folder.path)]
    return {entry.path for entry in (*found, *inside)}
