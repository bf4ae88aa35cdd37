"""The table of answers and their traces: once per evaluation, whatever is repeated on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlflow.answers import MAX_CHARACTERS, TABLE, as_traces, spread, write_table
from rlflow.cell import CellIdentity
from rlflow.journal import Journal, Write
from rlflow.samples import keep_samples
from rlflow.settings import TrainerConfig
from rlflow.store import Store, ensure_experiment, open_store
from rlflow.task import Answer, Evaluation
from rlflow.tracker import MemoryTracker
from rlflow.tracking import start_seed
from tests.servers import Server

pytest_plugins = ("tests.mlflow_fixtures",)

Make = Callable[..., CellIdentity]


def answer(place: int, step: int = 0) -> Answer:
    """The policy adds the step to every text."""
    return Answer(
        inputs={"prompt": f"question {place}"},
        outputs={"completion": f"text {place} after {step}"},
        judged={"reward": place / 4, "correct": place == 4},
    )


def evaluated(step: int) -> Evaluation:
    return Evaluation(metrics={"score": 1.0}, answers=[answer(place, step) for place in range(8)])


def rows(path: Path) -> list[dict[str, Any]]:
    table = json.loads(path.read_text())
    return [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]


def test_kept_answers_are_spread_over_all() -> None:
    every = [answer(place) for place in range(8)]
    # 0 * 8 // 3, 1 * 8 // 3, 2 * 8 // 3
    assert spread(every, 3) == [every[0], every[2], every[5]]
    assert spread(every, 100) == every
    assert spread(every, 0) == spread([], 4) == []


def test_an_evaluation_adds_its_rows_and_replaces_what_came_later(tmp_path: Path) -> None:
    for step in (0, 100, 200):
        write_table(tmp_path, [answer(1, step)], step)
    # Gone on from the checkpoint of step 0.
    path = write_table(tmp_path, [answer(2, 100)], 100)
    assert rows(path) == [
        {"step": 0, "prompt": "question 1", "completion": "text 1 after 0", "reward": 0.25, "correct": False},
        {"step": 100, "prompt": "question 2", "completion": "text 2 after 100", "reward": 0.5, "correct": False},
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    long = Answer(inputs={"prompt": "p"}, outputs={"completion": "x" * (MAX_CHARACTERS + 7)}, judged={})
    (row,) = rows(write_table(tmp_path, [long], 0))
    assert row["completion"] == "x" * MAX_CHARACTERS + " ... and 7 more characters"


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_text('{"columns": ["step"]}')
    with pytest.raises(ValueError, match=r"expected a table of answers at .*answers\.json, found .*; remove it"):
        write_table(tmp_path, [answer(1)], 0)


def test_settings_bound_rows_and_traces(tmp_path: Path) -> None:
    log = MemoryTracker()
    keep_samples(evaluated(0), tmp_path, log, 0, TrainerConfig(answer_rows=4, answer_traces=2))
    # rows 0, 2, 4, 6 of eight answers, of them the first and the third
    assert [row["prompt"] for row in rows(tmp_path / TABLE)] == [f"question {place}" for place in (0, 2, 4, 6)]
    assert log.traces == [(0, answer(0)), (0, answer(4))]
    assert log.artifacts == [TABLE]


@pytest.mark.parametrize(("result", "trainer"), [
    (evaluated(0), TrainerConfig(answer_rows=0, answer_traces=2)),
    (Evaluation(metrics={"score": 1.0}), TrainerConfig()),
])  # fmt: skip
def test_without_rows_there_is_no_table(result: Evaluation, trainer: TrainerConfig, tmp_path: Path) -> None:
    log = MemoryTracker()
    keep_samples(result, tmp_path, log, 0, trainer)
    assert (log.artifacts, log.traces, list((tmp_path / "samples/000000000").iterdir())) == ([], [], [])


def run_that_goes_on(store: Store, identity: CellIdentity, folder: Path) -> str:
    """Evaluates at 0, 100, 200, dies, goes on from the checkpoint of 100 and evaluates at 200 and 300; its run."""
    trainer = TrainerConfig(answer_rows=4, answer_traces=2)
    for resume, steps in ((False, (0, 100, 200)), (True, (200, 300))):
        tracker = start_seed(store, identity, seed=0, config={}, resume=resume)
        for step in steps:
            tracker.log({"eval/score": 1.0}, step)
            keep_samples(evaluated(step), folder, tracker, step, trainer)
        if not resume:
            tracker.flush()
            store.client.set_tag(tracker.run_id, "rlflow.heartbeat", "0")
    tracker.finish("finished")
    return tracker.run_id


def assert_once(store: Store, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own readers find four rows and two traces of each evaluation."""
    experiment = ensure_experiment(store, "toy@1")
    # load_table searches with the global client.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.client.tracking_uri)
    table = store.client.load_table(experiment, TABLE, run_ids=[run_id])
    assert list(table.columns) == ["step", "prompt", "completion", "reward", "correct"]
    assert table["step"].tolist() == [0] * 4 + [100] * 4 + [200] * 4 + [300] * 4
    assert table["completion"].tolist()[-1] == "text 6 after 300"
    traces = store.client.search_traces(locations=[experiment], run_id=run_id)
    found = {}
    for trace in traces:
        (span,) = trace.data.spans
        found[int(trace.info.trace_metadata["rlflow.step"]), span.inputs["prompt"]] = span
    assert len(traces) == len(found) == 8
    assert found.keys() == {(step, f"question {place}") for step in (0, 100, 200, 300) for place in (0, 4)}
    last = found[300, "question 4"]
    assert last.outputs == {"completion": "text 4 after 300"}
    assert (last.get_attribute("reward"), last.get_attribute("correct")) == (1.0, True)
    assert len(store.client.search_traces(locations=[experiment], filter_string="tags.`rlflow.correct` = 'True'")) == 4


def test_a_run_that_goes_on_has_each_answer_once(
    store: Store, identity: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_once(store, run_that_goes_on(store, identity(), tmp_path / "seed"), monkeypatch)


def test_the_same_over_http(server: Server, identity: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(server.uri, results=tmp_path / "results")
    assert_once(store, run_that_goes_on(store, identity(), tmp_path / "seed"), monkeypatch)


def test_traces_of_a_write_that_is_sent_again_are_not_doubled(store: Store, identity: Make) -> None:
    tracker = start_seed(store, identity(), seed=0, config={})
    write = Write(traces=as_traces(tracker.run_id, [answer(1), answer(2)], 100, 1_700_000_000_000))
    for _ in range(2):
        Journal(store, tracker.run_id).send(write)
    tracker.finish("interrupted")
    assert len(store.client.search_traces(locations=[ensure_experiment(store, "toy@1")])) == 2
