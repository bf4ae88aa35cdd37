"""Statistics of one run and one entrant, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlflow import stats

EXACT = 1e-9
ROUNDED = 1e-6
SAMPLED = 0.05


def scores(**tasks: list[float]) -> stats.Scores:
    return {task: np.array(values, dtype=np.float64) for task, values in tasks.items()}


def test_normalised_score_is_zero_at_base_one_at_reference_and_not_clipped() -> None:
    # (600 - 200) / (1000 - 200) = 0.5; (1400 - 200) / 800 = 1.5; (0 - 200) / 800 = -0.25
    assert stats.normalised_score([200, 600, 1000, 1400, 0], 200, 1000).tolist() == [0, 0.5, 1, 1.5, -0.25]


@pytest.mark.parametrize("anchors", [(1.0, 1.0), (float("nan"), 1.0)])
def test_normalised_score_refuses_anchors_without_distance(anchors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="two different finite anchors"):
        stats.normalised_score(1.0, *anchors)


@pytest.mark.parametrize(
    ("num_points", "expected"),
    [
        (11, 9.0),  # 900 and 1000 lie in the last tenth; at least three: (8 + 9 + 10) / 3
        (21, 19.0),  # 900, 950, 1000: (18 + 19 + 20) / 3
        (41, 38.0),  # 900, 925, ..., 1000: (36 + 37 + 38 + 39 + 40) / 5
    ],
)
def test_final_score_is_the_mean_of_the_last_tenth(num_points: int, expected: float) -> None:
    steps = np.linspace(0, 1000, num_points)
    assert stats.final_score(steps, np.arange(num_points), 1000) == pytest.approx(expected, abs=EXACT)


def test_final_score_is_not_the_best_checkpoint() -> None:
    # (1 + 1 + 1) / 3, although 9 was reached
    assert stats.final_score([0, 1, 2, 3, 4], [0, 9, 1, 1, 1], 4) == 1.0


def test_final_score_refuses_a_curve_that_is_short_or_coarse() -> None:
    with pytest.raises(ValueError, match="up to 1000 samples, found the last one at 900"):
        stats.final_score([0, 450, 900], [1, 2, 3], 1000)
    with pytest.raises(ValueError, match="at least 3 evaluations"):
        stats.final_score([0, 1000], [1, 2], 1000)
    with pytest.raises(ValueError, match="increasing steps"):
        stats.final_score([0, 500, 500, 1000], [1, 2, 2, 3], 1000)


def test_area_under_curve_weighs_evaluations_by_their_distance() -> None:
    # (0 + 4) / 2 * 10 + (4 + 4) / 2 * 20 = 100, over 30 samples
    assert stats.area_under_curve([0, 10, 30], [0, 4, 4]) == pytest.approx(100 / 30, abs=EXACT)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (2.0, 5.0),  # half way up from 0 to 4 between samples 0 and 10
        (4.0, 10.0),
        (5.0, None),
        (-1.0, 0.0),  # reached before training
    ],
)
def test_samples_to_reach(level: float, expected: float | None) -> None:
    assert stats.samples_to_reach([0, 10, 30], [0, 4, 1], level) == expected


def test_drop_is_best_minus_final() -> None:
    # 9 - 1
    assert stats.drop([0, 9, 1, 1, 1], 1.0) == 8.0


def test_headline_weighs_tasks_equally_whatever_their_seeds() -> None:
    # ((1 + 3) / 2 + (2 + 4 + 6) / 3) / 2 = 3; pooled it would be 16 / 5
    assert stats.headline(scores(a=[1, 3], b=[2, 4, 6])) == pytest.approx(3.0, abs=EXACT)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    # of 0 1 2 3 4 5 6 100 the middle half is 2 3 4 5
    assert stats.interquartile_mean(scores(a=[0, 3, 5, 100], b=[6, 1, 2, 4])) == pytest.approx(3.5, abs=EXACT)


def test_optimality_gap_gives_nothing_for_more_than_the_target() -> None:
    # a: (0.5 + 0) / 2; b: (1 + 0) / 2; their mean
    assert stats.optimality_gap(scores(a=[0.5, 1.5], b=[0, 1])) == pytest.approx(0.375, abs=EXACT)


def test_performance_profile_counts_runs_strictly_above() -> None:
    # above 0.5: 1/2 of a, 2/2 of b; above 0.6: none of a, 1/2 of b
    profile = stats.performance_profile(scores(a=[0.1, 0.6], b=[0.6, 0.9]), [0.5, 0.6])
    assert profile == pytest.approx([0.75, 0.25], abs=EXACT)


def test_bootstrap_never_mixes_tasks() -> None:
    # Within tasks nothing varies, so every replicate is (0 + 1) / 2; a pooled bootstrap would vary.
    replicates = stats.bootstrap(scores(a=[0, 0, 0], b=[1, 1, 1]), np.random.default_rng(0), 200)
    assert {task: column.shape for task, column in replicates.items()} == {"a": (200, 3), "b": (200, 3)}
    assert np.unique(stats.headline(replicates)).tolist() == [0.5]


def test_bootstrap_spread_is_the_standard_error_with_division_by_n() -> None:
    # variance of the mean of a resample: ((0-2)^2 + (2-2)^2 + (4-2)^2) / 3 / 3 = 8/9
    replicates = stats.headline(stats.bootstrap(scores(a=[0, 2, 4]), np.random.default_rng(0), 20_000))
    assert np.var(replicates) == pytest.approx(8 / 9, rel=SAMPLED)


@pytest.mark.parametrize(
    ("data", "tail"),
    [
        # Phi(-sqrt(5/4) * t_.975,4) = Phi(-1.118034 * 2.776445) = Phi(-3.104160)
        (scores(a=[1, 2, 3, 4, 5]), 0.00095405),
        # two equal variances of 3 seeds: 2 + 2 = 4 degrees of freedom, Phi(-sqrt(3/2) * 2.776445) = Phi(-3.400437)
        (scores(a=[1, 2, 3], b=[4, 5, 6]), 0.00033639),
        # the second task adds no variance and no degrees of freedom: Phi(-1.224745 * 4.302653)
        (scores(a=[1, 2, 3], b=[4, 4, 4]), 6.8341e-08),
        (scores(a=[1, 1], b=[4, 4, 4]), 0.025),
    ],
)
def test_expanded_tail(data: stats.Scores, tail: float) -> None:
    assert stats.expanded_tail(data) == pytest.approx(tail, rel=1e-4)


def test_interval_of_one_seed_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"at least two seeds of every task.*'a': 1"):
        stats.interval(scores(a=[1], b=[1, 2]), stats.headline, np.random.default_rng(0))


def test_interval_is_reproducible_and_contains_the_plain_one() -> None:
    data = scores(a=[0.1, 0.4, 0.5], b=[0.3, 0.9, 0.6])
    first, again = (stats.interval(data, stats.headline, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    # (1/3 + 0.6) / 2
    assert first.estimate == pytest.approx(14 / 30, abs=EXACT)
    assert first.low < first.plain_low < first.estimate < first.plain_high < first.high
    # no replicate leaves the range of the data: (0.1 + 0.3) / 2 and (0.5 + 0.9) / 2
    assert first.low >= 0.2
    assert first.high <= 0.7


def test_interval_covers_at_three_seeds_where_the_plain_percentile_does_not() -> None:
    # 400 experiments of 3 tasks x 3 seeds from N(0, 1): nominal 95 %, plain percentile about 83 %.
    generator = np.random.default_rng(0)
    covered, plain_covered = 0, 0
    for _ in range(400):
        found = stats.interval(
            {task: generator.normal(size=3) for task in "abc"}, stats.headline, generator, num_replicates=500
        )
        covered += found.low <= 0 <= found.high
        plain_covered += found.plain_low <= 0 <= found.plain_high
    assert covered / 400 == pytest.approx(0.93, abs=SAMPLED)
    assert plain_covered / 400 == pytest.approx(0.83, abs=SAMPLED)


def test_standard_error_divides_by_n_minus_one() -> None:
    # sqrt(((1-2)^2 + 0 + (3-2)^2) / 2 / 3) = sqrt(1/3)
    assert stats.standard_error([1.0, 2.0, 3.0]) == pytest.approx((1 / 3) ** 0.5, abs=EXACT)
    assert stats.standard_error([1.0]) is None


def test_statistics_refuse_an_empty_task() -> None:
    with pytest.raises(ValueError, match="at least one task and one seed"):
        stats.headline(scores(a=[1], b=[]))


def test_limits_of_paired_differences_by_hand() -> None:
    of, than = np.array([2.0, 3.0, 4.0, 5.0, 7.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    # Differences 1 1 1 1 2: mean 1.2, standard deviation sqrt(.2), error .2; t of 4 degrees of freedom 2.776445.
    assert stats.difference_limits(of, than, paired=True) == pytest.approx((1.2, 0.644711, 1.755289), abs=ROUNDED)


def test_limits_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    of, than = rng.normal(1.0, 0.1, 7), rng.normal(0.8, 0.4, 10)
    welch = scipy_stats.ttest_ind(of, than, equal_var=False).confidence_interval(0.95)
    assert stats.difference_limits(of, than, paired=False)[1:] == pytest.approx((welch.low, welch.high), abs=ROUNDED)
    student = scipy_stats.ttest_rel(of, than[:7]).confidence_interval(0.95)
    assert stats.difference_limits(of, than[:7], paired=True)[1:] == pytest.approx(
        (student.low, student.high), abs=ROUNDED
    )


def test_runs_without_any_spread_have_an_interval_of_no_width() -> None:
    assert stats.difference_limits(np.full(5, 2.0), np.full(5, 1.0), paired=False) == (1.0, 1.0, 1.0)
