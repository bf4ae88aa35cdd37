"""A released board, read back from its folder: MANIFEST.json and seeds.csv, whose digest must be the recorded one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlflow.stats import FloatArray

MANIFEST = "MANIFEST.json"
SEEDS = "seeds.csv"


class ReleaseError(RuntimeError):
    """The folder is no released board, or not an unchanged one."""


@dataclass(frozen=True, kw_only=True)
class ReleasedCell:
    """Normalised final scores `[n]` of the seeds that counted, and what the manifest says of the cell."""

    normalised: FloatArray
    cell_id: str
    task_version: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """A released board: suite and cells by algorithm and column."""

    suite: str
    cells: Mapping[tuple[str, str], ReleasedCell]


def read_release(folder: Path) -> Release:
    """The release in `folder`.

    Raises:
        ReleaseError: A file is missing, unreadable, or not the one that the manifest names.
    """
    content = _read(folder / SEEDS)
    try:
        manifest = json.loads(_read(folder / MANIFEST))
        recorded = manifest["sha256"][SEEDS]
        cells = {(cell["algorithm"], cell["column"]): cell for cell in manifest["cells"]}
        suite = str(manifest["suite"])
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"expected the manifest of a board in {folder / MANIFEST}, found {type(error).__name__}: {error}; "
            "write the board again with `rlflow leaderboard --out`"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != recorded:
        raise ReleaseError(
            f"expected {folder / SEEDS} to have the digest {recorded[:12]} of its manifest, found {digest[:12]}; "
            "restore the released file"
        )
    scores = _scores(content)
    return Release(suite=suite, cells={key: _cell(cell, scores.get(key, [])) for key, cell in cells.items()})


def _cell(cell: Mapping[str, Any], scores: list[float]) -> ReleasedCell:
    return ReleasedCell(
        normalised=np.array(scores, dtype=np.float64),
        cell_id=str(cell.get("cell_id", "")),
        task_version=str(cell.get("task_version", "")),
    )


def _scores(content: bytes) -> dict[tuple[str, str], list[float]]:
    scores: dict[tuple[str, str], list[float]] = {}
    for line in csv.DictReader(io.StringIO(content.decode())):
        if line["normalised"]:
            scores.setdefault((line["algorithm"], line["column"]), []).append(float(line["normalised"]))
    return scores


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseError(
            f"expected a released board with {MANIFEST} and {SEEDS} in {path.parent}, found no {path.name} "
            f"({error.strerror}); name the folder that holds them"
        ) from error
