"""Programming problems from a file, a folder or the hub, and the program in what a policy writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.reasoning.code_asserts import Malformed
from tasks.reasoning.code_schemas import SCHEMAS, CodeProblem, Schema

_SUFFIXES = (".jsonl", ".json", ".parquet")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = frozenset({"", "python", "python3", "py"})
# A line that prose hardly begins with.
_CODE_LINE = re.compile(
    r"^(?:def |class |import |from \w[\w.]* import |@\w|(?:for|while|if|with) .*:|print\(|\w+ *[-+*]?= *\S)", re.M
)


@dataclass(frozen=True, kw_only=True)
class CodeData:
    """Where problems come from and how their rows are read.

    Attributes:
        schema: `humaneval_plus`, `mbpp_plus`, `livecodebench` or `codeforces`.
        source: File or folder of .jsonl or .parquet, or a data set of the hub such as `evalplus/humanevalplus`.
        split: Split of a data set of the hub; in a folder, the files whose names begin with it, or all if none does.
        revision: Commit of a data set of the hub; empty: the newest, which makes scores incomparable over time.
        columns: Column of a field where the data set names it otherwise, such as `{tests: hidden_tests}`.
    """

    schema: str
    source: str
    split: str = "test"
    revision: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an unknown schema or field."""
        if self.schema not in SCHEMAS:
            raise ValueError(f"data.schema: expected one of {', '.join(SCHEMAS)}, found {self.schema!r}")
        unknown = sorted(set(self.columns) - set(SCHEMAS[self.schema].columns))
        if unknown:
            known = ", ".join(SCHEMAS[self.schema].columns)
            raise ValueError(f"data.columns: expected fields of {self.schema} ({known}), found {', '.join(unknown)}")


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that is left out: its place in the data (`file:line`, or a row counted from 0) and what is wrong."""

    place: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The problems of a data set and the rows that are none."""

    problems: tuple[CodeProblem, ...]
    bad_rows: tuple[BadRow, ...]

    def summary(self, most: int = 5) -> str:
        """How much was read, and the first rows that were left out."""
        listed = "".join(f"\n  {row.place}: {row.reason}" for row in self.bad_rows[:most])
        more = f"\n  and {len(self.bad_rows) - most} more" if len(self.bad_rows) > most else ""
        return f"{len(self.problems)} problems, {len(self.bad_rows)} rows left out{listed}{more}"


def load_problems(data: CodeData) -> Loaded:
    """Read every row; a malformed one is listed, not skipped in silence.

    Raises:
        FileNotFoundError: No such file, folder or data set.
        ValueError: Not one row is a problem of the schema.
    """
    schema = SCHEMAS[data.schema]
    columns = dict(schema.columns) | dict(data.columns)
    problems, bad_rows = [], []
    for place, row in _rows(data):
        try:
            problems.append(_problem(schema, columns, row))
        except Malformed as problem:
            bad_rows.append(BadRow(place=place, reason=str(problem)))
    loaded = Loaded(problems=tuple(problems), bad_rows=tuple(bad_rows))
    if not problems:
        raise ValueError(f"data.source: expected rows of {data.schema} in {data.source}, found {loaded.summary()}")
    return loaded


def extract_program(completion: str) -> str | None:
    """The last Python block of a completion, or all of it where it has no block and looks like code; None for prose.

    A block that is cut off at the end counts: a program that is incomplete fails its tests, not the extraction.
    """
    blocks = [code for language, code in _FENCE.findall(completion) if language.lower() in _PYTHON and code.strip()]
    if blocks:
        return str(blocks[-1])
    if "```" in completion or not _CODE_LINE.search(completion):
        return None
    return completion


def program_of(problem: CodeProblem, completion: str) -> str | None:
    """The program that a completion makes of a problem; None where it holds none.

    A completion of a problem with a stub may go on where the stub ends, or write the whole function anew.
    """
    code = extract_program(completion)
    if not problem.stub:
        return code
    if code is not None and re.search(rf"^(?:async )?def {re.escape(problem.entry)}\b", code, re.M):
        return f"{problem.stub}\n{code}"
    body = completion if "```" not in completion else code
    if body is None or not re.match(r"\s*\n?[ \t]+\S", body):
        return None
    return problem.stub + body


def _problem(schema: Schema, columns: Mapping[str, str], row: Any) -> CodeProblem:
    if isinstance(row, Malformed):
        raise row
    if not isinstance(row, dict):
        raise Malformed(f"expected a row of named columns, found a {type(row).__name__}")
    try:
        return schema.parse({name: row.get(column) for name, column in columns.items()})
    except Malformed as problem:
        missing = sorted({column for column in columns.values() if column not in row})
        raise Malformed(f"{problem}{f' (no column {missing})' if missing else ''}") from problem
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Malformed(f"a value of the wrong kind: {type(error).__name__}: {error}") from error


def _rows(data: CodeData) -> Iterator[tuple[str, Any]]:
    path = Path(data.source)
    if path.is_dir():
        every = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
        files: Sequence[Path] = [file for file in every if file.name.startswith(data.split)] or every
        if not files:
            raise FileNotFoundError(f"data.source: expected .jsonl or .parquet files in {path}, found none")
    elif path.is_file():
        files = [path]
    else:
        yield from _hub_rows(data)
        return
    for file in files:
        yield from _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"{file.name}:{number}", json.loads(line)
                except ValueError as error:
                    yield f"{file.name}:{number}", Malformed(f"no JSON: {error}")


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import parquet

    number = 0
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield f"{file.name}:{number}", row
            number += 1


def _hub_rows(data: CodeData) -> Iterator[tuple[str, Any]]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", data.source):
        raise FileNotFoundError(
            f"data.source: expected a file, a folder or ORGANISATION/DATASET, found no such path: {data.source}"
        )
    from datasets import load_dataset

    try:
        rows = load_dataset(data.source, split=data.split, revision=data.revision or None)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data.source: cannot get {data.source} (split {data.split}) from the hub: {str(error).splitlines()[0]}; "
            "where there is no network, give a folder with its .parquet or .jsonl files"
        ) from error
    for number, row in enumerate(rows):
        yield str(number), dict(row)
