"""Reading a released board back from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlflow.ranking import make_board
from rlflow.release import ReleaseError, read_release
from rlflow.report import write_board
from tests.boards import make_cell


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A board of two finished seeds of ppo and a missing one of fpo."""
    cells = [make_cell("ppo", "a", [0.25, 0.5], task_version="3"), make_cell("fpo", "a", [], num_launched=1)]
    write_board(make_board("toy@1", "d1", cells), tmp_path / "release")
    return tmp_path / "release"


def test_a_release_has_the_scores_that_counted(folder: Path) -> None:
    release = read_release(folder)
    assert release.suite == "toy@1"
    ppo, fpo = release.cells["ppo", "a"], release.cells["fpo", "a"]
    assert (ppo.normalised.tolist(), ppo.cell_id, ppo.task_version) == ([0.25, 0.5], "v1-ppo-a", "3")
    assert fpo.normalised.tolist() == []


def test_a_changed_file_is_refused(folder: Path) -> None:
    seeds = folder / "seeds.csv"
    seeds.write_text(seeds.read_text().replace("0.25", "0.75"))
    with pytest.raises(ReleaseError, match=r"seeds\.csv to have the digest .* restore the released file"):
        read_release(folder)


@pytest.mark.parametrize("manifest", ["no json", json.dumps({"suite": "toy@1"}), "[]"])
def test_what_is_no_manifest_is_refused(folder: Path, manifest: str) -> None:
    (folder / "MANIFEST.json").write_text(manifest)
    with pytest.raises(ReleaseError, match="expected the manifest of a board"):
        read_release(folder)


@pytest.mark.parametrize("name", ["seeds.csv", "MANIFEST.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ReleaseError, match=f"found no {name}"):
        read_release(folder)
