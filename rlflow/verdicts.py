"""Whether the runs of two sides show what a test of a claim says: confidence limits of a difference, or of a ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlflow.claims import Kind
from rlflow.stats import FloatArray, difference_limits

Verdict = Literal["replicated", "not replicated", "undecided"]
MIN_SEEDS = 5
MIN_SEEDS_SUPERIOR = 10
"""Seeds of each side for a claim that one entrant beats another (rules of a comparison, 3)."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a test came to.

    Attributes:
        verdict: Of the test.
        of: Values of the runs that are judged, `[n]`.
        than: Values of the runs that they are compared with, `[m]`.
        effect: Difference of the means, or for `cheaper` how many times less `of` costs.
        low: Lower 95 % limit of the effect.
        high: Upper 95 % limit.
        reason: Why there is no verdict, or what a reader must know.
    """

    verdict: Verdict
    of: FloatArray
    than: FloatArray
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def judge(
    kind: Kind, of: FloatArray, than: FloatArray, *, paired: bool, margin: float = 0.0, lower_is_better: bool = False
) -> Finding:
    """The verdict of one test.

    `beats` is replicated where the whole interval lies above 0, not where it lies below `margin` and does not reach it;
    `keeps` where it lies above -margin; `matches` where it lies within the margins; `cheaper` where the ratio of
    costs lies above 1.  Not replicated means that the interval lies wholly on the other side, undecided all else.

    Args:
        kind: What is claimed.
        of: `[n]`, one value per run.
        than: `[m]`; row by row of the same runs where `paired`.
        paired: The interval is that of the mean of n differences (Student), otherwise of a difference of means (Welch).
        margin: In units of the values.
        lower_is_better: Turns `beats` and `keeps` round.
    """
    needed = MIN_SEEDS_SUPERIOR if kind == "beats" and not paired else MIN_SEEDS
    if min(len(of), len(than)) < needed:
        found = f"{len(of)} and {len(than)}"
        return Finding(verdict="undecided", of=of, than=than, reason=f"{needed} seeds a side needed, found {found}")
    if kind == "cheaper":
        if min(of.min(), than.min()) <= 0:
            return Finding(verdict="undecided", of=of, than=than, reason="costs of nothing cannot be compared")
        limits = tuple(np.exp(limit) for limit in difference_limits(np.log(than), np.log(of), paired=paired))
    else:
        limits = difference_limits(of, than, paired=paired)
    effect, low, high = (float(limit) for limit in limits)
    verdict = _verdict(kind, *((-high, -low) if lower_is_better else (low, high)), margin)
    return Finding(verdict=verdict, of=of, than=than, effect=effect, low=low, high=high)


def together(verdicts: list[Verdict]) -> Verdict:
    """A claim is replicated where all of its tests are, and not where one is not."""
    if "not replicated" in verdicts:
        return "not replicated"
    return "undecided" if "undecided" in verdicts else "replicated"


def _verdict(kind: Kind, low: float, high: float, margin: float) -> Verdict:
    if kind == "beats":
        holds, fails = low > 0, high < max(margin, 0.0) and low <= 0
    elif kind == "keeps":
        holds, fails = low > -margin, high < -margin
    elif kind == "matches":
        holds, fails = low > -margin and high < margin, low > margin or high < -margin
    else:
        holds, fails = low > 1, high < 1
    return "replicated" if holds else "not replicated" if fails else "undecided"
