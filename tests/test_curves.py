"""Curves of many runs, from a database and from a server, are what MLflow's own client tells run by run."""

from __future__ import annotations

import pytest
from mlflow.entities import Metric

from rlflow import curves as curves_module
from rlflow.curves import curves
from rlflow.store import Store, create_run, ensure_experiment, history
from tests.mlflow_fixtures import served

pytest_plugins = ("tests.mlflow_fixtures",)

RUNS = {"a": [(0, 5, 1.0), (100, 6, 2.0), (100, 9, 3.0)], "b": [(200, 4, 7.0), (0, 8, 5.0)], "c": []}
"""Step, time and value of each point of `eval/score`, by run."""


@pytest.fixture
def run_ids(store: Store) -> dict[str, str]:
    """Runs with the points of `RUNS`, and with a metric that is not asked for."""
    experiment = ensure_experiment(store, "toy@1")
    found = {name: create_run(store, experiment, name, {}) for name in RUNS}
    for name, points in RUNS.items():
        metrics = [Metric("eval/score", value, when, step) for step, when, value in points]
        store.client.log_batch(found[name], metrics=[*metrics, Metric("eval/other", 9.0, 1, 300)])
    store.client.log_batch(found["b"], metrics=[Metric("eval/score", float("nan"), 9, 300)])
    return found


@pytest.mark.parametrize("runs_per_query", [1000, 1])
def test_the_last_written_value_of_each_step_counts(
    store: Store, run_ids: dict[str, str], monkeypatch: pytest.MonkeyPatch, runs_per_query: int
) -> None:
    monkeypatch.setattr(curves_module, "RUNS_PER_QUERY", runs_per_query)
    a, b, c = (run_ids[name] for name in "abc")
    # a wrote step 100 again, later; b has a point that is no number
    wanted = {a: {0: 1.0, 100: 3.0}, b: {0: 5.0, 200: 7.0}, c: {}}
    assert curves(store, [a, b, c], "eval/score") == wanted
    assert curves(served(store), [a, b, c], "eval/score") == wanted
    assert {run: {p.step for p in history(store, run, "eval/score")} for run in (a, c)} == {a: {0, 100}, c: set()}


@pytest.mark.parametrize("steps_per_query", [500, 1])
def test_only_the_steps_that_are_asked_for_are_answered(
    store: Store, run_ids: dict[str, str], monkeypatch: pytest.MonkeyPatch, steps_per_query: int
) -> None:
    monkeypatch.setattr(curves_module, "STEPS_PER_QUERY", steps_per_query)
    a, b = run_ids["a"], run_ids["b"]
    wanted = {a: {100: 3.0}, b: {200: 7.0}}
    assert curves(store, [a, b], "eval/score", {100, 200}) == wanted
    assert curves(served(store), [a, b], "eval/score", {100, 200}) == wanted
