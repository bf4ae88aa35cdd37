"""The script of docs/sweep.md, on a toy and with two trials."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlflow.cli import app
from rlflow.store import open_store

PAGE = Path(__file__).parents[1] / "docs" / "sweep.md"
SMALLER = {'["ppo", "control/halfcheetah"]': '["ppo", "toy"]', "100_000": "96", "30\n": "2\n"}


@pytest.mark.timeout(600)
def test_the_sweep_finds_its_own_runs(tmp_path: Path) -> None:
    script = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for old, new in SMALLER.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "sweep.py").write_text(script)
    # The command of this environment, whether or not it is active.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "sweep.py"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = open_store(results=tmp_path / "results")
    experiment = store.client.get_experiment_by_name("train@1")
    runs = store.client.search_runs([experiment.experiment_id], "tags.sweep = 'clip-and-lr'")
    finals = {item.data.tags["trial"]: item.data.metrics["score/final"] for item in runs}
    assert finals.keys() == {"0", "1"}
    assert done.stdout.splitlines()[-1].startswith("{'update.lr': ")
    assert float(done.stdout.split()[-1]) == max(finals.values())


def test_tags_of_rlflow_and_mlflow_are_not_given_by_hand(tmp_path: Path) -> None:
    for tag in ("rlflow.seed=3", "mlflow.note=x", "sweep", "=3"):
        command = ["train", "ppo", "toy", "--results", str(tmp_path / "results"), "--tag", tag]
        refused = CliRunner().invoke(app, command)
        assert (refused.exit_code, f"found '{tag}'" in refused.output) == (2, True), refused.output
    assert not (tmp_path / "results").exists()
