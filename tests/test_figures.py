"""The figures that compare entrants draw the board's own numbers."""

import numpy as np
import pytest

from rlflow.board import Board
from rlflow.figures_compare import draw_comparisons, draw_cost, draw_improvement, draw_profile
from rlflow.ranking import make_board
from tests.boards import make_cell

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
