from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.reasoning.maths_data import (
    SCHEMAS,
    MathsProblem,
    digest,
    load_problems,
    read_problems,
    schema_of,
    take_gold,
    without_duplicates,
)

DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 1+1?\n\nRemember to put your "
    'answer on its own line after "Answer:".'
)
# One row of each data set's own columns, and the answer that is taken out.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": ({"question": "What is 1+1?", "answer": "She has <<1+1=2>>2 eggs.\n#### 1,002"}, "1,002"),
    "math": ({"problem": "What is 1+1?", "solution": r"$\boxed{1}$, no, $\boxed{\frac{4}{2}}$"}, r"\frac{4}{2}"),
    "math500": ({"problem": "What is 1+1?", "answer": r"\text{two}", "level": 1}, r"\text{two}"),
    "aime": ({"id": 60, "problem": "What is 1+1?", "solution": "", "answer": "204", "year": "2024"}, "204"),
    "amc": ({"id": 0, "problem": "What is 1+1?", "answer": 142.0, "url": ""}, "142"),
    "minerva": ({"question": "What is 1+1?", "answer": "4.49"}, "4.49"),
    "olympiadbench": ({"question": "What is 1+1?", "final_answer": ["$1,2$", "$3$"]}, "1,2, 3"),
    "dapo17k": (
        {"prompt": [{"role": "user", "content": DAPO_PROMPT}], "reward_model": {"ground_truth": "34", "style": "rule"}},
        "34",
    ),
    "custom": ({"problem": "What is 1+1?", "answer": "2"}, "2"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_schema_has_a_row_here() -> None:
    assert ROWS.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_of_every_schema_are_read_from_a_file(name: str, tmp_path: Path) -> None:
    row, gold = ROWS[name]
    path = write_lines(tmp_path / "rows.jsonl", [row, row])
    expected = [MathsProblem("What is 1+1?", gold, name)] * 2
    assert load_problems(str(path), schema_of(name), name, training=True) == expected


def test_parquet_and_folders_by_split(tmp_path: Path) -> None:
    from datasets import Dataset

    row, _ = ROWS["gsm8k"]
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / "data").mkdir(exist_ok=True)
        Dataset.from_list([row] * count).to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    assert len(load_problems(str(tmp_path / "data"), schema_of("gsm8k"), "gsm8k", training=True)) == 3
    assert len(load_problems(str(tmp_path / "data"), schema_of("gsm8k"), "gsm8k", training=False)) == 2


@pytest.mark.parametrize(("location", "found"), [("absent.jsonl", "'absent.jsonl'"), ("", "''")])
def test_nothing_at_a_location_is_one_clear_error(location: str, found: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"found {found}"):
        load_problems(location, schema_of("custom"), "custom", training=True)


def test_a_folder_without_the_split_names_what_it_has(tmp_path: Path) -> None:
    write_lines(tmp_path / "folder" / "validation.jsonl", [ROWS["gsm8k"][0]])
    with pytest.raises(FileNotFoundError, match=r"train\*\.jsonl.*validation\.jsonl"):
        load_problems(str(tmp_path / "folder"), schema_of("gsm8k"), "gsm8k", training=True)


@pytest.mark.parametrize(
    ("value", "kind", "gold"),
    [
        ("a #### 1 #### 2", "hashes", "2"),
        (r"\boxed{a_{b_{c}}} done", "boxed", "a_{b_{c}}"),
        ("$x+1$", "plain", "x+1"),
        (7, "plain", "7"),
        (0.5, "plain", "0.5"),
        (["$3$"], "list", "3"),
        ("3", "list", "3"),
    ],
)
def test_gold_by_kind(value: Any, kind: Any, gold: str) -> None:
    assert take_gold(value, kind) == gold


@pytest.mark.parametrize(
    ("value", "kind"),
    [("no mark", "hashes"), ("", "plain"), (None, "plain"), ("$$", "plain"), (r"\boxed{1", "boxed"), ([], "list")],
)
def test_a_missing_gold_is_an_error(value: Any, kind: Any) -> None:
    with pytest.raises(ValueError, match="no answer of the kind"):
        take_gold(value, kind)


def test_broken_rows_are_listed_together() -> None:
    rows = [
        {"question": "a", "answer": "#### 1"},
        {"question": "b", "answer": "2"},
        {"question": " ", "answer": "#### 3"},
    ]
    with pytest.raises(ValueError, match=r"found 2 others: row 1: no answer .*; row 2: an empty question"):
        read_problems(rows, schema_of("gsm8k"), "gsm8k")
    with pytest.raises(ValueError, match=r"row 0: no column 'question' among \['problem'\]; set task\.prompt_column"):
        read_problems([{"problem": "a"}], schema_of("gsm8k"), "gsm8k")


def test_schemas_by_label_and_by_column() -> None:
    assert schema_of("aime_2025") == SCHEMAS["aime"]
    mapped = schema_of("custom", prompt="Q", answer="A", gold="boxed")
    assert read_problems([{"Q": "q", "A": r"\boxed{1}"}], mapped, "own") == [MathsProblem("q", "1", "own")]
    with pytest.raises(ValueError, match="unknown 'gsm8'; did you mean gsm8k"):
        schema_of("gsm8")
    with pytest.raises(ValueError, match=r"task\.gold: expected one of"):
        schema_of("custom", gold="last")


def test_duplicates_are_merged_and_conflicts_refused() -> None:
    one, two = MathsProblem("a", "1", "s"), MathsProblem("b", "2", "s")
    assert without_duplicates([one, two, one]) == [one, two]
    with pytest.raises(ValueError, match=r"one answer per question.*'a': '1' and '3'"):
        without_duplicates([one, MathsProblem("a", "3", "s")])


def test_the_digest_depends_on_every_row_and_their_order() -> None:
    one, two = MathsProblem("a", "1", "s"), MathsProblem("b", "2", "s")
    assert digest([one, two]) == hashlib.sha256(b"('s', 'a', '1')\n('s', 'b', '2')").hexdigest()
    assert len({digest(p) for p in ([one, two], [two, one], [one], [one, MathsProblem("b", "3", "s")])}) == 4
