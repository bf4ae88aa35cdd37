"""How a run got to its final score: area under its curve, samples to the milestones, drop from its best evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from rlflow import stats
from rlflow.board import Cell, SeedResult


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How one finished run has learned.

    Attributes:
        area: Mean height of the curve over the budget, in units of the raw score.
        reached: Samples at which the curve first reached each of `stats.MILESTONES`, normalised; None for never.
        drop: Best evaluation minus final score, raw.
    """

    area: float
    reached: tuple[float | None, ...]
    drop: float


def learning_of(cell: Cell, seed: SeedResult) -> Learning | None:
    """How a seed of `cell` has learned; None where it has not finished or does not count."""
    if seed.outcome != "finished" or seed.final is None:
        return None
    z = stats.normalised_score(seed.scores, cell.anchor_base, cell.anchor_reference)
    return Learning(
        area=stats.area_under_curve(seed.steps, seed.scores),
        reached=tuple(stats.samples_to_reach(seed.steps, z, level) for level in stats.MILESTONES),
        drop=stats.drop(seed.scores, seed.final),
    )
