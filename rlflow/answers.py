"""Answers of a policy in words: the table of a run, which grows with every evaluation, and those that become traces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlflow.task import Answer


TABLE = "answers.json"
# Of one text; a table holds every evaluation and is sent whole each time.
MAX_CHARACTERS = 20_000


def spread(answers: Sequence[Answer], limit: int) -> list[Answer]:
    """At most `limit` of `answers`, evenly over their order: the same places at every evaluation."""
    count = min(limit, len(answers))
    return [answers[index * len(answers) // count] for index in range(count)]


def write_table(folder: Path, answers: Sequence[Answer], step: int) -> Path:
    """Add the rows of `step` to the table of the run in `folder`, in the format of `mlflow.log_table`.

    Rows of this and later steps are replaced: a run that goes on from an earlier checkpoint writes them again.

    Raises:
        ValueError: The file that is there is no such table.
    """
    path = folder / TABLE
    rows = [row for row in _read(path) if row["step"] < step]
    rows += [{"step": step, **_cut(answer.inputs), **_cut(answer.outputs), **_cut(answer.judged)} for answer in answers]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    return unfinished.replace(path)


def table_tags(table: Path) -> dict[str, str]:
    """The mark by which MLflow shows and loads a table of a run, as `mlflow.log_table` sets it."""
    return {"mlflow.loggedArtifacts": json.dumps([{"path": table.name, "type": "table"}])}


def as_traces(run_id: str, answers: Sequence[Answer], step: int, time_ms: int) -> list[dict[str, Any]]:
    """Plain values of a trace per answer; ids are those of run, step and place, so that a repetition replaces."""
    return [
        {
            "id": hashlib.sha256(f"{run_id} {step} {place}".encode()).hexdigest()[:32],
            "time_ms": time_ms,
            "step": step,
            "inputs": _cut(answer.inputs),
            "outputs": _cut(answer.outputs),
            "judged": _cut(answer.judged),
        }
        for place, answer in enumerate(answers)
    ]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a table of answers at {path}, found a file that cannot be read ({error}); remove it to begin a "
            "new one"
        ) from error


def _cut(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _cut_text(value) if isinstance(value, str) else value for name, value in values.items()}


def _cut_text(text: str) -> str:
    left_out = len(text) - MAX_CHARACTERS
    return text if left_out <= 0 else f"{text[:MAX_CHARACTERS]} ... and {left_out} more characters"
