"""What an evaluation leaves besides its pictures."""

from __future__ import annotations

import csv
from pathlib import Path

from tasks.image.sheet import table_by_kind


def test_a_table_by_kind_by_hand(tmp_path: Path) -> None:
    items = [
        {"item": 0, "prompt": "a cat", "kind": "", "seed": 7, "score": 1.0, "ocr": 0.5},
        {"item": 1, "prompt": "two cats", "kind": "count", "seed": 8, "score": 0.0, "ocr": 0.25},
        {"item": 2, "prompt": "a dog", "kind": "", "seed": 9, "score": 0.5, "ocr": 1.0},
    ]
    table_by_kind(items)(tmp_path / "by_kind.csv")
    with (tmp_path / "by_kind.csv").open() as file:
        rows = list(csv.DictReader(file))
    # (1 + .5) / 2, (.5 + 1) / 2; of all three .5 and 1.75 / 3. Neither numbers of rows nor seeds are averaged.
    assert list(rows[0]) == ["kind", "images", "score", "ocr"]
    assert [row["kind"] for row in rows] == ["other", "count", "all"]
    assert [float(row["score"]) for row in rows] == [0.75, 0.0, 0.5]
    assert [float(row["ocr"]) for row in rows] == [0.75, 0.25, 1.75 / 3]
    assert [int(row["images"]) for row in rows] == [2, 1, 3]
