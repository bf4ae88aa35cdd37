"""What a node is told to be like: versions, sources and a tracking store that it reaches."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlflow import nodes, provenance
from rlflow.nodes import complaints, demand

SQLITE = "sqlite:////somewhere/mlflow.db"


def test_this_machine_is_as_it_demands() -> None:
    assert complaints(demand(["torch", "numpy"], ["rlflow.toy"], SQLITE)) == []


def test_versions_that_differ_are_named_together() -> None:
    wanted = demand(["numpy", "no-such-distribution"], [], SQLITE)
    found = wanted.versions["numpy"]
    other = {"python": "3.1.0", "numpy": "0.1", "no-such-distribution": "1.0"}
    (line,) = complaints(replace(wanted, versions={**wanted.versions, **other}))
    assert f"numpy {found} instead of 0.1" in line
    assert "no-such-distribution none instead of 1.0" in line
    assert "instead of 3.1.0" in line
    assert "rlflow/*.py" not in line


def test_a_build_of_the_same_version_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = demand(["torch"], [], SQLITE)
    monkeypatch.setattr(nodes.metadata, "version", lambda name: f"{wanted.versions['torch']}+cu999")
    assert complaints(wanted) == []


def test_other_code_under_the_same_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("clip = 0.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = demand([], ["some_plugin.mine"], SQLITE)
    assert complaints(wanted) == []
    (package / "mine.py").write_text("clip = 0.3\n")
    (line,) = complaints(wanted)
    assert line.startswith("some_plugin/*.py ")
    sys.modules.pop("some_plugin", None)


def test_a_file_serves_one_machine_and_a_server_that_answers_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = demand([], [], SQLITE)
    monkeypatch.setattr(provenance, "machine", lambda: "other-1")
    (line,) = complaints(wanted)
    assert f"found {SQLITE}, a file of {wanted.machine}" in line
    assert "--tracking-uri http://HOST:5000" in line
    (line,) = complaints(replace(wanted, tracking_uri="http://127.0.0.1:9"))
    assert "expected a tracking server at http://127.0.0.1:9, found none" in line
