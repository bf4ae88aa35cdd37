"""`rlflow matrix` in the process of a test, with something that happens meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from rlflow.cli import app
from rlflow.store import Store

DEADLINE_S = 240


class Meanwhile:
    """What a test does in a thread while the command runs; over when the command is."""

    def __init__(self, work: Callable[[Meanwhile], None]) -> None:
        self._work, self._over = work, threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded)

    def wait_until(self, condition: Callable[[], object]) -> None:
        begin = time.monotonic()
        while not condition():
            assert not self._over.is_set(), "the command ended before its time"
            assert time.monotonic() - begin < DEADLINE_S, f"nothing within {DEADLINE_S} s"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Ctrl-C for the command; one that has ended would leave it to pytest."""
        assert not self._over.is_set(), "the command ended before it could be interrupted"
        os.kill(os.getpid(), signal.SIGINT)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def check(self, result: Result) -> None:
        """Raise the error of the work, with what the command printed."""
        if self._error is not None:
            raise AssertionError(f"{self._error}; the command printed:\n{result.output}") from self._error

    def _guarded(self) -> None:
        try:
            self._work(self)
        except BaseException as error:
            self._error = error
            if not self._over.is_set():
                os.kill(os.getpid(), signal.SIGINT)


def invoke(suite: Path, results: Path, *arguments: str, meanwhile: Callable[[Meanwhile], None] | None = None) -> Result:
    """The command in this process; its children come from one fork server for all tests."""
    work = Meanwhile(meanwhile or (lambda _: None))
    with work.running():
        line = ["matrix", str(suite), "--results", str(results), "--jobs", "2", *arguments]
        result = CliRunner().invoke(app, line)
    work.check(result)
    return result


def tags(store: Store, experiment: str, algorithm: str) -> dict[str, str]:
    found = store.client.get_experiment_by_name(experiment)
    kind = f"tags.`rlflow.kind` = 'seed' and tags.`rlflow.algorithm` = '{algorithm}'"
    runs = [] if found is None else store.client.search_runs([found.experiment_id], kind)
    return dict(runs[0].data.tags) if runs else {}
