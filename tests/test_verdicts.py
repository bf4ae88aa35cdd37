"""Verdicts of tests: every side of every kind, by intervals of known width."""

from __future__ import annotations

import numpy as np
import pytest

from rlflow.verdicts import judge, together

EXACT = 1e-6
SPREAD = np.array([-0.02, -0.01, 0.0, 0.01, 0.02] * 2)


@pytest.mark.parametrize(
    ("kind", "difference", "margin", "verdict"),
    [
        # Variance .002/9 a side of ten: error sqrt(2 .002/90) = .0066667, t of 18 degrees 2.100922, so +- .0140061.
        ("beats", 0.02, 0.0, "replicated"),
        ("beats", 0.01, 0.0, "undecided"),
        ("beats", -0.01, 0.0, "undecided"),
        ("beats", -0.02, 0.0, "not replicated"),
        # All of the interval below the smallest difference that matters, though not below 0.
        ("beats", 0.0, 0.03, "not replicated"),
        ("beats", 0.02, 0.05, "replicated"),
        ("keeps", -0.01, 0.03, "replicated"),
        ("keeps", -0.03, 0.03, "undecided"),
        ("keeps", -0.05, 0.03, "not replicated"),
        ("keeps", 0.5, 0.03, "replicated"),
        ("matches", 0.01, 0.03, "replicated"),
        ("matches", 0.02, 0.03, "undecided"),
        ("matches", -0.02, 0.03, "undecided"),
        ("matches", 0.05, 0.03, "not replicated"),
        ("matches", -0.05, 0.03, "not replicated"),
    ],
)
def test_every_kind_has_its_verdicts(kind, difference, margin, verdict) -> None:
    found = judge(kind, 0.5 + difference + SPREAD, 0.5 + SPREAD, paired=False, margin=margin)
    assert (found.verdict, found.effect) == (verdict, pytest.approx(difference, abs=EXACT))
    assert found.high - found.low == pytest.approx(0.0280123, abs=EXACT)
    if kind != "matches":
        turned = judge(
            kind, -0.5 - difference - SPREAD, -0.5 - SPREAD, paired=False, margin=margin, lower_is_better=True
        )
        assert turned.verdict == verdict


def test_cheaper_is_a_ratio_of_costs() -> None:
    of, than = np.array([1.0, 1.1, 0.9, 1.0, 1.05]), np.array([2.0, 2.2, 1.9, 2.1, 1.8])
    found = judge("cheaper", of, than, paired=False)
    # Geometric means 1.007778 and 1.994985.
    assert (found.verdict, found.effect) == ("replicated", pytest.approx(1.979587, abs=1e-4))
    assert found.low < found.effect < found.high
    assert judge("cheaper", than, of, paired=False).verdict == "not replicated"
    assert judge("cheaper", of, of, paired=False).verdict == "undecided"
    free = judge("cheaper", np.zeros(5), than, paired=False)
    assert (free.verdict, free.reason) == ("undecided", "costs of nothing cannot be compared")


def test_few_seeds_decide_nothing() -> None:
    nine = judge("beats", 1.0 + SPREAD[:9], SPREAD[:9], paired=False)
    assert (nine.verdict, nine.reason) == ("undecided", "10 seeds a side needed, found 9 and 9")
    assert judge("beats", 1.0 + SPREAD, SPREAD, paired=False).verdict == "replicated"
    # Against their own start, five runs do; four do not.
    assert judge("beats", 1.0 + SPREAD[:5], SPREAD[:5], paired=True).verdict == "replicated"
    assert judge("keeps", 1.0 + SPREAD[:4], SPREAD[:4], paired=True, margin=0.1).verdict == "undecided"


def test_a_claim_holds_where_all_tests_do_and_fails_where_one_does() -> None:
    assert together(["replicated", "replicated"]) == "replicated"
    assert together(["replicated", "undecided"]) == "undecided"
    assert together(["undecided", "not replicated"]) == "not replicated"
