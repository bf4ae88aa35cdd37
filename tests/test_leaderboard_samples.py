"""Samples of a board, from the artifacts of a real MLflow store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlflow.cell import CellIdentity
from rlflow.leaderboard import read_board
from rlflow.leaderboard_samples import Gallery, read_gallery
from rlflow.samples import keep_samples
from rlflow.store import Store
from rlflow.task import Evaluation, SampleWriter
from rlflow.tracking import start_seed

pytest_plugins = ("tests.mlflow_fixtures",)

Make = Callable[..., CellIdentity]


class Text(SampleWriter):
    """Writes its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.text)


def run_seed(store: Store, identity: CellIdentity, seed: int, folder: Path, **files: str) -> None:
    """A finished seed that left `files` at every evaluation, each with the samples consumed before its text."""
    tracker = start_seed(store, identity, seed=seed, config={})
    for step in (0, 200, 400):
        tracker.log({"eval/score": 1.0}, step)
        writers = {name.replace("_", "."): Text(f"{step} {text}") for name, text in files.items()}
        items = [{"item": 0}] if files else []
        keep_samples(Evaluation(metrics={}, items=items, files=writers), folder / str(seed), tracker, step)
    tracker.finish("finished")


@pytest.fixture
def gallery(store: Store, identity: Make, tmp_path: Path) -> Callable[[float], Gallery]:
    """Two seeds of ppo and one of fpo with files, flowrl without."""
    run_seed(store, identity("ppo"), 0, tmp_path / "ppo", images_png="of ppo", answers_csv="first", weights_bin="x")
    run_seed(store, identity("ppo"), 1, tmp_path / "ppo", images_png="of the second seed")
    run_seed(store, identity("fpo"), 0, tmp_path / "fpo", images_png="of fpo, a larger file")
    run_seed(store, identity("flowrl"), 0, tmp_path / "flowrl")
    return lambda limit_mb: read_gallery(store, read_board(store, "toy@1"), limit_mb)


def test_the_newest_evaluation_of_the_first_seed_is_shown(gallery: Callable[[float], Gallery]) -> None:
    found = gallery(20.0)
    assert {(s.algorithm, s.column, s.name, s.content) for s in found.samples} == {
        ("ppo", "toy/walk", "images.png", b"400 of ppo"),
        ("ppo", "toy/walk", "answers.csv", b"400 first"),
        ("fpo", "toy/walk", "images.png", b"400 of fpo, a larger file"),
    }
    assert {sample.about for sample in found.samples} == {"seed 0 after 400 rollouts"}
    assert set(found.left_out) == {
        "ppo on toy/walk: weights.bin, not a kind of file that a page shows",
        "flowrl on toy/walk: no samples recorded",
    }


def test_what_does_not_fit_is_named(gallery: Callable[[float], Gallery]) -> None:
    # ppo's files have 10 and 9 bytes, fpo's has 25
    found = gallery(19e-6)
    assert {sample.algorithm for sample in found.samples} <= {"ppo"}
    assert "fpo on toy/walk: images.png, 0.0 MB, the page holds 1.9e-05 MB (--max-mb)" in found.left_out
    assert len(found.samples) + len(found.left_out) == 5
