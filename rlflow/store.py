"""Connection to the MLflow store: opened and checked before any work, created once even when processes race for it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

DEFAULT_DATABASE = "mlflow.db"
REACH_TIMEOUT_S = 5.0
BUSY_TIMEOUT_S = 60
MAX_PARAMS_PER_BATCH = 100
# Without it the MLflow UI opens on an empty page for traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MAX_VALUE_LENGTH = 5000
# MLflow's client would wait for minutes in the middle of an iteration; rlflow.journal tries again later.
CLIENT_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# Answers of a server or database that is busy, full or going down; others say that the request itself is wrong.
PASSING_ERRORS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class TrackingError(RuntimeError):
    """The tracking store cannot do what was asked; the message says what was found and the fix."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """An opened MLflow store.

    Attributes:
        uri: the tracking URI, as a plain MLflow client would be given it.
        client: the only handle to MLflow; no global tracking URI is set.
        lock_path: file that serialises creation and summaries between processes of this machine.
        artifact_root: folder of the artifacts; None where the server decides.
    """

    uri: str
    client: MlflowClient = field(repr=False)
    lock_path: Path
    artifact_root: Path | None

    @property
    def journal_folder(self) -> Path:
        """Where writes are kept while the store is away."""
        return self.lock_path.parent / "journals"


def default_uri(results: Path) -> str:
    """SQLite database under the results folder, as an absolute URI."""
    return f"sqlite:///{results.resolve() / DEFAULT_DATABASE}"


def open_store(uri: str | None = None, *, results: Path = Path("results"), create: bool = True) -> Store:
    """Open the store and prove that it answers.

    Args:
        uri: `sqlite:///PATH`, `http(s)://HOST`, or another MLflow database URI; None is SQLite under `results`.
        results: folder of the lock file and, for SQLite, of the default database.
        create: create a missing SQLite database; False is for readers, which must not leave an empty one behind.

    Raises:
        TrackingError: unreachable server, missing or unwritable database, or a URI that MLflow refuses.
    """
    uri = uri or default_uri(results)
    scheme = urlsplit(uri).scheme
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if scheme == "sqlite":
        return _open_sqlite(uri, create)
    if scheme in ("http", "https"):
        for name, value in CLIENT_LIMITS.items():
            os.environ.setdefault(name, value)
        check_server(uri)
    elif scheme in ("", "file"):
        raise TrackingError(
            f"expected a tracking URI such as sqlite:///results/{DEFAULT_DATABASE} or http://HOST:5000, found {uri!r}; "
            "MLflow no longer writes to plain folders"
        )
    _make_folder(results)
    lock_path = results.resolve() / ".tracking-lock"
    return Store(uri=uri, client=_connect(uri), lock_path=lock_path, artifact_root=None)


def answers(store: Store) -> bool:
    """Whether the store can be reached now; asks a server once, and does not ask a database."""
    if urlsplit(store.uri).scheme not in ("http", "https"):
        return True
    try:
        check_server(store.uri)
    except TrackingError:
        return False
    return True


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: no connection, a server error, a locked or full database."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code in PASSING_ERRORS
    return isinstance(error, OperationalError | OSError)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` against every other process (and thread) of this machine."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure_experiment(store: Store, suite: str) -> str:
    """Experiment id of `suite` (`name@version`), created if it is not there."""
    with locked(store.lock_path):
        existing = store.client.get_experiment_by_name(suite)
        if existing is None:
            location = None if store.artifact_root is None else (store.artifact_root / suite).as_uri()
            return str(store.client.create_experiment(suite, artifact_location=location, tags=EXPERIMENT_TAGS))
    if existing.lifecycle_stage != "active":
        raise TrackingError(
            f"expected an active experiment {suite!r} in {store.uri}, found it deleted; "
            "restore it with `mlflow experiments restore` or use another suite version"
        )
    return str(existing.experiment_id)


def search_runs(store: Store, experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """Runs with all `tags`, oldest first."""
    condition = " and ".join(f"tags.`rlflow.{name}` = '{value}'" for name, value in tags.items())
    return list(store.client.search_runs([experiment], condition, order_by=["attributes.start_time ASC"]))


def create_run(store: Store, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Id of a new run."""
    return str(store.client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)


def set_tags(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set all `tags` in one request."""
    from mlflow.entities import RunTag

    store.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def history(store: Store, run_id: str, name: str) -> list[Metric]:
    """Every recorded point of one metric, in the order of MLflow."""
    return list(store.client.get_metric_history(run_id, name))


def log_metrics(store: Store, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """Record `metrics` at once, without a buffer."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    store.client.log_batch(run_id, metrics=[Metric(name, value, now_ms, step) for name, value in metrics.items()])


def log_config(store: Store, run_id: str, config: Mapping[str, Any]) -> None:
    """Record nested `config` whole: dotted params, and config.yaml for values beyond MLflow's length limit."""
    from mlflow.entities import Param

    params = [Param(name, value) for name, value in _flatten(config)]
    for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
        store.client.log_batch(run_id, params=params[start : start + MAX_PARAMS_PER_BATCH])
    store.client.log_text(run_id, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "config.yaml")


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = exact(value)
            whole = len(text) <= MAX_VALUE_LENGTH
            yield f"{prefix}{name}", text if whole else f"{text[:MAX_VALUE_LENGTH]}... (whole in config.yaml)"


def exact(value: object) -> str:
    """The value as text that reads back to the same value: floats by repr, lists as JSON."""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(value)


def _open_sqlite(uri: str, create: bool) -> Store:
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if not uri.startswith("sqlite:///") or not path.name:
        raise TrackingError(f"expected sqlite:///PATH/TO/FILE.db, found {uri!r}")
    path = path.absolute()
    if not create and not path.exists():
        raise TrackingError(f"expected a tracking database at {path}, found none; run `rlflow matrix` or `make bench`")
    _make_folder(path.parent)
    # A URI that names its own options is left alone; otherwise writers wait for each other instead of failing.
    waiting = uri if "?" in uri else f"sqlite:///{path}?timeout={BUSY_TIMEOUT_S}"
    lock_path = path.with_name(path.name + "-lock")
    # The client migrates the schema when it is made; processes that do so together kill each other.
    with locked(lock_path), _without_migration_log():
        client = _connect(waiting)
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    return Store(uri=f"sqlite:///{path}", client=client, lock_path=lock_path, artifact_root=path.parent / "mlartifacts")


@contextmanager
def _without_migration_log() -> Iterator[None]:
    """A new database logs a line for each of some fifty migrations."""
    import mlflow.store.db.utils  # noqa: F401 - sets its logger's level when it is imported

    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _connect(uri: str) -> MlflowClient:
    """A client that has had one answer from the store."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TrackingError(f"expected an MLflow store at {uri}, found an error: {reason}") from error
    return client


def check_server(uri: str) -> None:
    """One quick request: MLflow's own client retries an unreachable server for minutes.

    Raises:
        TrackingError: No answer, or a server's error.
    """
    address = f"{uri.rstrip('/')}/health"
    try:
        urllib.request.urlopen(address, timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        # The server answers; whether it is MLflow, behind a gateway or not, is asked next.
        if error.code >= 500:
            raise TrackingError(f"expected a tracking server at {uri}, found HTTP {error.code}; start it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"expected a tracking server at {uri}, found none within {REACH_TIMEOUT_S:g} s ({reason}); "
            f"start it or use sqlite:///results/{DEFAULT_DATABASE}"
        ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"expected a folder that can be written at {folder}, found: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TrackingError(f"expected a folder that can be written at {folder}, found it read-only; choose another")
