"""Mathematical problems from files or the hub: which column is what, how the answer is taken out, and a digest.

Local files are JSON lines or Parquet. Everything that is dropped is counted; nothing that cannot be read is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rlflow.registry import did_you_mean

Gold = Literal["plain", "hashes", "boxed", "list"]
GOLDS: tuple[Gold, ...] = get_args(Gold)
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
MAX_SHOWN = 10

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n",
    '\n\nRemember to put your answer on its own line after "Answer:".',
)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How the rows of one data set are read.

    Attributes:
        prompt: Column of the question: a text, or a list of messages of which the user's last counts.
        answer: Column of the reference; a dot enters a nested column.
        gold: `plain`, the whole value; `hashes`, what follows the last `####`; `boxed`, the last box of a solution;
            `list`, all answers together.
        hub: Hub id where no location is given.
        config: Its configuration on the hub.
        train_split: Split, or begin of the file names, of training rows.
        evaluation_split: The same of evaluation rows.
        wrapper: Text around every question that is taken off, because it asks for another form of answer.
    """

    prompt: str
    answer: str
    gold: Gold = "plain"
    hub: str = ""
    config: str = ""
    train_split: str = "train"
    evaluation_split: str = "test"
    wrapper: tuple[str, str] = ("", "")


SCHEMAS: dict[str, Schema] = {
    "gsm8k": Schema(prompt="question", answer="answer", gold="hashes", hub="openai/gsm8k", config="main"),
    "math": Schema(prompt="problem", answer="solution", gold="boxed"),
    "math500": Schema(prompt="problem", answer="answer", hub="HuggingFaceH4/MATH-500"),
    "aime": Schema(prompt="problem", answer="answer", hub="HuggingFaceH4/aime_2024", evaluation_split="train"),
    "amc": Schema(prompt="problem", answer="answer", hub="AI-MO/aimo-validation-amc", evaluation_split="train"),
    "minerva": Schema(prompt="question", answer="answer", hub="math-ai/minervamath"),
    "olympiadbench": Schema(
        prompt="question",
        answer="final_answer",
        gold="list",
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        evaluation_split="train",
    ),
    "dapo17k": Schema(
        prompt="prompt", answer="reward_model.ground_truth", hub="BytedTsinghua-SIA/DAPO-Math-17k", wrapper=_DAPO
    ),
    "custom": Schema(prompt="problem", answer="answer"),
}


@dataclass(frozen=True)
class MathsProblem:
    """A question with its reference answer."""

    prompt: str
    gold: str
    source: str = ""


def schema_of(name: str, *, prompt: str = "", answer: str = "", gold: str = "") -> Schema:
    """A schema by name, `NAME` or `NAME_LABEL` (`aime_2025`), with what is not empty in place of its own.

    Raises:
        ValueError: Unknown name or way to take the answer out.
    """
    known = SCHEMAS.get(name) or SCHEMAS.get(name.partition("_")[0])
    if known is None:
        raise ValueError(f"maths schema: unknown {name!r}{did_you_mean(name, SCHEMAS)}")
    if gold not in ("", *GOLDS):
        raise ValueError(f"task.gold: expected one of {GOLDS} or nothing, found {gold!r}")
    wanted = {"prompt": prompt, "answer": answer, "gold": gold}
    return replace(known, **{key: value for key, value in wanted.items() if value})  # type: ignore[arg-type]


def load_problems(location: str, schema: Schema, source: str, *, training: bool) -> list[MathsProblem]:
    """Every row of a file, folder or hub id; empty means the schema's hub id.

    Raises:
        FileNotFoundError: Nothing lies there.
        ValueError: Rows without question or answer, each named.
    """
    split = schema.train_split if training else schema.evaluation_split
    return read_problems(_rows(location or schema.hub, split, schema), schema, source)


def read_problems(rows: Iterable[Mapping[str, Any]], schema: Schema, source: str) -> list[MathsProblem]:
    """Problems of rows, in their order.

    Raises:
        ValueError: Rows without question or answer, each named.
    """
    problems, broken = [], []
    for index, row in enumerate(rows):
        try:
            question = _question(_column(row, schema.prompt), schema.wrapper)
            problems.append(MathsProblem(question, take_gold(_column(row, schema.answer), schema.gold), source))
        except ValueError as error:
            broken.append(f"row {index}: {error}")
    if broken:
        raise ValueError(_listed(f"{source}: expected a question and an answer in every row", broken))
    return problems


def take_gold(value: Any, gold: Gold) -> str:
    """The reference answer in a cell of the table.

    Raises:
        ValueError: There is none.
    """
    if gold == "list":
        values = value if isinstance(value, list) else [value]
        answer = ", ".join(take_gold(part, "plain") for part in values)
    elif isinstance(value, float) and value.is_integer():
        answer = str(int(value))
    elif gold == "hashes":
        answer = str(value).rpartition("####")[2] if "####" in str(value) else ""
    elif gold == "boxed":
        answer = _last_box(str(value))
    else:
        answer = "" if value is None else str(value)
    answer = answer.strip().strip("$").strip()
    if not answer:
        raise ValueError(f"no answer of the kind {gold!r} in {str(value)[-60:]!r}")
    return answer


def without_duplicates(problems: Sequence[MathsProblem]) -> list[MathsProblem]:
    """The first of equal problems.

    Raises:
        ValueError: One question has two different answers.
    """
    golds: dict[str, str] = {}
    conflicts = [
        f"{p.prompt[:60]!r}: {golds[p.prompt]!r} and {p.gold!r}"
        for p in problems
        if golds.setdefault(p.prompt, p.gold) != p.gold
    ]
    if conflicts:
        raise ValueError(_listed(f"{problems[0].source}: expected one answer per question", conflicts))
    return list({p.prompt: p for p in problems}.values())


def digest(problems: Sequence[MathsProblem]) -> str:
    """SHA-256 of source, question and answer of every problem in order."""
    text = "\n".join(repr((p.source, p.prompt, p.gold)) for p in problems)
    return hashlib.sha256(text.encode()).hexdigest()


def listed_golds(problems: Sequence[MathsProblem], indices: Sequence[int]) -> str:
    """An error message that names the problems whose reference answer cannot be read."""
    rows = [f"{problems[i].source} row {i}: {problems[i].gold!r} of {problems[i].prompt[:60]!r}" for i in indices]
    return _listed("reference answers: expected answers that math-verify can read; mend or remove the rows", rows)


def _rows(location: str, split: str, schema: Schema) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset

    path = Path(location)
    if location and path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob(f"{split}*") if p.suffix in FORMATS)
        formats = {FORMATS.get(file.suffix) for file in files}
        if len(formats) != 1 or None in formats:
            raise FileNotFoundError(
                f"maths data: expected {split}*.jsonl or {split}*.parquet, or one such file, in {location}, found "
                f"{[file.name for file in files] or sorted(p.name for p in path.iterdir())[:MAX_SHOWN]}"
            )
        rows: Iterable[Mapping[str, Any]] = load_dataset(
            formats.pop(), data_files=[str(file) for file in files], split="train"
        )
        return rows
    if not _HUB_ID.fullmatch(location):
        raise FileNotFoundError(
            f"maths data: expected a file, a folder or a hub id, found {location!r}; give task.data=LOCATION and "
            "task.evaluation=[SCHEMA:LOCATION]"
        )
    rows = load_dataset(location, schema.config or None, split=split)
    return rows


def _column(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"no column {name!r} among {sorted(row)}; set task.prompt_column or task.answer_column")
        value = value[part]
    return value


def _question(value: Any, wrapper: tuple[str, str]) -> str:
    if isinstance(value, list):
        asked = [m["content"] for m in value if isinstance(m, Mapping) and m.get("role") == "user"]
        value = asked[-1] if asked else ""
    text = str(value or "").removeprefix(wrapper[0]).removesuffix(wrapper[1]).strip()
    if not text:
        raise ValueError("an empty question")
    return text


def _last_box(text: str) -> str:
    begin = text.rfind("\\boxed{")
    depth = 0
    for i in range(begin + len("\\boxed"), len(text) if begin >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin + len("\\boxed{") : i]
    return ""


def _listed(message: str, rows: Sequence[str]) -> str:
    more = f"; and {len(rows) - MAX_SHOWN} more" if len(rows) > MAX_SHOWN else ""
    return f"{message}; found {len(rows)} others: {'; '.join(rows[:MAX_SHOWN])}{more}"
