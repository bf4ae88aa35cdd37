"""The leaderboard as plain values: seeds, cells, entrants and pairs, as `rlflow.ranking` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rlflow.stats import FloatArray, Interval, Scores


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One training seed.

    Attributes:
        seed: Training seed.
        outcome: `finished`, `diverged`, `interrupted`, `failed`, `running`, or `stale` (running without a process).
        detail: Stage and step of a divergence, or the error.
        steps: Samples consumed at each evaluation, `[P]`.
        scores: Raw evaluation scores, `[P]`.
        seconds: Training seconds, without evaluation, at each evaluation, `[P]`; empty where they were not recorded.
        final: Raw final score; None where the seed does not count (yet).  A diverged seed has the untrained score.
        normalised: Final score between the anchors; 0 for a diverged seed.
        guards: Untrained and last value of each metric that guards the score.
        wall_s: Seconds of the run.
        costs: What the run has spent in all, by the names of `cost/*`; only what was recorded.
        on_gpu: Whether the seconds were spent on a GPU.
        hardware: Of the machine that the run ended on.
        run_id: MLflow run.
    """

    seed: int
    outcome: str
    detail: str = ""
    steps: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    final: float | None = None
    normalised: float | None = None
    guards: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    wall_s: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    on_gpu: bool = False
    hardware: str = ""
    run_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One algorithm on one task with one policy; the fields of `CellIdentity` that the board shows, and the seeds."""

    algorithm: str
    task: str
    task_version: str
    policy: str
    cell_id: str
    anchor_base: float
    anchor_reference: float
    budget: int
    unit: str = "rollouts"
    division: str = "closed"
    note: str = ""
    launched: tuple[int, ...]
    seeds: tuple[SeedResult, ...]

    @property
    def raw(self) -> FloatArray:
        """Final scores of the seeds that count, `[n]`."""
        return np.array([seed.final for seed in self.seeds if seed.final is not None], dtype=np.float64)

    @property
    def normalised(self) -> FloatArray:
        """Normalised final scores of the seeds that count, `[n]`."""
        return np.array([seed.normalised for seed in self.seeds if seed.normalised is not None], dtype=np.float64)

    @property
    def num_diverged(self) -> int:
        """Seeds that count as the untrained policy."""
        return sum(seed.outcome == "diverged" for seed in self.seeds)

    @property
    def complete(self) -> bool:
        """Whether every launched seed counts."""
        return 0 < len(self.launched) == len(self.raw)

    @property
    def wall_s(self) -> float:
        """Seconds of all seeds together."""
        return sum(seed.wall_s for seed in self.seeds)


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One algorithm over all columns; without rank, tier and M where a column or a seed is missing.

    `rank_shares` are the probabilities of the ranks 1, 2, ... by bootstrap; empty where there is no interval.  The
    limits of the interquartile mean and of the optimality gap are expanded as those of M are.
    """

    algorithm: str
    cells: dict[str, Cell]
    complete: bool
    headline: float | None = None
    interval: Interval | None = None
    interquartile_mean: float | None = None
    interquartile_interval: Interval | None = None
    optimality_gap: float | None = None
    gap_interval: Interval | None = None
    rank: int | None = None
    tier: int | None = None
    mean_rank: float | None = None
    first_probability: float | None = None
    rank_shares: tuple[float, ...] = ()

    @property
    def wall_s(self) -> float:
        """Seconds of all cells together."""
        return sum(cell.wall_s for cell in self.cells.values())

    @property
    def scores(self) -> Scores:
        """Normalised scores by column."""
        return {column: cell.normalised for column, cell in self.cells.items()}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two complete entrants, the better first; `adjusted` is Holm's p-value over all pairs of the board."""

    first: str
    second: str
    difference: float
    improvement: float
    improvement_interval: Interval | None
    p_value: float
    adjusted: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Board:
    """A suite's leaderboard.

    Attributes:
        suite: `name@version`.
        digest: Digest of the suite file, from which the resampling is seeded.
        columns: A task each, or a task with a policy where an algorithm entered several.
        entrants: Ranked ones by M, then the incomplete ones by name.
        pairs: All pairs of ranked entrants.
        footnotes: Distinct notes of the cells in order of appearance.
        warnings: What a reader must know before believing the numbers.
        provenance: Commit and hardware of the runs.
    """

    suite: str
    digest: str
    columns: tuple[str, ...]
    entrants: tuple[Entrant, ...]
    pairs: tuple[Pair, ...] = ()
    footnotes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[Entrant, ...]:
        """The complete entrants, best first."""
        return tuple(entrant for entrant in self.entrants if entrant.complete)
