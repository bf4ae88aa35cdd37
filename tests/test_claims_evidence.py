"""Claims judged by runs on a real MLflow store."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import pytest

from rlflow.cell import CellIdentity
from rlflow.claims import ClaimsError, parse_claims
from rlflow.claims_evidence import Evidence, read_evidence
from rlflow.claims_page import claims_csv, claims_html, claims_markdown, summary
from rlflow.store import Store
from rlflow.tracking import start_seed

pytest_plugins = ("tests.mlflow_fixtures",)

Make = Callable[..., CellIdentity]
EXACT = 1e-9
CONFIG = {"algorithm": {"clip": 0.2}}
STEPS = (0, 100, 200, 300, 400)

TEST = "{says: it is so, kind: %s, of: {suite: toy@1, task: toy/walk, entrant: ppo}, than: %s%s}"


def record(store: Store, cell: CellIdentity, seed: int, curves: dict[str, list[float]]) -> None:
    tracker = start_seed(store, cell, seed=seed, config=CONFIG)
    for index, step in enumerate(STEPS):
        tracker.log({name: values[index] for name, values in curves.items()}, step)
    tracker.finish("finished")


def judged(store: Store, kind: str, than: str, more: str = "") -> Evidence:
    test = TEST % (kind, than, f", {more}" if more else "")
    text = f"name: mine\nclaims:\n- {{id: one, paper: A paper, statement: It is <so>., tests: [{test}]}}\n"
    return read_evidence(store, parse_claims(text, "mine.yaml"))


@pytest.fixture
def runs(store: Store, identity: Make) -> Store:
    """Five seeds each: ppo ends at 6, 6.1, ... and costs 40 s; fpo ends lower, is more diverse and costs 80 s."""
    for seed in range(5):
        shift = seed / 10
        record(
            store,
            identity("ppo"),
            seed,
            {"eval/score": [0, 4, *[6 + shift] * 3], "eval/width": [5, 3, 1, 1, 1], "cost/wall_s": [0, 10, 20, 30, 40]},
        )
        record(
            store,
            identity("fpo"),
            seed,
            {"eval/score": [0, 2, *[4 + shift] * 3], "eval/width": [5, 4, 3, 3, 3], "cost/wall_s": [0, 20, 40, 60, 80]},
        )
    return store


def test_a_score_is_compared_with_another_entrant_and_with_the_start(runs: Store) -> None:
    (found,) = judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5").judged[0].findings
    assert found.of.tolist() == pytest.approx([6.0, 6.1, 6.2, 6.3, 6.4], abs=EXACT)
    assert found.than.tolist() == pytest.approx([4.0, 4.1, 4.2, 4.3, 4.4], abs=EXACT)
    assert (found.verdict, found.effect) == ("replicated", pytest.approx(2.0, abs=EXACT))
    (start,) = judged(runs, "beats", "start").judged[0].findings
    assert (start.verdict, start.than.tolist()) == ("replicated", [0.0] * 5)


def test_other_metrics_and_costs_are_taken_at_the_end(runs: Store) -> None:
    (width,) = judged(runs, "matches", "{entrant: fpo}", "margin: 0.5, metric: eval/width").judged[0].findings
    assert (width.of.tolist(), width.than.tolist(), width.verdict) == ([1.0] * 5, [3.0] * 5, "not replicated")
    (cost,) = judged(runs, "cheaper", "{entrant: fpo}", "metric: cost/wall_s").judged[0].findings
    assert (cost.of.tolist(), cost.verdict, cost.effect) == ([40.0] * 5, "replicated", pytest.approx(2.0, abs=EXACT))


def test_a_metric_is_compared_where_both_sides_have_reached_the_same(runs: Store) -> None:
    more = "metric: eval/width, at_equal: eval/score, margin: 0.1"
    (found,) = judged(runs, "matches", "{entrant: fpo}", more).judged[0].findings
    # All have reached 4: ppo at 100 samples, where its width is 3; fpo seed 0 at 200 (3), seed 4 at
    # 100 + 100 (4 - 2)/(4.4 - 2) = 183.3 (3.1667).
    assert found.of.tolist() == [3.0] * 5
    assert found.than[[0, 4]].tolist() == pytest.approx([3.0, 4 - 0.8333333333], abs=1e-6)


def test_missing_runs_leave_a_test_undecided_and_name_the_command(runs: Store, identity: Make) -> None:
    one = judged(runs, "keeps", "{entrant: fpo, task: toy/run}", "margin: 0.5")
    assert one.judged[0].findings[0].reason == "no runs of fpo on toy/run in toy@1"
    assert (one.judged[0].verdict, one.commands) == ("undecided", ("rlflow matrix toy@1 --budget quick",))
    assert "Runs are missing: `rlflow matrix toy@1 --budget quick`." in summary(one)
    unknown = judged(runs, "keeps", "{entrant: fpo, suite: walk@2}", "margin: 0.5")
    assert unknown.judged[0].findings[0].reason == "no runs of fpo on toy/walk in walk@2"
    metric = judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5, metric: eval/depth")
    assert metric.judged[0].findings[0].reason == "no eval/depth in the runs of ppo on toy/walk"
    start_seed(runs, identity("fpo"), seed=5, config=CONFIG).finish("failed", "out of memory")
    part = judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5")
    assert part.judged[0].findings[0].reason == "5 of 6 seeds of fpo on toy/walk have a result in toy@1"


def test_runs_that_no_suite_can_make_are_refused_and_those_of_an_addition_named(runs: Store) -> None:
    def sides(words: str) -> str:
        return f"{{suite: smoke, task: toy, {words}}}"

    with pytest.raises(ClaimsError, match=r"suite smoke has no such entrant; did you mean ppo"):
        judged(runs, "beats", sides("entrant: pppo"))
    with pytest.raises(ClaimsError, match=r"suite smoke has no such task; known: toy"):
        judged(runs, "beats", "{suite: smoke, task: reasoning/countdown, entrant: ppo}")
    assert judged(runs, "beats", sides("entrant: ppo")).commands == ("rlflow matrix smoke --budget quick",)
    added = judged(runs, "beats", "{suite: claims-reasoning, task: reasoning/countdown, entrant: fpo}")
    assert added.commands == ("rlflow matrix claims-reasoning --budget quick --add fpo",)


def test_a_diverged_run_counts_by_score_and_leaves_other_metrics_undecided(runs: Store, identity: Make) -> None:
    tracker = start_seed(runs, identity("ppo"), seed=5, config=CONFIG)
    tracker.log({"eval/score": 0.0, "eval/width": 5.0}, 0)
    tracker.finish("diverged", "loss at 100")
    (score,) = judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5").judged[0].findings
    assert score.of.tolist()[-1] == 0.0
    (width,) = judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5, metric: eval/width").judged[0].findings
    assert width.verdict == "undecided"
    assert "ppo on toy/walk, seed 5: expected at least 3 evaluations" in width.reason


def test_the_pages_say_what_was_found(runs: Store) -> None:
    evidence = judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5")
    page = claims_markdown(evidence)
    assert "| [one](#one) | A paper | ✓ replicated |" in page
    assert "ppo on toy/walk (toy@1, quick): 6.200 ± 0.071 | fpo: 4.200 ± 0.071 | 2.000 [1.769, 2.231] | 5, 5 |" in page
    assert "- toy@1: commit " in page
    html = claims_html(evidence)
    assert "It is &lt;so&gt;." in html
    assert '<td data-label="effect [95 %]">2.000 [1.769, 2.231]</td>' in html
    (line,) = csv.DictReader(io.StringIO(claims_csv(evidence)))
    assert (line["claim"], line["margin"], line["num_of"], line["verdict"]) == ("one", "0.5", "5", "replicated")
    assert float(line["low"]) == pytest.approx(1.7694, abs=1e-4)
    assert claims_html(judged(runs, "keeps", "{entrant: fpo}", "margin: 0.5")) == html
