"""Which cells differ beyond their error, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlflow.board import Board, Cell
from rlflow.differences import Difference, against, compare, judged, rows
from rlflow.ranking import make_board
from rlflow.release import Release, ReleasedCell
from tests.boards import make_cell

EXACT = 1e-9
CLOSE = 1e-3


def board(*cells: Cell) -> Board:
    return make_board("toy@1", "d1", cells)


def released(scores: list[float], cell_id: str = "v1-ppo-a", version: str = "1") -> Release:
    cell = ReleasedCell(normalised=np.array(scores), cell_id=cell_id, task_version=version)
    return Release(suite="toy@1", cells={("ppo", "a"): cell})


def difference(before: list[float], after: list[float]) -> Difference:
    return Difference(name="a", before=np.array(before), after=np.array(after))


def test_the_error_is_that_of_welch() -> None:
    found = difference([0.0, 0.1, 0.2], [0.5, 0.6, 0.7])
    # variances .01 and .01, over 3: together .02 / 3; 4 degrees of freedom: t(.975) = 2.776
    assert found.change == pytest.approx(0.5, abs=EXACT)
    assert found.margin == pytest.approx(2.776 * (0.02 / 3) ** 0.5, abs=CLOSE)
    # t = .5 / .0816 = 6.12: p = .0036
    (seen,) = judged([found])
    assert (seen.verdict, seen.failed) == ("better", False)
    assert seen.p_value == pytest.approx(0.0036, abs=CLOSE)


def test_holm_runs_over_the_cells_that_can_be_tested() -> None:
    clear, weak = difference([0.50, 0.51, 0.52], [0.1, 0.11, 0.12]), difference([0.5, 0.7, 0.6], [0.4, 0.6, 0.5])
    one = difference([0.5], [0.1, 0.2])
    seen = judged([clear, one, weak])
    assert [found.verdict for found in seen] == ["worse", "no error with one seed", "not shown to differ"]
    assert seen[0].p_value is not None
    # two tests: the smallest p-value is doubled
    assert seen[0].adjusted == pytest.approx(2 * seen[0].p_value, abs=EXACT)
    # -.1 in units of sqrt(.01 / 3 + .01 / 3) is t = 1.2247 at 4 degrees of freedom: p = .288
    assert seen[2].p_value == pytest.approx(0.288, abs=CLOSE)
    assert judged([weak])[0].verdict == "not shown to differ"


def test_seeds_that_do_not_vary_are_compared_exactly() -> None:
    same, other = difference([0.5, 0.5], [0.5, 0.5]), difference([0.5, 0.5], [0.6, 0.6])
    assert [found.verdict for found in judged([same, other])] == ["not shown to differ", "better"]


def test_two_algorithms_are_compared_where_both_have_scores() -> None:
    found = compare(
        board(
            make_cell("ppo", "a", [0.8, 0.81, 0.82]),
            make_cell("fpo", "a", [0.2, 0.21, 0.22]),
            make_cell("ppo", "b", [0.8, 0.81, 0.82]),
        ),
        "fpo",
        "ppo",
    )
    assert [(line.name, line.verdict) for line in found] == [("a", "better")]
    assert found[0].change == pytest.approx(0.6, abs=EXACT)
    assert rows(found)[0][:5] == ["a", "0.210", "0.810", "3, 3", "0.600"]


@pytest.mark.parametrize(
    ("now", "verdict", "failed"),
    [
        ([0.2, 0.21, 0.22], "worse", True),
        ([0.8, 0.81, 0.82], "not shown to differ", False),
        ([0.9, 0.91, 0.92], "better", False),
        ([], "missing", True),
        ([0.1], "no error with one seed", False),
    ],
)
def test_a_board_is_judged_against_a_release(now: list[float], verdict: str, failed: bool) -> None:
    (found,) = against(board(make_cell("ppo", "a", now)), released([0.79, 0.81, 0.83]))
    assert (found.name, found.verdict, found.failed) == ("ppo on a", verdict, failed)


def test_a_cell_that_has_gone_is_missing_and_a_new_one_is_nothing() -> None:
    (found,) = against(board(make_cell("fpo", "a", [0.5, 0.5])), released([0.8, 0.8]))
    assert (found.name, found.verdict, found.failed) == ("ppo on a", "missing", True)


def test_what_has_changed_beside_the_scores_is_said() -> None:
    now = board(make_cell("ppo", "a", [0.8, 0.81], num_launched=3))
    (found,) = against(now, released([0.8, 0.81], cell_id="v1-other"))
    assert rows([found])[0][-1] == "not shown to differ (configuration changed, 2/3 seeds)"
    (found,) = against(now, released([0.9, 0.91], version="2"))
    assert (found.verdict, found.failed) == ("not comparable: version 2 then, 1 now", False)
