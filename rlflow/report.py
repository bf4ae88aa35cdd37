"""Writes the board to files and publishes it in MLflow; equal boards give byte-identical files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlflow.board import Board
from rlflow.equal_cost import equal_cost
from rlflow.leaderboard_samples import Gallery
from rlflow.release import MANIFEST
from rlflow.report_csv import board_csv, equal_cost_csv, pairs_csv, seeds_csv
from rlflow.report_latex import latex
from rlflow.report_text import markdown
from rlflow.store import Store
from rlflow.tracking import publish_files, published_note

NOTE_LENGTH = 4900


class ReportError(RuntimeError):
    """The report cannot be written; the message names the folder and the fix."""


def write_board(board: Board, folder: Path, gallery: Gallery | None = None) -> list[Path]:
    """Write leaderboard.md, .html, .tex and .csv, pairwise.csv, seeds.csv, equal_cost.csv, figures, MANIFEST.json.

    Args:
        board: The board.
        folder: Made where it is missing; other files in it stay.
        gallery: Samples to show in the page, which is then report.html.

    Returns:
        The files, leaderboard.md first and the page next.

    Raises:
        ReportError: The folder cannot be written.
    """
    contents = dict(_contents(board, gallery))
    return write_files(folder, {**contents, MANIFEST: _manifest(board, contents)})


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files by name, each beside its place and then moved there, so that a reader never sees half of one.

    Raises:
        ReportError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise ReportError(
            f"expected a folder that can be written at {folder}, found: {error.strerror}; choose another"
        ) from error


def publish_board(store: Store, board: Board, folder: Path) -> list[Path]:
    """Write the board to `folder`, log the files to the suite's leaderboard run, make it the experiment's note.

    A board that is there and published already is left alone: drawing it takes longer than everything else.
    """
    kept = kept_board(board, folder)
    if kept and published_note(store, board.suite) == note(board):
        return kept
    files = write_board(board, folder)
    publish_files(store, board.suite, folder, files, note(board))
    return files


def note(board: Board) -> str:
    """The Markdown, cut at a line where it is longer than an MLflow experiment tag may be."""
    whole = markdown(board)
    if len(whole) <= NOTE_LENGTH:
        return whole
    return (
        whole[:NOTE_LENGTH].rpartition("\n")[0] + "\n\n(cut; the whole board is in leaderboard.md of the board's run)\n"
    )


def kept_board(board: Board, folder: Path) -> list[Path]:
    """The files in `folder`, where they are this board's by its manifest, tables and digests; else none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digests = {name: _digest((folder / name).read_bytes()) for name in manifest["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    tables = {name: _digest(content) for name, content in _tables(board).items()}
    if manifest != {**_origin(board), "sha256": digests} or any(digests.get(n) != d for n, d in tables.items()):
        return []
    return [folder / name for name in (*digests, MANIFEST)]


def _tables(board: Board) -> dict[str, bytes]:
    texts = {
        "leaderboard.md": markdown(board),
        "leaderboard.tex": latex(board),
        "leaderboard.csv": board_csv(board),
        "pairwise.csv": pairs_csv(board),
        "seeds.csv": seeds_csv(board),
        "equal_cost.csv": equal_cost_csv(equal_cost(board)),
    }
    return {name: text.encode() for name, text in texts.items()}


def _contents(board: Board, gallery: Gallery | None) -> Iterator[tuple[str, bytes]]:
    from rlflow.figures import draw_all, to_png
    from rlflow.figures_style import to_svg
    from rlflow.report_html import html_page

    figures = draw_all(board)
    drawn = {name: to_svg(figure) for name, figure in figures.items()}
    tables = _tables(board)
    yield "leaderboard.md", tables.pop("leaderboard.md")
    page = "leaderboard.html" if gallery is None else "report.html"
    yield page, html_page(board, drawn, gallery).encode()
    yield from tables.items()
    for name, figure in figures.items():
        yield f"figures/{name}.svg", drawn[name].encode()
        yield f"figures/{name}.png", to_png(figure)


def _manifest(board: Board, contents: Mapping[str, bytes]) -> bytes:
    """What the board was made of, and the SHA-256 of each of its files."""
    digests = {name: _digest(content) for name, content in contents.items()}
    return (json.dumps({**_origin(board), "sha256": digests}, indent=2) + "\n").encode()


def _origin(board: Board) -> dict[str, Any]:
    """Suite, digest, cells and runs, as JSON gives them back."""
    cells = [
        {
            "algorithm": cell.algorithm,
            "column": column,
            "cell_id": cell.cell_id,
            "policy": cell.policy,
            "task_version": cell.task_version,
            "launched": list(cell.launched),
            "runs": {str(seed.seed): seed.run_id for seed in cell.seeds},
        }
        for entrant in board.entrants
        for column, cell in sorted(entrant.cells.items())
    ]
    return {
        "suite": board.suite,
        "suite_digest": board.digest,
        "provenance": list(board.provenance),
        "cells": cells,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as handle:
        handle.write(content)
    os.chmod(handle.name, 0o644)
    os.replace(handle.name, path)
    return path
