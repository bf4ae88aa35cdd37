"""docs/plugin.md is executed: every shell and Python block in order, and what the page shows is what they print."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "plugin.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHIMS = {"pip": "pip", "pytest": "pytest", "rlflow": "rlflow.cli"}
BLOCK_TIMEOUT_S = 800


def blocks(page: str) -> list[tuple[str, str, list[str]]]:
    """Language and text of each block that runs, with the lines that the page shows as its output."""
    found: list[tuple[str, str, list[str]]] = []
    for language, text in FENCE.findall(page):
        if language == "text":
            found[-1][2].extend(text.splitlines())
        else:
            found.append((language, text, []))
    return found


def missing(shown: list[str], output: str) -> list[str]:
    """The shown lines that do not occur in the output in this order, whatever the spacing; a part of one will do."""
    lines = iter([" ".join(line.split()) for line in output.splitlines()])
    return [line for line in shown if not any(" ".join(line.split()) in found for found in lines)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtual environment of its own that sees this one's packages, and this source tree first."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=BLOCK_TIMEOUT_S)
    python = venv / "bin" / "python"
    (own,) = venv.glob("lib/python*/site-packages")
    parents = "; ".join(f"site.addsitedir({path!r})" for path in site.getsitepackages())
    (own / "parent.pth").write_text(f"import site; {parents}\n")
    for name, module in SHIMS.items():
        (venv / "bin" / name).write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n')
        (venv / "bin" / name).chmod(0o755)
    return os.environ | {
        "PATH": os.pathsep.join([str(venv / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "1",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.timeout(3 * BLOCK_TIMEOUT_S)
def test_the_page_runs_from_top_to_bottom(environment: dict[str, str], tmp_path: Path) -> None:
    ran, shown, printed = [], 0, ""
    for language, text, lines in blocks(PAGE.read_text(encoding="utf-8")):
        command = {"bash": ["bash", "-euo", "pipefail", "-c", text], "python": ["python", "-c", text]}[language]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=BLOCK_TIMEOUT_S
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert missing(lines, done.stdout + done.stderr) == [], f"{text}\n{done.stdout}\n{done.stderr[-2000:]}"
        ran.append(language)
        shown += len(lines)
        printed = done.stdout + done.stderr
    assert (ran.count("bash"), ran.count("python")) == (3, 3)
    assert shown > 15
    # The last block trains the new algorithm on the new task.
    scores = [float(score) for score in re.findall(r" samples .*score ([0-9.]+)", printed)]
    assert scores[-1] > scores[0] + 0.2
    assert (tmp_path / "results" / "mlflow.db").exists()


def test_what_the_page_shows_has_to_be_printed() -> None:
    page = "```bash\nls\n```\n\n```text\na  b\nc\n```\n```python\n1\n```\n"
    assert blocks(page) == [("bash", "ls\n", ["a  b", "c"]), ("python", "1\n", [])]
    assert missing(["a  b", "c"], "a b more\nx\nc\n") == []
    assert missing(["c", "a"], "a\nc\n") == ["a"]
    assert missing(["d"], "a\nc\n") == ["d"]
