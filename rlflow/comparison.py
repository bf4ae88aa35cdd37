"""Statistics between entrants: probability of improvement, exact permutation test, Holm, tiers, rank distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, prod

import numpy as np
from numpy.typing import NDArray

from rlflow.stats import (
    NUM_REPLICATES,
    FloatArray,
    Interval,
    Scores,
    expanded_tail,
    headline,
    interval_from_replicates,
    resampled,
)

SIGNIFICANCE = 0.05
MAX_ENUMERATED = 4_000_000
NUM_RANDOM_ARRANGEMENTS = 100_000


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """Chance that a run of `first` beats a run of `second` on the same task, ties half, mean over tasks.

    Per task the Mann-Whitney U divided by the number of pairs (Agarwal et al. 2021, eq. 2).
    """
    _same_tasks(first, second)
    return float(np.mean([np.mean(_wins(first[task], second[task])) for task in sorted(first)]))


def improvement_interval(
    first: Scores, second: Scores, generator: np.random.Generator, num_replicates: int = NUM_REPLICATES
) -> Interval:
    """Probability of improvement with limits from resampling both entrants' seeds; the wider expansion of the two."""
    _same_tasks(first, second)
    own, other = _times_drawn(first, generator, num_replicates), _times_drawn(second, generator, num_replicates)
    shares = [
        np.sum((own[task] @ _wins(first[task], second[task])) * other[task], axis=1)
        / (len(first[task]) * len(second[task]))
        for task in sorted(first)
    ]
    replicates = np.asarray(np.mean(shares, axis=0))  # [R]
    tail = min(expanded_tail(first), expanded_tail(second))
    return interval_from_replicates(probability_of_improvement(first, second), replicates, tail)


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """Two-sided test of equal M: `exact` is False where the arrangements were too many and were sampled."""

    difference: float
    p_value: float
    exact: bool
    num_arrangements: int


class Arrangements:
    """Random exchanges of labels for tests that cannot count all, drawn once for all pairs of a board.

    Which ones are drawn depends on the seed, the place of the task and the numbers of seeds alone.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[int, int, int], NDArray[np.bool_]] = {}

    def draw(self, place: int, num_first: int, num_second: int) -> NDArray[np.bool_]:
        """Which seeds of task number `place` are called the first entrant's, `[100,000, num_first + num_second]`."""
        key = (place, num_first, num_second)
        if key not in self._drawn:
            labels = np.arange(num_first + num_second) < num_first
            rows = np.tile(labels, (NUM_RANDOM_ARRANGEMENTS, 1))
            self._drawn[key] = np.random.default_rng([self._seed, *key]).permuted(rows, axis=1)
        return self._drawn[key]


def permutation_test(
    first: Scores, second: Scores, arrangements: Arrangements, max_enumerated: int = MAX_ENUMERATED
) -> PermutationTest:
    """Exchange the entrants' labels among the seeds of each task and ask how often |difference of M| is as large.

    All arrangements are counted, by meeting in the middle: the per-task sums of one half of the tasks are sorted and
    searched with those of the other half.  With one seed and three tasks there are 8, so p is never below .25.

    Args:
        first: scores `[N]` per task.
        second: scores `[N']` per task, the same tasks.
        arrangements: used only if a half has more than `max_enumerated` arrangements; then 100,000 are sampled.
        max_enumerated: size of the larger half up to which the test is exact.
    """
    _same_tasks(first, second)
    difference = float(headline(first) - headline(second))
    halves = _halves({task: _num_arrangements(first[task], second[task]) for task in sorted(first)})
    sizes = [prod(_num_arrangements(first[task], second[task]) for task in half) for half in halves]
    threshold = abs(difference) - 1e-12 * max(1.0, abs(difference))
    if max(sizes) > max_enumerated:
        sampled = _sampled_differences(first, second, arrangements)
        count = int(np.sum(np.abs(sampled) >= threshold))
        p_value = (1 + count) / (1 + NUM_RANDOM_ARRANGEMENTS)
        return PermutationTest(
            difference=difference, p_value=p_value, exact=False, num_arrangements=NUM_RANDOM_ARRANGEMENTS
        )
    left, right = (_half_sums(first, second, half, len(first)) for half in halves)
    right.sort()
    above = len(right) - np.searchsorted(right, threshold - left, side="left")
    below = np.searchsorted(right, -threshold - left, side="right")
    # At threshold <= 0 (equal entrants) both counts cover everything.
    total = prod(sizes)
    count = min(int(above.sum() + below.sum()), total)
    return PermutationTest(difference=difference, p_value=count / total, exact=True, num_arrangements=total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, in the order given; needs no independence of the tests."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def tiers(estimates: Mapping[str, float], adjusted: Mapping[tuple[str, str], float]) -> dict[str, int]:
    """Group entrants, best first: a new tier starts at the first one that differs from the leader of the tier.

    Args:
        estimates: M of each entrant.
        adjusted: Holm-adjusted p-value of each unordered pair, under either order of its names.

    Returns:
        Tier of each entrant, from 1.  Entrants of one tier are not shown to differ from its leader.
    """
    result: dict[str, int] = {}
    leader, tier = "", 0
    for name in sorted(estimates, key=lambda entrant: (-estimates[entrant], entrant)):
        pair = (leader, name) if (leader, name) in adjusted else (name, leader)
        if not leader or adjusted[pair] < SIGNIFICANCE:
            leader, tier = name, tier + 1
        result[name] = tier
    return result


def rank_distribution(replicates: Mapping[str, FloatArray], generator: np.random.Generator) -> dict[str, FloatArray]:
    """Share of bootstrap replicates in which each entrant has rank 1, 2, ...; ties are broken at random.

    Args:
        replicates: replicates of M, `[R]` per entrant.
        generator: breaks the ties.

    Returns:
        Probabilities of the ranks, `[number of entrants]` per entrant, each summing to 1.
    """
    names = sorted(replicates)
    values = np.stack([replicates[name] for name in names])  # [E, R]
    order = np.lexsort((generator.random(values.shape), -values), axis=0)
    ranks = np.argsort(order, axis=0)
    return {name: np.bincount(ranks[index], minlength=len(names)) / values.shape[1] for index, name in enumerate(names)}


def _same_tasks(first: Scores, second: Scores) -> None:
    if set(first) != set(second):
        raise ValueError(f"expected the same tasks on both sides, found {sorted(first)} and {sorted(second)}")


def _wins(first: FloatArray, second: FloatArray) -> FloatArray:
    """1 where a run of `first` beats one of `second`, .5 where they tie, `[N, N']`."""
    difference = first[:, None] - second[None, :]
    return np.asarray((difference > 0) + 0.5 * (difference == 0))


def _times_drawn(scores: Scores, generator: np.random.Generator, num_replicates: int) -> dict[str, FloatArray]:
    """How often each bootstrap replicate has each seed, `[R, N]` per task: replicates then are matrix products."""
    counts = {}
    for task, rows in resampled(scores, generator, num_replicates).items():
        num_seeds = rows.shape[1]
        places = rows + num_seeds * np.arange(num_replicates)[:, None]
        counts[task] = (
            np.bincount(places.ravel(), minlength=num_replicates * num_seeds).reshape(-1, num_seeds).astype(np.float64)
        )
    return counts


def _num_arrangements(first: FloatArray, second: FloatArray) -> int:
    return comb(len(first) + len(second), len(first))


def _halves(sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Split the tasks so that the products of their sizes are near: the largest first, to the smaller half."""
    left: list[str] = []
    right: list[str] = []
    for task in sorted(sizes, key=lambda name: -sizes[name]):
        lighter = left if prod(sizes[t] for t in left) <= prod(sizes[t] for t in right) else right
        lighter.append(task)
    return left, right


def _half_sums(first: Scores, second: Scores, half: Sequence[str], num_tasks: int) -> FloatArray:
    """Contribution of the tasks in `half` to the difference of M, for every arrangement of their labels."""
    sums = np.zeros(1)
    for task in half:
        num_first, num_second = len(first[task]), len(second[task])
        pool = np.concatenate([first[task], second[task]])
        chosen = np.array(list(combinations(range(len(pool)), num_first)))
        totals = pool[chosen].sum(axis=1)
        means = totals / num_first - (pool.sum() - totals) / num_second
        sums = (sums[:, None] + means[None, :] / num_tasks).ravel()
    return sums


def _sampled_differences(first: Scores, second: Scores, arrangements: Arrangements) -> FloatArray:
    differences = np.zeros(NUM_RANDOM_ARRANGEMENTS)
    for place, task in enumerate(sorted(first)):
        num_first, num_second = len(first[task]), len(second[task])
        pool = np.concatenate([first[task], second[task]])
        totals = arrangements.draw(place, num_first, num_second) @ pool
        differences += totals / num_first - (pool.sum() - totals) / num_second
    return differences / len(first)
