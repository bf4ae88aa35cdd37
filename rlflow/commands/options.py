"""Options that several commands share, and the layers that a suite gives to a pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow store, e.g. http://HOST:5000; SQLite under the results folder if not given."),
]
Results = Annotated[Path, typer.Option(help="Folder of the tracking database, checkpoints and boards.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, e.g. update.lr=1e-4", metavar="KEY=VALUE...")
]

DEFAULT_RESULTS = Path("results")
DEFAULT_BUDGET = "quick"
NO_SUITE = "none"


class UsageError(ValueError):
    """A command that was not called as it has to be; says how."""


def suite_layers(algorithm: str, task: str, suite: str, budget: str) -> tuple[list[dict[str, Any]], str]:
    """Layers of a pair in a suite and a line that says so; no layers where the suite does not have the pair.

    Raises:
        UnknownNameError: No such suite.
        SuiteError: No such budget.
    """
    from rlflow.suite import load_suite

    if suite == NO_SUITE:
        return [], "no suite: the task's preset and the defaults apply"
    loaded = load_suite(suite)
    if algorithm not in loaded.algorithms or task not in loaded.tasks:
        return [], f"{algorithm} on {task} is not in suite {suite}: the task's preset and the defaults apply"
    layers = loaded.layers(algorithm, task, budget)
    settings = ", ".join(f"{key}={value}" for layer in layers for key, value in dotted(layer).items())
    return layers, f"suite {loaded.experiment(budget)}: {settings or 'no settings'}"


def dotted(layer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in layer.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
