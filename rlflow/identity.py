"""Which runs are the same cell: a versioned hash of everything that changes the result, and what differs if it is not.

The same functions serve a plan (`params(config)`) and a finished run (its MLflow params), which hold the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from rlflow.cell import CellIdentity
from rlflow.registry import find
from rlflow.settings import Config
from rlflow.store import MAX_VALUE_LENGTH, exact

VERSION = "v1"
# Seeds make the runs of one cell; the rest moves speed, memory and records, and results only within rounding.
NOT_IDENTITY = frozenset(
    {
        "trainer.seed",
        "trainer.accelerator",
        "trainer.devices",
        "trainer.strategy",
        "trainer.num_threads",
        "trainer.answer_rows",
        "trainer.answer_traces",
        "update.micro_batch",
        "update.micro_batch_decisions",
    }
)


def params(config: Config) -> dict[str, str]:
    """The resolved configuration with dotted keys, as MLflow gives it back."""
    return {key: exact(value) for key, value in config.flat().items()}


def cell_id(values: Mapping[str, str], task_version: str) -> str:
    """`v1-` and 16 hex digits.

    Args:
        values: Dotted parameters, of `params` or of an MLflow run.
        task_version: The task's `revision`: version and content of named files, which no parameter carries.
    """
    lines = [f"{key}={value}" for key, value in sorted(_relevant(values).items())]
    text = "\n".join([VERSION, f"task_version={task_version}", *lines])
    return f"{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def cell_identity(config: Config, *, suite: str, division: str = "closed", suite_digest: str = "") -> CellIdentity:
    """The cell that a run of this configuration belongs to; its footnote is known once the policy is built."""
    task, revision = config.task, config.task.revision
    return CellIdentity(
        suite=suite,
        cell_id=cell_id(params(config), revision),
        algorithm=config.algorithm_name,
        task=config.task_name,
        task_version=revision,
        policy=task.policy_kind,
        anchor_base=task.anchors.base,
        anchor_reference=task.anchors.reference,
        budget=config.trainer.budget,
        unit=task.unit,
        division=division,
        guards=task.guards,
        plugin=find("algorithm", config.algorithm_name).package,
        suite_digest=suite_digest,
    )


def difference(planned: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """One line per parameter that makes two cells differ; empty where only the task's version does."""
    ours, theirs = _relevant(planned), _relevant(found)
    return [
        f"{key}: planned {ours.get(key, '(absent)')}, recorded {theirs.get(key, '(absent)')}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def _relevant(values: Mapping[str, str]) -> dict[str, str]:
    # The store cuts values at this length, so that more than it cannot be compared.
    return {key: value[:MAX_VALUE_LENGTH] for key, value in values.items() if key not in NOT_IDENTITY}
