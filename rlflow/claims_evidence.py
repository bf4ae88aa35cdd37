"""From recorded runs to the verdicts of a claims file; everything is read from MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlflow.board import Cell, SeedResult
from rlflow.claims import SCORE, Claim, ClaimsError, ClaimsFile, Comparison, Side
from rlflow.curves import Curve, curves
from rlflow.leaderboard import Results, read_results
from rlflow.registry import did_you_mean, entries
from rlflow.stats import FloatArray, final_score, samples_to_reach
from rlflow.store import Store
from rlflow.suite import experiment_of, load_suite
from rlflow.tracker import SCORE_METRIC
from rlflow.verdicts import Finding, Verdict, judge, together

COST = "cost/"
NO_VALUES = np.zeros(0)


class MissingEvidenceError(LookupError):
    """A test has no runs to look at, or not all of them."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with the findings of its tests, in their order."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the claim."""
        return together([finding.verdict for finding in self.findings])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All claims of a file, judged.

    Attributes:
        file: The claims.
        judged: In the file's order.
        provenance: By experiment, what its runs were made on.
        commands: What makes the runs that are missing.
    """

    file: ClaimsFile
    judged: tuple[Judged, ...]
    provenance: Mapping[str, tuple[str, ...]]
    commands: tuple[str, ...] = ()


def read_evidence(store: Store, file: ClaimsFile) -> Evidence:
    """Judge every claim of `file` by the runs in `store`; a test without runs is undecided."""
    tests = [test for claim in file.claims for test in claim.tests]
    for side in {side for test in tests for side in sides(test)}:
        _refuse_unknown(side)
    names = {experiment_of(side.suite, side.budget) for test in tests for side in sides(test)}
    found = {name: read_results(store, name) for name in sorted(names) if _exists(store, name)}
    runs = _Runs(store, found)
    judged = [Judged(claim=c, findings=tuple(_finding(runs, test) for test in c.tests)) for c in file.claims]
    return Evidence(
        file=file,
        judged=tuple(judged),
        provenance={name: results.provenance for name, results in found.items()},
        commands=tuple(sorted(runs.commands)),
    )


def sides(test: Comparison) -> list[Side]:
    """The sides that have runs of their own."""
    return [test.of] if test.than is None else [test.of, test.than]


class _Runs:
    """Cells of experiments, and the curves of their metrics, each read once."""

    def __init__(self, store: Store, results: Mapping[str, Results]) -> None:
        self._store, self._results = store, results
        self._read: dict[tuple[str, str], dict[str, Curve]] = {}
        self.commands: set[str] = set()

    def cell(self, side: Side) -> Cell:
        name = experiment_of(side.suite, side.budget)
        cells = self._results[name].cells if name in self._results else ()
        found = [cell for cell in cells if (cell.algorithm, cell.task) == (side.entrant, side.task)]
        if len(found) == 1 and found[0].complete:
            return found[0]
        added = "" if _planned(side) else f" --add {side.entrant}"
        self.commands.add(f"rlflow matrix {side.suite} --budget {side.budget}{added}")
        if not found:
            raise MissingEvidenceError(f"no runs of {side.entrant} on {side.task} in {name}")
        if len(found) > 1:
            raise MissingEvidenceError(f"{side.entrant} on {side.task} has {len(found)} policies in {name}")
        counts = f"{len(found[0].raw)} of {len(found[0].launched)}"
        raise MissingEvidenceError(f"{counts} seeds of {side.entrant} on {side.task} have a result in {name}")

    def curve(self, cell: Cell, seed: SeedResult, metric: str) -> tuple[FloatArray, FloatArray]:
        """Steps and values of one run."""
        if metric in (SCORE, SCORE_METRIC):
            return np.array(seed.steps, dtype=np.float64), np.array(seed.scores, dtype=np.float64)
        key = (cell.cell_id, metric)
        if key not in self._read:
            self._read[key] = curves(self._store, [one.run_id for one in cell.seeds], metric)
        points = sorted(self._read[key][seed.run_id].items())
        if not points:
            raise MissingEvidenceError(f"no {metric} in the runs of {cell.algorithm} on {cell.task}")
        steps, values = zip(*points, strict=True)
        return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def _finding(runs: _Runs, test: Comparison) -> Finding:
    try:
        of, than = _values(runs, test)
    except MissingEvidenceError as missing:
        return Finding(verdict="undecided", of=NO_VALUES, than=NO_VALUES, reason=str(missing))
    return judge(
        test.kind, of, than, paired=test.than is None, margin=test.margin, lower_is_better=test.lower_is_better
    )


def _values(runs: _Runs, test: Comparison) -> tuple[FloatArray, FloatArray]:
    of = runs.cell(test.of)
    if test.than is None:
        return _ends(runs, of, test.metric), _starts(runs, of, test.metric)
    than = runs.cell(test.than)
    if test.at_equal is None:
        return _ends(runs, of, test.metric), _ends(runs, than, test.metric)
    level = min(_reached(runs, cell, test.at_equal) for cell in (of, than))
    return _at(runs, of, test.metric, test.at_equal, level), _at(runs, than, test.metric, test.at_equal, level)


def _ends(runs: _Runs, cell: Cell, metric: str) -> FloatArray:
    """Of each run: its final score, the last value of a cost, the mean of the last evaluations of another metric."""
    if metric == SCORE:
        return cell.raw
    ends = []
    for seed in cell.seeds:
        steps, values = runs.curve(cell, seed, metric)
        try:
            ends.append(values[-1] if metric.startswith(COST) else final_score(steps, values, cell.budget))
        except ValueError as error:
            raise MissingEvidenceError(f"{cell.algorithm} on {cell.task}, seed {seed.seed}: {error}") from error
    return np.array(ends)


def _starts(runs: _Runs, cell: Cell, metric: str) -> FloatArray:
    """Of each run: the untrained policy."""
    return np.array([runs.curve(cell, seed, metric)[1][0] for seed in cell.seeds])


def _reached(runs: _Runs, cell: Cell, metric: str) -> float:
    """What all runs of a cell have reached at some time."""
    return min(float(runs.curve(cell, seed, metric)[1].max()) for seed in cell.seeds)


def _at(runs: _Runs, cell: Cell, metric: str, equal: str, level: float) -> FloatArray:
    """Of each run: the metric where another one first reached `level`, linear between evaluations."""
    places = [samples_to_reach(*runs.curve(cell, seed, equal), level) for seed in cell.seeds]
    assert None not in places, "the level is what all have reached"
    curves_of = [runs.curve(cell, seed, metric) for seed in cell.seeds]
    return np.array([np.interp(place or 0.0, *curve) for place, curve in zip(places, curves_of, strict=True)])


def _refuse_unknown(side: Side) -> None:
    """Refuse what no run of a suite's file can ever be; an experiment's name tells nothing of its file."""
    if "@" in side.suite:
        return
    suite = load_suite(side.suite)
    if side.task not in suite.tasks:
        raise ClaimsError(f"{side}: suite {suite.name} has no such task{did_you_mean(side.task, suite.tasks)}")
    if not _planned(side) and side.entrant not in entries("algorithm"):
        raise ClaimsError(
            f"{side}: suite {suite.name} has no such entrant{did_you_mean(side.entrant, suite.algorithms)}"
        )


def _planned(side: Side) -> bool:
    """Whether the suite has the entrant, which else has to be added."""
    return "@" in side.suite or side.entrant in load_suite(side.suite).algorithms


def _exists(store: Store, name: str) -> bool:
    return store.client.get_experiment_by_name(name) is not None
