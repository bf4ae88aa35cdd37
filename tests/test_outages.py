"""What a command of many requests says when the server has gone or the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rlflow import store as store_module
from rlflow.outages import told
from rlflow.store import Store, TrackingError

pytest_plugins = ("tests.mlflow_fixtures",)

# No server listens on the discard port.
NOBODY = "http://127.0.0.1:9"


def test_a_server_that_has_gone_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store_module.CLIENT_LIMITS.items():
        monkeypatch.setenv(name, value)
    gone = Store(uri=NOBODY, client=MlflowClient(NOBODY), lock_path=tmp_path / "lock", artifact_root=None)
    words = rf"{NOBODY} to answer, found it gone; start it and give the same command"
    with pytest.raises(TrackingError, match=words), told(gone):
        gone.client.get_experiment_by_name("toy@1")
    with pytest.raises(ValueError, match="a bug"), told(gone):
        raise ValueError("a bug")


def test_a_full_disk_is_told_and_other_errors_of_a_file_are_not_hidden(store: Store) -> None:
    with pytest.raises(TrackingError, match=r"no space left to write .*results"), told(store):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), told(store):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
