"""The figures draw the board's own numbers."""

from dataclasses import replace

import numpy as np
import pytest

from rlflow.board import Board
from rlflow.figures import draw_all
from rlflow.figures_compare import draw_comparisons, draw_cost, draw_improvement, draw_profile, draw_ranks
from rlflow.figures_curves import cell_svg, draw_seconds, mean_curve
from rlflow.ranking import make_board
from tests.boards import full_board, make_cell

CLOSE = 1e-9


@pytest.fixture
def board() -> Board:
    """Two entrants on one task: ppo .2, .6, .8 (61 s a seed), fpo .1, .7."""
    return make_board("toy@1", "d", [make_cell("ppo", "a", [0.2, 0.6, 0.8]), make_cell("fpo", "a", [0.1, 0.7])])


def test_the_profile_steps_at_the_scores_of_the_runs(board: Board) -> None:
    lines = {line.get_label(): line.get_xydata() for line in draw_profile(board).axes[0].lines}
    assert lines.keys() == {"ppo", "fpo"}

    def share(name: str, z: float) -> float:
        points = np.asarray(lines[name])
        return float(points[np.searchsorted(points[:, 0], z), 1])

    assert share("ppo", 0.4) == pytest.approx(2 / 3)
    assert share("fpo", 0.4) == pytest.approx(1 / 2)
    assert share("ppo", 0.9) == 0.0


def test_the_improvement_matrix_is_what_the_pairs_say(board: Board) -> None:
    image = draw_improvement(board).axes[0].collections[0].get_array()
    # ppo wins 4 of 6 comparisons: .2 > .1, .6 > .1, .8 > .1, .8 > .7
    assert image[0, 1] == pytest.approx(4 / 6, abs=CLOSE)
    assert image[1, 0] == pytest.approx(2 / 6, abs=CLOSE)
    assert np.isnan(np.ma.filled(image, np.nan)[0, 0])


def test_cost_is_minutes_of_all_seeds_against_the_headline(board: Board) -> None:
    markers = [line for line in draw_cost(board).axes[0].lines if line.get_marker() != "None"]
    ppo = next(entrant for entrant in board.ranked if entrant.algorithm == "ppo")
    x, y = markers[0].get_xydata()[0]
    assert (x, y) == (pytest.approx((60 + 61 + 62) / 60), ppo.headline)


def test_one_entrant_is_compared_with_nothing() -> None:
    assert draw_comparisons(make_board("toy@1", "d", [make_cell("ppo", "a", [0.2, 0.6])])) == {}


def test_ranks_are_the_shares_of_the_bootstrap(board: Board) -> None:
    drawn = np.asarray(draw_ranks(board).axes[0].collections[0].get_array())
    assert drawn.tolist() == [list(entrant.rank_shares) for entrant in board.ranked]
    assert drawn.sum(axis=1) == pytest.approx(1.0, abs=CLOSE)
    assert drawn[0, 0] == board.ranked[0].first_probability
    assert "ranks" not in draw_comparisons(make_board("toy@1", "d", [make_cell(a, "a", [0.5]) for a in ("ppo", "fpo")]))


def test_curves_against_seconds_are_means_over_the_finished_seeds(board: Board) -> None:
    ppo = next(entrant for entrant in board.ranked if entrant.algorithm == "ppo").cells["a"]
    places, scores = mean_curve(ppo, seconds=True)
    # seeds of 60, 61 and 62 s with eleven evaluations at a steady pace: 61 s on average, 6.1 s apart
    assert places == pytest.approx([6.1 * index for index in range(11)], abs=CLOSE)
    assert scores[-1] == pytest.approx(np.mean([seed.scores[-1] for seed in ppo.seeds]), abs=CLOSE)
    axes = draw_seconds(board, "a", 60.0).axes[0]
    (mean,) = [line for line in axes.lines if line.get_label() == "ppo"]
    assert np.asarray(mean.get_xydata()).tolist() == list(map(list, zip(places, scores, strict=True)))
    (mark,) = [line for line in axes.lines if line.get_linestyle() == "--" and len(set(line.get_xdata())) == 1]
    assert mark.get_xdata()[0] == 60.0


def test_a_task_without_seconds_has_no_curve_against_them() -> None:
    assert "seconds_control-halfcheetah" in draw_all(full_board())
    cell = make_cell("ppo", "a", [0.5])
    bare = replace(cell, seeds=tuple(replace(seed, seconds=()) for seed in cell.seeds))
    assert {name for name in draw_all(make_board("toy@1", "d", [bare])) if "_" in name} == {"curves_a", "seeds_a"}


def test_the_curve_of_a_cell_is_the_same_file_again() -> None:
    cell = make_cell("ppo", "a", [0.2, 0.6])
    assert cell_svg(cell) == cell_svg(cell)
    assert ">ppo on a (default)<" in cell_svg(cell)
    assert ">mean of 2<" in cell_svg(cell)
