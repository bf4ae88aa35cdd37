"""What the policies of a board made: sample artifacts of the newest evaluation of the first seed of every cell."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlflow.board import Board, Cell
from rlflow.store import Store
from rlflow.tracker import SAMPLES_FOLDER

MEGABYTE = 1_000_000
SHOWN = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".webm", ".csv", ".txt", ".md", ".json")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file that an evaluation left: images, a rollout, completions.

    Attributes:
        algorithm: Of the cell.
        column: Of the board.
        about: Seed and samples consumed, as text.
        name: File name, whose suffix says what it is.
        content: Of the file.
    """

    algorithm: str
    column: str
    about: str
    name: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Samples by column in the order of the board, and a line for everything that is not among them."""

    samples: tuple[Sample, ...]
    left_out: tuple[str, ...]


def read_gallery(store: Store, board: Board, limit_mb: float) -> Gallery:
    """Fetch the samples of every cell, together at most `limit_mb` of files; a file beyond that is named instead."""
    samples: list[Sample] = []
    left_out: list[str] = []
    used = 0
    for column in board.columns:
        without = []
        for entrant in board.entrants:
            cell = entrant.cells.get(column)
            files = list(_newest(store, cell)) if cell is not None and cell.seeds else []
            if not files:
                without.append(entrant.algorithm)
            for path, step, size in files:
                assert cell is not None
                name = Path(path).name
                if Path(name).suffix.lower() not in SHOWN:
                    left_out.append(f"{entrant.algorithm} on {column}: {name}, not a kind of file that a page shows")
                elif used + size > limit_mb * MEGABYTE:
                    room = f"{size / MEGABYTE:.1f} MB, the page holds {limit_mb:g} MB (--max-mb)"
                    left_out.append(f"{entrant.algorithm} on {column}: {name}, {room}")
                else:
                    used += size
                    about = f"seed {cell.seeds[0].seed} after {step:,} {cell.unit.replace('_', ' ')}"
                    content = _content(store, cell.seeds[0].run_id, path)
                    found = Sample(algorithm=entrant.algorithm, column=column, about=about, name=name, content=content)
                    samples.append(found)
        if without:
            left_out.append(f"{', '.join(without)} on {column}: no samples recorded")
    return Gallery(samples=tuple(samples), left_out=tuple(left_out))


def _newest(store: Store, cell: Cell) -> Iterator[tuple[str, int, int]]:
    """Path, samples consumed and size of each file of the newest evaluation of the first seed."""
    run_id = cell.seeds[0].run_id
    steps = {int(name): entry.path for entry in store.client.list_artifacts(run_id, SAMPLES_FOLDER)
             if entry.is_dir and (name := Path(entry.path).name).isdigit()}  # fmt: skip
    if steps:
        step = max(steps)
        for entry in sorted(store.client.list_artifacts(run_id, steps[step]), key=lambda found: found.path):
            if not entry.is_dir:
                yield entry.path, step, entry.file_size or 0


def _content(store: Store, run_id: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(store.client.download_artifacts(run_id, path, folder)).read_bytes()
