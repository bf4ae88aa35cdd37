"""Statistics of one run and of one entrant: scores, curves, stratified bootstrap, intervals.

A `Scores` maps each task to the scores of its seeds, `[N]`; tasks may have different numbers of seeds.  Every
statistic also accepts leading axes, `[..., N]`, so that one call serves the data and its bootstrap replicates.
Comparisons between entrants are in `rlflow.comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

FloatArray = NDArray[np.float64]
Scores = Mapping[str, FloatArray]
Statistic = Callable[[Scores], FloatArray]

CONFIDENCE = 0.95
NUM_REPLICATES = 10_000
FINAL_FRACTION = 0.1
MIN_FINAL_POINTS = 3
MILESTONES = (0.25, 0.5, 0.75)


def normalised_score(score: ArrayLike, base: float, ref: float) -> FloatArray:
    """Place a raw score between two fixed anchors: 0 is the untrained policy, 1 the reference; never clipped.

    Args:
        score: raw scores, any shape.
        base: score of the untrained policy, from the task version.
        ref: reference score of the task version.

    Returns:
        `(score - base) / (ref - base)`, the shape of `score`.

    Raises:
        ValueError: the anchors are equal or not finite.
    """
    if not (np.isfinite(base) and np.isfinite(ref)) or base == ref:
        raise ValueError(f"expected two different finite anchors, found base={base} and ref={ref}; set Task.anchors")
    return (np.asarray(score, dtype=np.float64) - base) / (ref - base)


def final_score(steps: ArrayLike, values: ArrayLike, budget: float) -> float:
    """Mean of the evaluations in the last 10 % of the budget, at least three; never the best checkpoint.

    Args:
        steps: samples consumed at each evaluation, increasing, `[P]`.
        values: scores, `[P]`.
        budget: samples of the whole run.

    Raises:
        ValueError: fewer than three evaluations, or the last one is short of the budget.
    """
    steps, values = _curve(steps, values)
    if len(steps) < MIN_FINAL_POINTS:
        raise ValueError(
            f"expected at least {MIN_FINAL_POINTS} evaluations for a final score, found {len(steps)}; "
            "use a finer evaluation grid"
        )
    if steps[-1] < budget:
        raise ValueError(f"expected evaluations up to {budget:g} samples, found the last one at {steps[-1]:g}")
    num_late = int(np.sum(steps >= (1 - FINAL_FRACTION) * budget))
    return float(np.mean(values[-max(num_late, MIN_FINAL_POINTS) :]))


def area_under_curve(steps: ArrayLike, values: ArrayLike) -> float:
    """Mean height of the learning curve from its first to its last evaluation (trapezoids), in units of the score."""
    steps, values = _curve(steps, values)
    if len(steps) < 2:
        raise ValueError(f"expected at least two evaluations for an area, found {len(steps)}; use a finer grid")
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def samples_to_reach(steps: ArrayLike, values: ArrayLike, level: float) -> float | None:
    """Samples at which the curve first reaches `level`, linear between evaluations; None if it never does."""
    steps, values = _curve(steps, values)
    reached = np.flatnonzero(values >= level)
    if len(reached) == 0:
        return None
    after = int(reached[0])
    if after == 0:
        return float(steps[0])
    rise = (level - values[after - 1]) / (values[after] - values[after - 1])
    return float(steps[after - 1] + rise * (steps[after] - steps[after - 1]))


def drop(values: ArrayLike, final: float) -> float:
    """How far the final score lies below the best evaluation: what an early-stopped report would have hidden."""
    return float(np.max(np.asarray(values, dtype=np.float64)) - final)


def headline(scores: Scores) -> FloatArray:
    """M: mean over tasks of the mean over seeds, `[...]`; every task weighs the same whatever its seeds."""
    return _mean_over_tasks([np.mean(column, axis=-1) for column in _columns(scores)])


def interquartile_mean(scores: Scores) -> FloatArray:
    """IQM: mean of the middle half of all runs, `[...]`; with three tasks the middle task decides it."""
    pooled = np.concatenate(_columns(scores), axis=-1)
    cut = pooled.shape[-1] // 4
    return np.asarray(np.sort(pooled, axis=-1)[..., cut : pooled.shape[-1] - cut].mean(axis=-1), dtype=np.float64)


def optimality_gap(scores: Scores, target: float = 1.0) -> FloatArray:
    """Mean shortfall from `target` over tasks, `[...]`; scores above the target earn nothing."""
    return _mean_over_tasks([np.mean(np.maximum(target - column, 0.0), axis=-1) for column in _columns(scores)])


def performance_profile(scores: Scores, thresholds: ArrayLike) -> FloatArray:
    """Share of runs with a score above each threshold, averaged over tasks, `[len(thresholds)]`."""
    tau = np.asarray(thresholds, dtype=np.float64)
    return _mean_over_tasks([np.mean(column[:, None] > tau, axis=0) for column in _columns(scores)])


def bootstrap(scores: Scores, generator: np.random.Generator, num_replicates: int = NUM_REPLICATES) -> Scores:
    """Resample seeds with replacement within each task, `[R, N]` per task: tasks are fixed, seeds are random."""
    return {task: scores[task][rows] for task, rows in resampled(scores, generator, num_replicates).items()}


def resampled(
    scores: Scores, generator: np.random.Generator, num_replicates: int = NUM_REPLICATES
) -> dict[str, NDArray[np.int64]]:
    """Which seeds each replicate of `bootstrap` has, `[R, N]` per task."""
    _columns(scores)
    return {
        task: generator.integers(len(scores[task]), size=(num_replicates, len(scores[task]))) for task in sorted(scores)
    }


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % expanded percentile limits; the plain percentile limits are kept beside them."""

    estimate: float
    low: float
    high: float
    plain_low: float
    plain_high: float


def expanded_tail(scores: Scores, confidence: float = CONFIDENCE) -> float:
    r"""Tail probability at which percentile limits have the width of a t interval.

    With \(v_i = s_i^2 / n_i\) per task, \(\Phi(-\sqrt{\sum v_i / \sum v_i (n_i - 1)/n_i}\; t_{\alpha/2, \nu})\): the
    square root undoes the bootstrap's division by n, the quantile pays for the estimated spread.  The degrees of
    freedom are Welch-Satterthwaite's, \(\nu = (\sum v_i)^2 / \sum v_i^2/(n_i - 1)\).  Hesterberg (2015), section 4.2.

    Raises:
        ValueError: a task has fewer than two seeds, where no interval exists.
    """
    columns = _columns(scores)
    if min(len(column) for column in columns) < 2:
        counts = {task: len(scores[task]) for task in sorted(scores)}
        raise ValueError(f"expected at least two seeds of every task for an interval, found {counts}; run more seeds")
    counts_array = np.array([len(column) for column in columns], dtype=np.float64)
    variance = np.array([np.var(column, ddof=1) for column in columns]) / counts_array
    alpha = 1 - confidence
    if np.all(variance == 0):
        return alpha / 2
    share = variance / variance.sum()
    expansion = np.sqrt(1 / np.sum(share * (counts_array - 1) / counts_array))
    freedom = 1 / np.sum(share**2 / (counts_array - 1))
    # Of scipy.special: scipy.stats takes as long to import as everything else that a board needs.
    return float(special.ndtr(-expansion * special.stdtrit(freedom, 1 - alpha / 2)))


def interval(
    scores: Scores,
    statistic: Statistic,
    generator: np.random.Generator,
    *,
    num_replicates: int = NUM_REPLICATES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Bootstrap interval of `statistic`, stratified by task.

    Args:
        scores: normalised scores, `[N]` per task, at least two seeds each.
        statistic: maps `[..., N]` per task to `[...]`; `headline`, `interquartile_mean` or `optimality_gap`.
        generator: source of the resampling; the same state gives the same limits.
        num_replicates: resampled data sets.
        confidence: nominal coverage.
    """
    tail = expanded_tail(scores, confidence)
    replicates = statistic(bootstrap(scores, generator, num_replicates))
    return interval_from_replicates(float(statistic(scores)), replicates, tail, confidence)


def interval_from_replicates(
    estimate: float, replicates: FloatArray, tail: float, confidence: float = CONFIDENCE
) -> Interval:
    """Percentile limits of `replicates` at `tail` (expanded) and at half of `1 - confidence` (plain)."""
    plain = (1 - confidence) / 2
    low, high, plain_low, plain_high = np.quantile(replicates, [tail, 1 - tail, plain, 1 - plain])
    return Interval(
        estimate=estimate, low=float(low), high=float(high), plain_low=float(plain_low), plain_high=float(plain_high)
    )


def difference_limits(of: FloatArray, than: FloatArray, *, paired: bool) -> tuple[float, float, float]:
    """Mean difference with its 95 % limits by Student's t; Welch's degrees of freedom where not paired."""
    if paired:
        steps = of - than
        error, freedom = float(np.std(steps, ddof=1) / np.sqrt(len(steps))), float(len(steps) - 1)
    else:
        parts = np.array([np.var(side, ddof=1) / len(side) for side in (of, than)])
        error = float(np.sqrt(parts.sum()))
        sizes = np.array([len(of), len(than)])
        freedom = float(parts.sum() ** 2 / np.sum(parts**2 / (sizes - 1))) if error else 1.0
    mean = float(of.mean() - than.mean())
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return mean, mean - half, mean + half


def standard_error(values: Sequence[float] | FloatArray) -> float | None:
    """Standard error of the mean over seeds; None for fewer than two."""
    return None if len(values) < 2 else float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _mean_over_tasks(values: Sequence[ArrayLike]) -> FloatArray:
    return np.asarray(np.mean(np.asarray(values, dtype=np.float64), axis=0))


def _columns(scores: Scores) -> list[FloatArray]:
    """The tasks' arrays in the order of their names, so that no result depends on insertion order."""
    if not scores or any(np.shape(column)[-1] == 0 for column in scores.values()):
        raise ValueError(f"expected at least one task and one seed of each, found {dict(scores)}")
    return [scores[task] for task in sorted(scores)]


def _curve(steps: ArrayLike, values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if steps.ndim != 1 or steps.shape != values.shape or np.any(np.diff(steps) <= 0):
        raise ValueError(
            f"expected increasing steps and as many values, found {steps.shape} steps and {values.shape} values"
        )
    return steps, values
