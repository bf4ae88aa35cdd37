"""Statistics between entrants, against numbers worked out by hand and against plain enumeration."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from rlflow import comparison
from rlflow.comparison import Arrangements
from rlflow.stats import Scores, headline

EXACT = 1e-9
SAMPLED = 0.01


def scores(**tasks: list[float]) -> Scores:
    return {task: np.array(values, dtype=np.float64) for task, values in tasks.items()}


def test_probability_of_improvement_counts_ties_half_and_averages_tasks() -> None:
    # a: 1 beats none, 2 ties twice (1), 3 beats two: 3 of 9 pairs; b: 1 of 1; mean (1/3 + 1) / 2
    first, second = scores(a=[1, 2, 3], b=[5]), scores(a=[2, 2, 4], b=[4])
    assert comparison.probability_of_improvement(first, second) == pytest.approx(2 / 3, abs=EXACT)
    assert comparison.probability_of_improvement(second, first) == pytest.approx(1 / 3, abs=EXACT)


def test_improvement_interval_is_certain_where_the_runs_are_apart() -> None:
    found = comparison.improvement_interval(scores(a=[5, 6, 7]), scores(a=[1, 2, 3]), np.random.default_rng(0), 200)
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)


def test_permutation_test_of_one_task() -> None:
    # Of the 6 ways to call two of {1, 2, 3, 4} the first entrant, {3, 4} and {1, 2} differ by 2: 2/6.
    found = comparison.permutation_test(scores(a=[3, 4]), scores(a=[1, 2]), Arrangements(0))
    assert (found.difference, found.exact, found.num_arrangements) == (2.0, True, 6)
    assert found.p_value == pytest.approx(1 / 3, abs=EXACT)


def test_permutation_test_permutes_within_tasks() -> None:
    # Both tasks must be extreme in the same direction: 2 of 6 * 6, although b lies 100 higher.
    first, second = scores(a=[3, 4], b=[103, 104]), scores(a=[1, 2], b=[101, 102])
    assert comparison.permutation_test(first, second, Arrangements(0)).p_value == pytest.approx(1 / 18, abs=EXACT)


def test_permutation_test_of_one_seed_and_three_tasks_is_never_below_a_quarter() -> None:
    # 2 of 2 * 2 * 2
    first, second = scores(a=[1], b=[1], c=[1]), scores(a=[0], b=[0], c=[0])
    assert comparison.permutation_test(first, second, Arrangements(0)).p_value == 0.25


def test_permutation_test_of_equal_entrants_is_one() -> None:
    data = scores(a=[0.1, 0.2, 0.3], b=[0.7, 0.1, 0.4])
    assert comparison.permutation_test(data, data, Arrangements(0)).p_value == 1.0


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4])
def test_permutation_test_equals_plain_enumeration(num_tasks: int) -> None:
    generator = np.random.default_rng(num_tasks)
    # A coarse grid makes ties with the observed difference, which must count as extreme.
    first, second = (
        {str(task): np.round(generator.normal(shift, 1, 3 - task % 2), 1) for task in range(num_tasks)}
        for shift in (0.6, 0.0)
    )
    found = comparison.permutation_test(first, second, Arrangements(0))
    choices = [list(combinations(range(2 * (3 - task % 2)), 3 - task % 2)) for task in range(num_tasks)]
    observed, count = abs(headline(first) - headline(second)), 0
    for arrangement in product(*choices):
        difference = 0.0
        for task, chosen in enumerate(arrangement):
            pool = np.concatenate([first[str(task)], second[str(task)]])
            rest = [index for index in range(len(pool)) if index not in chosen]
            difference += pool[list(chosen)].mean() - pool[rest].mean()
        count += abs(difference / num_tasks) >= observed - EXACT
    total = np.prod([len(choice) for choice in choices])
    assert found.num_arrangements == total
    assert found.p_value == pytest.approx(count / total, abs=EXACT)


def test_permutation_test_samples_when_there_are_too_many_arrangements() -> None:
    generator = np.random.default_rng(3)
    first, second = ({task: generator.normal(shift, 1, 4) for task in "ab"} for shift in (0.5, 0.0))
    exact = comparison.permutation_test(first, second, Arrangements(0))
    sampled = comparison.permutation_test(first, second, Arrangements(0), max_enumerated=10)
    assert (exact.exact, sampled.exact, sampled.num_arrangements) == (True, False, 100_000)
    assert 0.05 < exact.p_value < 0.95
    assert sampled.p_value == pytest.approx(exact.p_value, abs=SAMPLED)


def test_comparisons_refuse_different_tasks() -> None:
    with pytest.raises(ValueError, match=r"same tasks on both sides, found \['a'\] and \['b'\]"):
        comparison.permutation_test(scores(a=[1]), scores(b=[1]), Arrangements(0))


def test_holm_steps_down_and_stays_monotone() -> None:
    # sorted: .005 * 4 = .02, .01 * 3 = .03, .03 * 2 = .06, .04 * 1 = .04 raised to .06
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=EXACT)
    # .6 * 2 is cut at 1
    assert comparison.holm([0.6, 0.7]) == [1.0, 1.0]
    assert comparison.holm([]) == []


def test_tiers_start_anew_where_an_entrant_differs_from_the_leader() -> None:
    estimates = {"d": 0.4, "a": 0.9, "c": 0.5, "b": 0.8}
    adjusted = {("a", "b"): 0.2, ("c", "a"): 0.01, ("a", "d"): 0.01, ("b", "c"): 0.3, ("b", "d"): 0.04, ("c", "d"): 0.3}
    # c does not differ from b, but it does from a, which leads the tier
    assert comparison.tiers(estimates, adjusted) == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_rank_distribution_is_the_share_of_replicates() -> None:
    # a is first in 3 of 4 replicates
    replicates = {"a": np.array([1.0, 1.0, 0.0, 1.0]), "b": np.array([0.0, 0.0, 1.0, 0.0])}
    found = comparison.rank_distribution(replicates, np.random.default_rng(0))
    assert {name: share.tolist() for name, share in found.items()} == {"a": [0.75, 0.25], "b": [0.25, 0.75]}


def test_rank_distribution_breaks_ties_evenly() -> None:
    tied = {name: np.zeros(40_000) for name in "ab"}
    assert comparison.rank_distribution(tied, np.random.default_rng(0))["a"] == pytest.approx([0.5, 0.5], abs=SAMPLED)
