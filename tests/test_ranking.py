"""Ranking of synthetic cells, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from rlflow.board import SeedResult
from rlflow.cell import SuitePlan
from rlflow.ranking import make_board
from tests.boards import full_board, make_cell

EXACT = 1e-9


def test_entrants_are_ranked_by_the_mean_over_tasks_of_the_mean_over_seeds() -> None:
    cells = [
        make_cell("ppo", "a", [0.5, 0.7]),
        make_cell("ppo", "b", [0.1, 0.1]),
        make_cell("fpo", "a", [0.4, 0.4]),
        make_cell("fpo", "b", [0.3, 0.5]),
    ]
    board = make_board("toy@1", "d1", cells)
    assert board.columns == ("a", "b")
    # fpo: (0.4 + 0.4) / 2; ppo: (0.6 + 0.1) / 2
    assert [(e.algorithm, e.rank, e.headline) for e in board.ranked] == [
        ("fpo", 1, pytest.approx(0.4, abs=EXACT)),
        ("ppo", 2, pytest.approx(0.35, abs=EXACT)),
    ]
    # Holm multiplies the p-value of the only pair by 1.
    assert board.pairs[0].adjusted == board.pairs[0].p_value
    assert [entrant.tier for entrant in board.ranked] == [1, 1]


def test_one_seed_has_a_rank_but_no_interval() -> None:
    board = make_board("toy@1", "d1", [make_cell("ppo", "a", [0.5]), make_cell("fpo", "a", [0.4])])
    assert [(e.algorithm, e.rank, e.interval, e.mean_rank) for e in board.ranked] == [
        ("ppo", 1, None, None),
        ("fpo", 2, None, None),
    ]
    assert board.pairs[0].improvement_interval is None


def test_a_missing_seed_or_task_leaves_an_entrant_unranked() -> None:
    cells = [
        make_cell("ppo", "a", [0.5, 0.7]),
        make_cell("ppo", "b", [0.1, 0.1]),
        make_cell("fpo", "a", [0.9, 0.9]),
        make_cell("fpo", "b", [0.9], num_launched=2),
        make_cell("flowrl", "a", [0.9, 0.9]),
    ]
    board = make_board("toy@1", "d1", cells)
    assert [entrant.algorithm for entrant in board.ranked] == ["ppo"]
    unranked = [(e.algorithm, e.rank, e.headline, sorted(e.cells)) for e in board.entrants if not e.complete]
    assert unranked == [("flowrl", None, None, ["a"]), ("fpo", None, None, ["a", "b"])]


def test_what_the_suite_planned_is_shown_even_where_nothing_ran() -> None:
    plan = SuitePlan(digest="d1", algorithms=("ppo", "fpo"), tasks=("a", "b"), seeds=(0,))
    board = make_board("toy@1", "d1", [make_cell("ppo", "a", [0.5])], plan=plan)
    assert board.columns == ("a", "b")
    assert {entrant.algorithm: sorted(entrant.cells) for entrant in board.entrants} == {"ppo": ["a"], "fpo": []}
    assert board.ranked == ()


def test_a_diverged_seed_counts_as_the_untrained_policy() -> None:
    lost = SeedResult(seed=1, outcome="diverged", final=0.0, normalised=0.0)
    cell = make_cell("ppo", "a", [0.8])
    cell = make_cell("ppo", "a", [0.8], num_launched=2, seeds=(*cell.seeds, lost))
    board = make_board("toy@1", "d1", [cell])
    # (0.8 + 0) / 2
    assert board.ranked[0].headline == pytest.approx(0.4, abs=EXACT)
    assert board.ranked[0].cells["a"].num_diverged == 1


def test_a_task_with_several_policies_of_one_algorithm_is_several_columns() -> None:
    cells = [
        make_cell("ppo", "a", [0.5], policy="gaussian"),
        make_cell("ppo", "a", [0.7], policy="flow"),
        make_cell("fpo", "a", [0.6], policy="flow"),
        make_cell("fpo", "b", [0.6], policy="flow"),
        make_cell("ppo", "b", [0.6], policy="gaussian"),
    ]
    board = make_board("toy@1", "d1", cells)
    assert board.columns == ("a [flow]", "a [gaussian]", "b")
    assert [entrant.algorithm for entrant in board.ranked] == ["ppo"]


def test_cells_that_cannot_be_compared_are_named() -> None:
    cells = [make_cell("ppo", "a", [0.5]), make_cell("fpo", "a", [0.4], task_version="2")]
    assert "a: cells differ in task version" in make_board("toy@1", "d1", cells).warnings[0]


def test_entrants_of_the_open_division_are_named_where_others_are_in_the_closed_one() -> None:
    cells = [make_cell("ppo", "a", [0.5]), make_cell("gspo", "a", [0.5], division="open")]
    board = make_board("toy@1", "d1", cells)
    assert board.warnings == ("open division, under conditions of their own: gspo; all others are in the closed one",)
    alike = [make_cell(name, "a", [0.5], division="open") for name in ("ppo", "gspo")]
    assert make_board("toy@1", "d1", alike).warnings == ()


def test_five_seeds_of_clearly_different_entrants_make_two_tiers() -> None:
    apart = {"ppo": 0.9, "fpo": 0.1}
    cells = [make_cell(a, t, [c + s / 100 for s in range(5)]) for a, c in apart.items() for t in "abc"]
    board = make_board("toy@1", "d1", cells)
    assert [(entrant.algorithm, entrant.tier) for entrant in board.ranked] == [("ppo", 1), ("fpo", 2)]
    # only the observed arrangement and its mirror image of 252 ** 3 are as extreme
    assert board.pairs[0].p_value == pytest.approx(2 / 252**3, rel=EXACT)
    assert (board.ranked[0].first_probability, board.ranked[1].mean_rank) == (1.0, 2.0)


def test_a_board_is_reproducible_and_an_entrant_changes_no_other_ones_limits() -> None:
    board = full_board()
    assert board == full_board()
    fewer = make_board("core@1", "d1", [c for e in board.entrants if e.algorithm != "fpo" for c in e.cells.values()])
    limits = {entrant.algorithm: entrant.interval for entrant in board.ranked}
    assert {e.algorithm: e.interval for e in fewer.ranked} == {k: v for k, v in limits.items() if k != "fpo"}


def test_footnotes_are_distinct_and_in_order_of_appearance() -> None:
    notes = [("ppo", 0.9, "second"), ("fpo", 0.95, "first"), ("flowrl", 0.5, "first")]
    board = make_board("toy@1", "d1", [make_cell(a, "a", [z], note=note) for a, z, note in notes])
    assert board.footnotes == ("first", "second")


def test_two_cells_in_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="one cell of ppo on a, found several"):
        make_board("toy@1", "d1", [make_cell("ppo", "a", [0.5]), make_cell("ppo", "a", [0.6])])
