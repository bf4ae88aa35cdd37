"""A third-party algorithm, installed as its users would: found, checked, trained and listed like a built-in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlflow.registry import UnknownNameError, find
from rlflow.testing import algorithm_checks

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "tests" / "plugin_package"
SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
import torch
from rlflow.commands.plugins import list_plugins
from rlflow.registry import entries
from rlflow.testing import algorithm_checks
from tests.fakes import fit, toy_loop
torch.set_num_threads(1)
entry = entries("algorithm")["gspo"]
algorithm = entry.load()()
passed = [check.__name__ for check in algorithm_checks() if check(algorithm) is None]
settings = ["task.kind=gaussian", "update.lr=0.02", "trainer.budget=480", "trainer.num_evaluations=2"]
loop = fit(toy_loop("gspo", Path(sys.argv[1]), *settings))
with contextlib.redirect_stdout(io.StringIO()) as listing:
    list_plugins()
print(json.dumps({
    "entry": [entry.package, entry.target], "passed": passed, "listing": listing.getvalue(),
    "scores": [score for _, score in loop.tracker.curve("eval/score")],
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the built package and its metadata, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    return folder / "site"


@pytest.fixture(scope="module")
def answers(installed, tmp_path_factory):
    """What a Python with the package on its path says, in one process because importing is what takes long."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("run"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_registry_finds_it_and_it_passes_every_check(answers):
    assert answers["entry"] == ["rlflow-gspo", "rlflow_gspo.gspo:Gspo"]
    assert answers["passed"] == [check.__name__ for check in algorithm_checks()]


def test_it_trains_through_the_same_loop(answers):
    before, after = answers["scores"]
    assert after > before + 0.1


def test_it_is_listed_beside_the_built_ins(answers):
    assert "gspo" in answers["listing"]
    assert "rlflow-gspo" in answers["listing"]
    assert "reinforce_pp" in answers["listing"]


def test_without_the_package_nothing_of_it_is_known():
    with pytest.raises(UnknownNameError, match="unknown algorithm 'gspo'"):
        find("algorithm", "gspo")


def test_it_is_small():
    assert len((SOURCE / "rlflow_gspo" / "gspo.py").read_text().splitlines()) < 60
