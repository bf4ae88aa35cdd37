"""Identity of a cell of the matrix and plan of a suite: plain values, as the tags of MLflow runs carry them."""

from __future__ import annotations

from dataclasses import dataclass

from rlflow.store import exact


@dataclass(frozen=True, kw_only=True)
class CellIdentity:
    """One cell of the matrix: algorithm x task x policy, with what the board must know about it.

    Attributes:
        suite: `name@version`, the MLflow experiment.
        cell_id: Versioned hash of everything that changes the result; equal ids are the same cell.
        algorithm: Registered name.
        task: Registered name.
        task_version: Version of task, data and evaluation set, with digests of files that the configuration names.
        policy: Name of the task's policy choice.
        anchor_base: Raw score of the untrained policy, fixed with the task version.
        anchor_reference: Raw score that counts as 1.
        budget: Samples of the whole run.
        unit: What a sample is: rollouts or environment steps.
        division: `closed` or `open`.
        guards: Evaluation metrics that the board shows beside the score and does not rank.
        note: Footnote of the board, e.g. where a bound is tight on this policy.
        plugin: Distribution that provides the algorithm.
        suite_digest: Digest of the suite file.
    """

    suite: str
    cell_id: str
    algorithm: str
    task: str
    task_version: str
    policy: str
    anchor_base: float
    anchor_reference: float
    budget: int
    unit: str = "rollouts"
    division: str = "closed"
    guards: tuple[str, ...] = ()
    note: str = ""
    plugin: str = ""
    suite_digest: str = ""

    def __post_init__(self) -> None:
        """Take a list for `guards` as well: JSON, by which a plan reaches its process, has no tuples."""
        object.__setattr__(self, "guards", tuple(self.guards))

    def tags(self) -> dict[str, str]:
        """The `rlflow.` tags that cell and seed runs share."""
        fields = dict(vars(self))
        fields.pop("suite")
        fields["guards"] = ",".join(self.guards)
        return {f"rlflow.{name}": exact(value) for name, value in fields.items()}


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """What a suite set out to run, so that the board can say what is missing."""

    digest: str
    algorithms: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
