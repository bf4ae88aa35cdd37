"""The second board: who is ahead after the same seconds, and where that cannot be said."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from rlflow.board import Board, Cell, SeedResult
from rlflow.equal_cost import EqualCost, equal_cost
from rlflow.ranking import make_board
from rlflow.report_csv import equal_cost_csv
from rlflow.report_text import markdown
from rlflow.report_values import cost_names, cost_rows
from tests.boards import make_cell

EXACT = 1e-9


def timed(seed: int, scores: tuple[float, ...], last_s: float, **changes: Any) -> SeedResult:
    """A finished seed with evaluations at equal distances in samples and seconds, on one machine."""
    places = range(len(scores))
    result = SeedResult(
        seed=seed,
        outcome="finished",
        steps=tuple(100 * place for place in places),
        scores=scores,
        seconds=tuple(last_s * place / (len(scores) - 1) for place in places),
        final=scores[-1],
        normalised=scores[-1] / 10,
        hardware="CPU x 2",
    )
    return replace(result, **changes)


def cell(algorithm: str, task: str, *seeds: SeedResult) -> Cell:
    """Anchors 0 and 10."""
    return make_cell(algorithm, task, [], launched=tuple(seed.seed for seed in seeds), seeds=seeds)


def of(*cells: Cell) -> EqualCost:
    return equal_cost(make_board("toy@1", "d1", cells))


def two() -> Board:
    """A slow and good ppo with two seeds, a quick and poor fpo with two seeds; fpo's first lasted 10 s."""
    ppo = cell("ppo", "a", timed(0, (0, 4, 8), 40), timed(1, (0, 2, 10), 20))
    fpo = cell("fpo", "a", timed(0, (0, 3, 5), 10), timed(1, (0, 3, 5), 16))
    return make_board("toy@1", "d1", [ppo, fpo])


def test_scores_are_read_off_the_curves_at_the_seconds_that_all_reached() -> None:
    board = two()
    cost = equal_cost(board)
    column = cost.columns["a"]
    assert (column.seconds, column.device, column.hardware) == (10.0, "CPU", "CPU x 2")
    # ppo 0: 10 of 40 s is half way to its second evaluation at 20 s: 2; ppo 1: its second evaluation, 2
    assert column.raw["ppo"] == pytest.approx([2.0, 2.0], abs=EXACT)
    # fpo 0: its end, 5; fpo 1: 10 of 16 s, a quarter of the way from 3 to 5
    assert column.raw["fpo"] == pytest.approx([5.0, 3.5], abs=EXACT)
    assert column.normalised["fpo"] == pytest.approx([0.5, 0.35], abs=EXACT)
    # The order is the other way round at equal samples.
    assert list(cost.headlines.items()) == [
        ("fpo", pytest.approx(0.425, abs=EXACT)),
        ("ppo", pytest.approx(0.2, abs=EXACT)),
    ]
    assert [entrant.algorithm for entrant in board.ranked] == ["ppo", "fpo"]
    assert cost.intervals["fpo"].low < 0.425 < cost.intervals["fpo"].high
    assert equal_cost(board).intervals == cost.intervals


def test_a_diverged_seed_counts_as_the_untrained_policy_and_limits_nobody() -> None:
    lost = timed(1, (0, 9), 1, outcome="diverged", final=0.0, normalised=0.0)
    cost = of(cell("ppo", "a", timed(0, (0, 4, 8), 40), lost), cell("fpo", "a", timed(0, (0, 3, 5), 20)))
    assert cost.columns["a"].seconds == 20.0
    assert cost.columns["a"].raw["ppo"] == pytest.approx([4.0, 0.0], abs=EXACT)
    # fpo has one seed
    assert cost.intervals.keys() == {"ppo"}


def test_gpu_seconds_are_told_from_cpu_seconds() -> None:
    seeds = [cell(name, "a", timed(0, (0, 5), 10, on_gpu=True)) for name in ("ppo", "fpo")]
    assert of(*seeds).columns["a"].device == "GPU"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hardware": "CPU x 4"}, "hardware differs: CPU x 2 (CPU seconds): ppo; CPU x 4 (CPU seconds): fpo"),
        ({"on_gpu": True}, "hardware differs: CPU x 2 (CPU seconds): ppo; CPU x 2 (GPU seconds): fpo"),
        ({"seconds": ()}, "no training seconds recorded for fpo seed 0"),
        ({"seconds": (0.0, 0.0)}, "no training seconds recorded for fpo seed 0"),
        ({"outcome": "failed", "final": None, "normalised": None}, "expected at least 2 algorithms"),
    ],
)
def test_what_cannot_be_compared_says_why_in_every_format(changes: dict[str, Any], reason: str) -> None:
    whole = [cell(name, "b", timed(0, (0, 5), 10)) for name in ("ppo", "fpo")]
    odd = cell("fpo", "a", timed(0, (0, 5), 10, **changes))
    board = make_board("toy@1", "d1", [*whole, cell("ppo", "a", timed(0, (0, 5), 10)), odd])
    cost = equal_cost(board)
    assert (cost.columns.keys(), cost.headlines) == ({"b"}, {})
    assert cost.reasons["a"].startswith(reason)
    assert f"a: not compared, {cost.reasons['a']}" in markdown(board)
    lines = list(csv.DictReader(io.StringIO(equal_cost_csv(cost))))
    assert [(line["column"], line["algorithm"], line["M"]) for line in lines] == [
        ("b", "fpo", ""),
        ("b", "ppo", ""),
        ("a", "", ""),
    ]
    assert lines[-1]["reason"] == cost.reasons["a"]


def test_the_table_names_the_seconds_and_ranks_by_them() -> None:
    cost = equal_cost(two())
    assert cost_names(cost) == ["algorithm", "M [95 %]", "a at CPU 10 s"]
    first, second = cost_rows(cost)
    # fpo: mean of 5 and 3.5, se sqrt((.75^2 + .75^2) / 1 / 2) = .75
    assert (first[0], first[2], second[0]) == ("fpo", "4.250 ± 0.750, z 0.42", "ppo")
    assert first[1].startswith("0.425 [")
    (line,) = [line for line in csv.DictReader(io.StringIO(equal_cost_csv(cost))) if line["algorithm"] == "fpo"]
    assert (float(line["seconds"]), float(line["mean"]), line["n"]) == (10.0, 4.25, "2")
    assert float(line["M"]) == pytest.approx(0.425, abs=EXACT)
