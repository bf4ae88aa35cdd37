"""A matrix that records on a real MLflow server: everything that a file has, over http."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlflow.cli import app
from rlflow.leaderboard import read_board
from rlflow.store import open_store
from rlflow.suite import parse_suite
from tests.matrix_command import invoke
from tests.mlflow_layout import assert_layout
from tests.servers import Server
from tests.toys import EXPERIMENT, SUITE

pytest_plugins = ("tests.mlflow_fixtures",)
# Two matrices and a server on a busy machine.
pytestmark = pytest.mark.timeout(600)

README = Path(__file__).parents[1] / "README.md"


def six_lines(uri: str, experiment: str) -> str:
    """The lines of the README for this server and experiment."""
    block = README.read_text(encoding="utf-8").partition("## The board without rlflow")[2].split("```")[1]
    known = {"sqlite:///results/mlflow.db": uri, "core@1-quick": experiment}
    assert all(block.count(old) == 1 for old in known)
    for old, new in known.items():
        block = block.replace(old, new)
    return block.removeprefix("python")


def test_a_matrix_on_a_server_has_the_board_of_one_on_a_file(server: Server, tmp_path: Path) -> None:
    suite = tmp_path / "toys.yaml"
    suite.write_text(SUITE)
    there, here = tmp_path / "there", tmp_path / "here"
    done = invoke(suite, there, "--tracking-uri", server.uri)
    assert done.exit_code == 0, done.output
    assert not (there / "mlflow.db").exists()
    assert invoke(suite, here).exit_code == 0
    remote, local = open_store(server.uri, results=there), open_store(results=here)
    found, expected = read_board(remote, EXPERIMENT), read_board(local, EXPERIMENT)
    assert [(e.algorithm, e.headline, e.rank) for e in found.entrants] == [
        (e.algorithm, e.headline, e.rank) for e in expected.entrants
    ]
    cells = [e.cells["toy"].seeds[0] for e in found.entrants]
    assert [(c.steps, c.scores) for c in cells] == [
        (c.steps, c.scores) for c in (e.cells["toy"].seeds[0] for e in expected.entrants)
    ]
    assert all(len(c.seconds) == len(c.steps) == 4 for c in cells)

    # What the UI shows: the note, the board's files, a curve on each cell, tags, params and a checkpoint on each seed.
    assert_layout(remote, EXPERIMENT, parse_suite(SUITE, "toys.yaml").digest, [0, 32, 64, 96])

    script = six_lines(server.uri, EXPERIMENT)
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    rows = {line.split()[0]: float(line.split()[-1]) for line in printed.splitlines() if line[:3] in ("ppo", "fpo")}
    assert rows == {e.algorithm: pytest.approx(e.headline, abs=1e-6) for e in found.entrants}

    again = invoke(suite, there, "--tracking-uri", server.uri)
    assert "0 of 2 seeds to run" in again.output
    report = ["report", EXPERIMENT, "--tracking-uri", server.uri, "--results", str(there)]
    written = CliRunner().invoke(app, report)
    assert written.exit_code == 0, written.output
    assert (there / "reports" / EXPERIMENT / "report.html").stat().st_size > 10_000
