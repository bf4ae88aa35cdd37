"""The runs of kind `cell`: made when a seed of the cell is launched, summarised whenever one has ended.

Part of `rlflow.tracking`, the only writer of MLflow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.cell import CellIdentity
from rlflow.stats import normalised_score, standard_error
from rlflow.store import Store, create_run, ensure_experiment, locked, log_config, log_metrics, search_runs, set_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

CURVE = "curve.svg"

_log = logging.getLogger(__name__)


def ensure_cell(
    store: Store, identity: CellIdentity, *, seeds: Sequence[int], config: Mapping[str, Any] | None = None
) -> str:
    """Run id of the cell, created where it is not there; `seeds` are added to those that it has launched.

    Args:
        store: An opened store.
        identity: The cell.
        seeds: Seeds that will run: the board counts all of them, also those that never finish.
        config: Resolved configuration, nested; logged whole as params and config.yaml when the cell is created.
    """
    experiment = ensure_experiment(store, identity.suite)
    with locked(store.lock_path):
        found = search_runs(store, experiment, {"kind": "cell", "cell_id": identity.cell_id})
        if found:
            run_id = str(found[0].info.run_id)
            if missing := _missing_tags(found[0].data.tags, identity, seeds):
                set_tags(store, run_id, missing)
            return run_id
        tags = {**identity.tags(), "rlflow.kind": "cell", "rlflow.seeds": json.dumps(sorted(set(seeds)))}
        name = f"{identity.algorithm} | {identity.task} | {identity.policy}"
        run_id = create_run(store, experiment, name, tags)
        if config is not None:
            log_config(store, run_id, config)
    return run_id


def _missing_tags(tags: Mapping[str, str], identity: CellIdentity, seeds: Sequence[int]) -> dict[str, str]:
    """What a recorded cell lacks: new seeds, and the footnote, which a launcher of other machines does not know."""
    launched = set(json.loads(tags["rlflow.seeds"]))
    missing = {} if launched >= set(seeds) else {"rlflow.seeds": json.dumps(sorted(launched | set(seeds)))}
    return missing | ({"rlflow.note": identity.note} if identity.note and not tags.get("rlflow.note") else {})


def summarise_cell(store: Store, identity: CellIdentity) -> None:
    """Rewrite the summary of a cell whose seeds ended on machines without a lock in common."""
    summarise(store, identity, ensure_cell(store, identity, seeds=()))


def summarise(store: Store, identity: CellIdentity, cell_run: str) -> None:
    """Rewrite the scores of a cell from its seeds, and its curve once every seed has a result."""
    if _write_scores(store, identity, cell_run):
        _draw_curve(store, identity, cell_run)


def _draw_curve(store: Store, identity: CellIdentity, cell_run: str) -> None:
    """Keep curve.svg with a complete cell, after its last seed has ended; no drawing costs a seed its result."""
    try:
        from rlflow.figures_curves import cell_svg
        from rlflow.leaderboard import read_cell

        store.client.log_text(cell_run, cell_svg(read_cell(store, identity.suite, identity.cell_id)), CURVE)
    except Exception as error:
        _log.warning("%s of cell %s could not be drawn: %s", CURVE, identity.cell_id, error)


def _write_scores(store: Store, identity: CellIdentity, cell_run: str) -> bool:
    """Rewrite `score/*` of the cell from its seeds; a diverged seed counts as the untrained policy.

    Returns:
        Whether every seed that was launched or planned has a result.
    """
    experiment = ensure_experiment(store, identity.suite)
    with locked(store.lock_path):
        seeds = search_runs(store, experiment, {"kind": "seed", "cell_id": identity.cell_id})
        raw = [score for run in seeds if (score := _summary_score(run, identity.anchor_base)) is not None]
        wall_s = sum(float(run.data.metrics.get("cost/wall_s", 0.0)) for run in seeds)
        summary = {"score/n": float(len(raw)), "cost/wall_s": wall_s}
        if raw:
            z = normalised_score(raw, identity.anchor_base, identity.anchor_reference)
            summary |= {"score/mean": float(np.mean(raw)), "score/normalised": float(np.mean(z))}
        error = standard_error(raw)
        if error is not None:
            summary["score/se"] = error
        log_metrics(store, cell_run, summary, identity.budget)
        launched = set(json.loads(store.client.get_run(cell_run).data.tags["rlflow.seeds"]))
        if len(raw) == len(launched):
            store.client.set_terminated(cell_run, "FINISHED")
        else:
            store.client.update_run(cell_run, status="RUNNING")
        boards = search_runs(store, experiment, {"kind": "leaderboard"})
    planned = {seed for board in boards for seed in json.loads(board.data.tags.get("rlflow.seeds", "[]"))}
    return len(raw) == len(launched | planned)


def _summary_score(run: Run, anchor_base: float) -> float | None:
    outcome = run.data.tags.get("rlflow.outcome")
    if outcome == "diverged":
        return anchor_base
    return run.data.metrics.get("score/final") if outcome == "finished" else None
