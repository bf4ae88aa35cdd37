"""Files that are no checkpoints: refused with the reason, left alone, and never executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from rlflow.checkpoint import CheckpointError, read_checkpoint, refuse_other_run
from rlflow.config import resolve


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "last.ckpt") is None


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"rlflow": {"version": 2}, "state_dict": Malice(str(tmp_path / "owned"))}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="found a file that cannot be read"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "owned").exists()


def test_a_file_cut_short_and_other_files_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"rlflow": {"version": 2}, "state_dict": {"w": torch.zeros(1000)}}, path)
    whole_checkpoint = read_checkpoint(path)
    assert whole_checkpoint is not None
    assert torch.equal(whole_checkpoint["state_dict"]["w"], torch.zeros(1000))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last\.ckpt, found"):
            read_checkpoint(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {}}, "one without rlflow state"),
        ({"rlflow": [2]}, "one without rlflow state"),
        ({"rlflow": {"version": 1}}, "version 1"),
    ],
)
def test_checkpoints_of_others_are_refused(tmp_path: Path, content: dict[str, object], words: str) -> None:
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"rlflow": {"version": 2, "config": {}}}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt, found one without \['task_revision'\]"):
        refuse_other_run(path, resolve("ppo", "toy"))
