"""A process of this machine as a child of the pool: what it tells, also when it was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rlflow.launch import Process, Progress


class Sleep(Process):
    """A process that knows nothing of training."""

    _process: subprocess.Popen[bytes]

    def __init__(self, folder: Path) -> None:
        super().__init__(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]), folder)

    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait(self) -> None:
        self._process.wait()


def test_a_killed_process_names_its_signal_and_its_log(tmp_path: Path) -> None:
    child = Sleep(tmp_path)
    Progress(samples=5, score=0.5).write(tmp_path)
    assert child.exit_code() is None
    child.kill()
    child.wait()
    assert child.exit_code() == -9
    assert child.cause() == f"the process ended without a result (killed by signal 9); see {tmp_path / 'log.txt'}"
    assert child.progress() == Progress(samples=5, score=0.5)


def test_a_process_that_is_asked_to_stop_gets_sigterm(tmp_path: Path) -> None:
    child = Sleep(tmp_path)
    child.stop()
    child.wait()
    assert child.exit_code() == -15
