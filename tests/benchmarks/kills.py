"""Whether a matrix survives random SIGKILLs of its workers and of itself with the board of an undisturbed one.

    python tests/benchmarks/kills.py [--kills 20] [--seeds 5] [--suite core] [--budget smoke] [--jobs 2]

Runs the suite twice into temporary folders, once alone and once while a process of it, chosen at random, is killed
every few seconds; whenever the matrix has ended without all results, the same command is given again. Then compares
every file of both boards byte by byte, without what only a clock or MLflow decides: seconds, run ids, and the figures
and digests made of them. Prints Markdown; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

# Decided by the clock or by MLflow.
NOT_COMPARED = ("wall_s", "gpu_s", "peak_gb", "run_id", "seconds")
TIMED = ("cost", "seconds")
MAX_ATTEMPTS = 200


def start(suite: str, results: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """One `rlflow matrix` in a process of its own."""
    command = [sys.executable, "-m", "rlflow.cli", "matrix", suite, "--budget", options.budget]
    command += ["--seeds", str(options.seeds), "--jobs", str(options.jobs), "--results", str(results)]
    with (results.parent / f"{results.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def kill_one(matrix: subprocess.Popen[bytes], choice: random.Random) -> str:
    """Kill the matrix or one of the processes below it; returns which."""
    try:
        below = psutil.Process(matrix.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return ""
    target = choice.choice([matrix.pid, *(process.pid for process in below)])
    try:
        psutil.Process(target).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return ""
    return "matrix" if target == matrix.pid else "a process of it"


def disturbed(suite: str, results: Path, options: argparse.Namespace) -> list[str]:
    """Run the suite to its end under kills; returns who was killed."""
    choice = random.Random(options.seed)
    killed: list[str] = []
    for _ in range(MAX_ATTEMPTS):
        matrix = start(suite, results, options)
        while len(killed) < options.kills:
            try:
                matrix.wait(timeout=choice.uniform(1.0, options.every))
                break
            except subprocess.TimeoutExpired:
                killed += [name for name in [kill_one(matrix, choice)] if name]
        if matrix.wait() == 0:
            return killed
        # Workers of a killed matrix end after their iteration.
        time.sleep(2.0)
    raise RuntimeError(f"the matrix did not end in {MAX_ATTEMPTS} attempts; see {results}.log")


def comparable(path: Path) -> object:
    """The content of a file of the board without what is not compared."""
    if path.suffix != ".csv":
        return path.read_bytes()
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in NOT_COMPARED} for row in csv.DictReader(file)]


def compared(board: Path) -> dict[str, object]:
    """Tables and figures by name, without those that hold nothing but times."""
    files = [*sorted(board.glob("*.csv")), *sorted(board.glob("figures/*.svg"))]
    return {path.name: comparable(path) for path in files if not any(word in path.name for word in TIMED)}


def main() -> int:
    """Run both, compare, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", default="core")
    parser.add_argument("--budget", default="smoke")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=float, default=20.0, help="longest time between two kills, seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of victims")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        alone, under_fire = Path(name, "alone"), Path(name, "killed")
        for folder in (alone, under_fire):
            folder.mkdir()
        if start(options.suite, alone, options).wait() != 0:
            print((Path(name) / "alone.log").read_text())
            return 1
        killed = disturbed(options.suite, under_fire, options)
        boards = [next((folder / options.budget).glob("*@*")) for folder in (alone, under_fire)]
        expected, found = (compared(board) for board in boards)
        differing = [key for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)]
        own = killed.count("matrix")
        print(f"{len(killed)} SIGKILLs ({own} of the matrix itself), {len(expected)} files compared")
        print(f"differing: {', '.join(differing) or 'none'}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
