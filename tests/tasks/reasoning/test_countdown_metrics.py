from __future__ import annotations

import itertools

import pytest

from tasks.reasoning.solution_metrics import distinct, pass_at_k, rarefied_distinct

EXACT = 1e-12


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        # 1 - C(2,1)/C(4,1) = 1 - 2/4
        (4, 2, 1, 0.5),
        # 1 - C(2,2)/C(4,2) = 1 - 1/6
        (4, 2, 2, 5 / 6),
        # 1 - C(2,3)/C(4,3) = 1 - 0/4
        (4, 2, 3, 1.0),
        # 1 - C(9,5)/C(10,5) = 1 - 126/252
        (10, 1, 5, 0.5),
        (32, 0, 8, 0.0),
        (32, 32, 1, 1.0),
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


def test_distinct_counts_strings() -> None:
    assert distinct(["a", "b", "a"]) == 2
    assert distinct([]) == 0


def test_rarefied_distinct_by_hand() -> None:
    # a a b, two drawn: C(3,2) = 3 pairs. a is missed by C(1,2) = 0 of them, b by C(2,2) = 1: (1 - 0) + (1 - 1/3) = 5/3
    assert rarefied_distinct(["a", "a", "b"], 2) == pytest.approx(5 / 3, abs=EXACT)
    # One drawn is always one kind; all drawn are all kinds.
    assert rarefied_distinct(["a", "a", "b"], 1) == pytest.approx(1.0, abs=EXACT)
    assert rarefied_distinct(["a", "a", "b"], 3) == pytest.approx(2.0, abs=EXACT)


def test_rarefied_distinct_is_the_mean_over_all_draws() -> None:
    solutions = ["a", "a", "a", "b", "b", "c", "d"]
    draws = list(itertools.combinations(solutions, 4))
    mean = sum(len(set(draw)) for draw in draws) / len(draws)
    assert rarefied_distinct(solutions, 4) == pytest.approx(mean, abs=EXACT)


def test_rarefied_distinct_is_undefined_below_its_size() -> None:
    assert rarefied_distinct(["a", "b"], 3) is None
    with pytest.raises(ValueError, match="size"):
        rarefied_distinct(["a"], 0)
