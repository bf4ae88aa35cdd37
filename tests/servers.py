"""A real MLflow server for tests of what only http can break."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


class Server:
    """A real `mlflow server` over http, with SQLite behind it, that can go away and come back."""

    def __init__(self, database: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder = database.parent
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{database}"]
        self._command += ["--artifacts-destination", str(self._folder / "artifacts")]
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Return when it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while not answers_at(self.uri):
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "no mlflow server within two minutes"
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill it with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def answers_at(uri: str) -> bool:
    """Whether a server is there."""
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=1).close()
    except (urllib.error.URLError, OSError):
        return False
    return True
