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

DEADLINE_S = 120


def invoke(suite: Path, results: Path, *arguments: str) -> Result:
    """The command in this process; its children come from one fork server for all tests."""
    return CliRunner().invoke(app, ["matrix", str(suite), "--results", str(results), "--jobs", "2", *arguments])


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a thread while the block runs; its error is raised after the block."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


def wait_until(condition: Callable[[], object]) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < DEADLINE_S
        time.sleep(0.05)


def tags(store: Store, experiment: str, algorithm: str) -> dict[str, str]:
    found = store.client.get_experiment_by_name(experiment)
    kind = f"tags.`rlflow.kind` = 'seed' and tags.`rlflow.algorithm` = '{algorithm}'"
    runs = [] if found is None else store.client.search_runs([found.experiment_id], kind)
    return dict(runs[0].data.tags) if runs else {}
