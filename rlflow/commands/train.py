"""`rlflow train`: one seed of one pair in this process."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlflow.commands.options import (
    DEFAULT_BUDGET,
    DEFAULT_RESULTS,
    Overrides,
    Results,
    TrackingUri,
    UsageError,
    dotted,
    suite_layers,
)
from rlflow.launch import PLAN_VARIABLE

if TYPE_CHECKING:
    from rlflow.config import Config
    from rlflow.launch import SeedPlan
    from rlflow.store import Store

EXPERIMENT = "train@1"
RESERVED_TAGS = ("rlflow.", "mlflow.")


def train(
    algorithm: Annotated[str, typer.Argument(help="See `rlflow list`.")],
    task: Annotated[str, typer.Argument(help="See `rlflow list`; control/ENV-ID-v5 is any Gymnasium MuJoCo id.")],
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Training seed; trainer.seed if not given.")] = None,
    suite: Annotated[str, typer.Option(help="Suite whose settings apply where it has the pair, or `none`.")] = "core",
    budget: Annotated[str, typer.Option(help="Budget of the suite.")] = DEFAULT_BUDGET,
    tracking_uri: TrackingUri = None,
    results: Results = DEFAULT_RESULTS,
    folder: Annotated[
        Path | None, typer.Option(help="Checkpoint and samples; a checkpoint of the same run is continued.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Tag of the MLflow run; repeatable.")
    ] = None,
) -> None:
    """Train ALGORITHM on TASK."""
    if PLAN_VARIABLE in os.environ:
        from rlflow.run import main

        raise typer.Exit(main([os.environ[PLAN_VARIABLE]]))
    from rlflow.config import resolve

    tags = _tags(tag or [])
    layers, applied = suite_layers(algorithm, task, suite, budget)
    given = [*(overrides or []), *([] if seed is None else [f"trainer.seed={seed}"])]
    config = resolve(algorithm, task, given, layers)
    from rlflow.store import default_uri, open_store

    store = open_store(tracking_uri, results=results)
    target = folder or _folder(results, config)
    _make(target)
    from rlflow.display import Bar
    from rlflow.run import EXIT_CODES
    from rlflow.run import train as train_seed

    plan = replace(_plan(config, target, tracking_uri or default_uri(results), results), tags=tags)
    if folder is not None:
        plan = _continued(plan, store)
    path = str(plan.write())
    if config.trainer.devices > 1:
        os.environ[PLAN_VARIABLE] = path
    with Bar(config.trainer.budget) as bar:
        bar.say(applied)
        for section, values in config.resolved.items():
            bar.say(f"{section:<10} {' '.join(f'{key}={value}' for key, value in dotted(values).items())}")
        bar.say(f"{algorithm} on {task}, seed {plan.seed}, {config.num_iterations} iterations, folder {target}")
        end = train_seed(plan, bar.show)
        bar.say(f"{end.outcome}{': ' + end.detail if end.detail else ''}")
        if end.outcome in ("interrupted", "failed"):
            bar.say(f"continue it with the same command and --folder {target}")
    assert end.outcome is not None
    raise typer.Exit(1 if end.outcome == "diverged" else EXIT_CODES[end.outcome])


def _tags(given: list[str]) -> dict[str, str]:
    """`KEY=VALUE` each; the keys of rlflow and MLflow are theirs."""
    tags = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals or key.startswith(RESERVED_TAGS):
            raise UsageError(
                f"--tag: expected KEY=VALUE with a KEY that does not begin with {RESERVED_TAGS}, found {text!r}"
            )
        tags[key] = value
    return tags


def _plan(config: Config, folder: Path, tracking_uri: str, results: Path) -> SeedPlan:
    from rlflow.identity import cell_identity
    from rlflow.launch import SeedPlan

    identity = cell_identity(config, suite=EXPERIMENT, division="open")
    # Every folder is a cell of its own: the same configuration is trained again after a change of code.
    own = replace(
        identity, cell_id=f"{identity.cell_id}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
    )
    return SeedPlan(
        resolved=config.resolved, identity=own, folder=folder.resolve(), tracking_uri=tracking_uri, results=results
    )


def _continued(plan: SeedPlan, store: Store) -> SeedPlan:
    from rlflow.leaderboard import read_states

    known = read_states(store, EXPERIMENT).get((plan.identity.cell_id, plan.seed))
    return replace(plan, resume=known is not None)


def _folder(results: Path, config: Config) -> Path:
    name = f"{config.algorithm_name}-{config.task_name.replace('/', '-')}-seed{config.trainer.seed}"
    return results / "runs" / "train" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UsageError(f"expected a folder that can be written at {folder}, found: {error.strerror}") from error
