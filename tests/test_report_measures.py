"""The tables behind the board, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from rlflow.board import Board, Cell, SeedResult
from rlflow.ranking import make_board
from rlflow.report import write_board
from rlflow.report_csv import board_csv, seeds_csv
from rlflow.report_measures import learning_rows, measure_rows, spent_rows
from rlflow.report_text import markdown
from tests.boards import make_cell

EXACT = 1e-9


def curve(seed: int, scores: tuple[float, ...], **changes: object) -> SeedResult:
    """A finished seed judged every 100 samples, whose last score is final, of anchors 0 and 10."""
    values: dict[str, object] = {"outcome": "finished", "final": scores[-1], "normalised": scores[-1] / 10}
    return SeedResult(seed=seed, steps=(0, 100, 200), scores=scores, **(values | changes))  # type: ignore[arg-type]


def cell_of(*seeds: SeedResult, algorithm: str = "ppo") -> Cell:
    return replace(make_cell(algorithm, "a", [0.5] * len(seeds), budget=200), seeds=seeds)


@pytest.fixture
def board() -> Board:
    """Two runs that finished and one that diverged."""
    costs = {"wall_s": 120.0, "optimizer_steps": 40.0, "policy_forwards": 9000.0, "tokens": 512.0, "peak_gb": 1.25}
    first = curve(0, (0.0, 10.0, 5.0), costs=costs)
    second = curve(1, (0.0, 4.0, 4.0), costs={**costs, "wall_s": 240.0, "policy_forwards": 11000.0})
    lost = SeedResult(seed=2, outcome="diverged", final=0.0, normalised=0.0, costs={**costs, "wall_s": 1.0})
    return make_board("toy@1", "d1", [cell_of(first, second, lost)])


def test_measures_are_those_of_the_entrant_with_their_limits() -> None:
    cells = [make_cell("ppo", "a", [0.2, 0.4, 0.6, 0.8]), make_cell("fpo", "a", [0.1, 0.1, 0.1, 0.1])]
    board = make_board("toy@1", "d1", cells)
    (ppo, fpo), (first, second) = board.ranked, measure_rows(board)
    assert ppo.interval is not None
    assert first[1] == f"[{ppo.interval.plain_low:.3f}, {ppo.interval.plain_high:.3f}]"
    # IQM: (.4 + .6) / 2; gap: 1 - .5. Where no run is above 1 the gap is 1 - M, and so are its limits.
    assert ppo.gap_interval is not None
    assert ppo.interquartile_interval is not None
    assert ppo.gap_interval.low == pytest.approx(1 - ppo.interval.high, abs=EXACT)
    assert ppo.gap_interval.high == pytest.approx(1 - ppo.interval.low, abs=EXACT)
    assert first[2].startswith("0.500 [")
    assert first[3] == f"0.500 [{ppo.gap_interval.low:.3f}, {ppo.gap_interval.high:.3f}]"
    # Four equal runs resample to themselves.
    assert second == ["fpo", "[0.100, 0.100]", "0.100 [0.100, 0.100]", "0.900 [0.900, 0.900]", "2.00", "0.00"]
    assert (fpo.mean_rank, first[4:]) == (2.0, ["1.00", "1.00"])
    line = next(csv.DictReader(io.StringIO(board_csv(board))))
    assert (float(line["iqm_low"]), float(line["gap_high"])) == (
        ppo.interquartile_interval.low,
        ppo.gap_interval.high,
    )


def test_one_seed_has_measures_without_limits() -> None:
    assert measure_rows(make_board("toy@1", "d1", [make_cell("ppo", "a", [0.5])])) == [
        ["ppo", "-", "0.500", "0.500", "-", "-"]
    ]


def test_learning_is_told_by_area_drop_and_samples_to_the_milestones(board: Board) -> None:
    # Areas (100 * 5 + 100 * 7.5) / 200 = 6.25 and (100 * 2 + 100 * 4) / 200 = 3, se 3.25 / 2; drops 5 and 0.
    # z = .25 after 25 and 62.5 samples; .5 and .75 after 50 and 75 of the first, never of the second.
    expected = ["ppo", "a", "4.625 ± 1.625", "2.500 ± 2.500", "44", "50 (1/2)", "75 (1/2)"]
    assert learning_rows(board) == [expected]
    lines = list(csv.DictReader(io.StringIO(seeds_csv(board))))
    assert [line["auc"] for line in lines] == ["6.25", "3.0", ""]
    assert [line["samples_to_0.5"] for line in lines] == ["50.0", "", ""]


def test_a_milestone_that_nobody_reached_is_absent() -> None:
    (row,) = learning_rows(make_board("toy@1", "d1", [cell_of(curve(0, (0.0, 1.0, 1.0)))]))
    assert row[4:] == ["-", "-", "-"]


def test_cost_is_the_mean_of_the_finished_runs(board: Board) -> None:
    # 120 s and 240 s, 9,000 and 11,000 rows; nothing on a GPU, no environment.
    expected = ["ppo", "a", "3.0 min", "-", "40", "10,000", "512", "-", "1.25 GB"]
    assert spent_rows(board) == [expected]
    line = next(csv.DictReader(io.StringIO(seeds_csv(board))))
    assert (line["policy_forwards"], line["env_steps"], line["peak_gb"]) == ("9000.0", "", "1.25")
    assert spent_rows(make_board("toy@1", "d1", [make_cell("ppo", "a", [0.5])])) == []


def test_markdown_and_page_have_the_tables_with_their_words(board: Board, tmp_path: Path) -> None:
    text, page = markdown(board), write_board(board, tmp_path)[1].read_text()
    for title, row in (
        ("Measures", measure_rows(board)[0]),
        ("Learning", learning_rows(board)[0]),
        ("Cost of a run", spent_rows(board)[0]),
    ):
        assert f"\n## {title}\n" in text
        assert f"| {' | '.join(row)} |" in text
        assert f"<h2>{title}</h2>" in page
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
