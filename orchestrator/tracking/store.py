"""MLflow's store: where it is, a client whose calls end, and an SQLite file that is whole or not there."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from orchestrator.addresses import shown_uri
from orchestrator.errors import TrackingError
from orchestrator.storage.layout import Storage

T = TypeVar("T")
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "uc")
_SQLITE, _SQLITE_DRIVER = "sqlite:///", "sqlite+pysqlite:///"
CALL_SECONDS = 30.0
"""The most that one call of MLflow may take, however busily the server answers."""
SLOW_CALLS = {"log_artifacts": 600.0}
MAKING_SECONDS = 180.0
"""The most that making the SQLite file may take, and waiting for another process to do it: some forty migrations."""
_QUIET_SECONDS = 3.0
_MOST_ABANDONED = 3
_abandoned: list[threading.Thread] = []


class StoreError(RuntimeError):
    """MLflow, its database or the network fails; the message says how."""


def check_uri(uri: str) -> None:
    """Raise TrackingError where MLflow has no store at such an address, which a sweep would find out at its end."""
    scheme, there, _ = uri.partition("://")
    plugins = {point.name for point in entry_points(group="mlflow.tracking_store")}
    unknown = there and scheme.partition("+")[0] not in {*_SCHEMES, *plugins}
    try:
        parts = urlsplit(uri)
        no_host = parts.scheme in ("http", "https") and (not parts.hostname or parts.port == 0)
    except ValueError:  # a bracket that is not closed, letters for a port
        no_host = True
    if unknown or no_host or re.fullmatch(r"[\w.-]+:\d+/?", uri):
        raise TrackingError(
            f"--tracking-uri (or MLFLOW_TRACKING_URI) {shown_uri(uri)!r:.200}: expected http://HOST:PORT, "
            "sqlite:///FILE, or none"
        )


def default_uri(storage: Storage) -> str:
    """Return the address of the SQLite file in the storage."""
    return _sqlite_uri(storage.resolve().mlflow)


def _sqlite_uri(path: Path) -> str:
    name = str(path)
    if "?" not in name and "%" not in name:
        return f"{_SQLITE}{name}"
    # SQLAlchemy takes what follows "?" for options and decodes "%41". MLflow does neither where it makes the folder,
    # which it leaves alone where the driver's name is given too.
    return f"{_SQLITE_DRIVER}{name.replace('%', '%25').replace('?', '%3F')}"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for any other; a relative one is from the current folder."""
    address = uri.partition("?")[0]
    for scheme in (_SQLITE, _SQLITE_DRIVER):
        path = address.removeprefix(scheme)
        if path not in (address, "", ":memory:"):
            return Path(unquote(path)).resolve()
    return None


class Client:
    """MLflow's client; every call ends within `CALL_SECONDS`, and raises nothing but `StoreError`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *words, **named: bounded(lambda: method(*words, **named), SLOW_CALLS.get(name, CALL_SECONDS))


def bounded(call: Callable[[], T], seconds: float) -> T:
    """Return what `call` returns.

    It runs in a thread of its own, which is left behind where it takes longer: a timeout of the network's is for each
    read, and a server that sends a byte a second never exceeds it.

    Raises:
        StoreError: It raised, or took longer.
    """
    _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
    if len(_abandoned) >= _MOST_ABANDONED:
        raise StoreError(f"earlier calls have not been answered within {seconds:g} s")
    returned: list[T] = []
    raised: list[Exception] = []

    def work() -> None:
        try:
            returned.append(call())
        except Exception as error:  # whatever MLflow, its database or the network throws
            raised.append(error)

    thread = threading.Thread(target=work, name="mlflow", daemon=True)
    thread.start()
    thread.join(seconds)
    if returned:
        return returned[0]
    if raised:
        raise StoreError(f"{type(raised[0]).__name__}: {raised[0]}") from raised[0]
    _abandoned.append(thread)
    raise StoreError(f"no whole answer within {seconds:g} s")


def connect(uri: str) -> Client:
    """Return a client that fails soon, says nothing, and reports to nobody."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    if sqlite_path(uri) is not None:
        # A connection that is kept open goes on with a file that was deleted, or put aside.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    # It would print each run's address, password included, on standard output.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return Client(bounded(lambda: MlflowClient(tracking_uri=uri), MAKING_SECONDS))


def open_store(uri: str, say: Callable[[str], object]) -> Client:
    """Return a client of a store that answers; an SQLite file is made where there is none.

    A file that was left half made and holds no run is put aside, which `say` is told: it is only a view.

    Raises:
        StoreError: It does not answer.
    """
    path = sqlite_path(uri)
    if path is None:
        return connect(uri)
    with locked(path.with_name(f".{path.name}.lock"), MAKING_SECONDS):
        if not path.exists() or not path.stat().st_size:
            _make(path)
        _check_writable(path)
        if _is_empty(path) and not _becomes_whole(path):
            aside = path.with_name(f"{path.name}.half-made")
            say(f"{path} was half made; it is now {aside.name}, and a new one is made")
            path.replace(aside)
            _make(path)
    return connect(uri)


@contextmanager
def locked(path: Path, seconds: float = CALL_SECONDS) -> Iterator[Any]:
    """Hold a file's lock, among processes and threads, and give the open file; the kernel frees it if we die.

    Raises:
        StoreError: It can't be had: another process holds it, or the folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StoreError(f"{path.parent}: {error.strerror}") from error
    with file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    break  # a file system without locks: twins are merged by the next sync
                if time.monotonic() > deadline:
                    raise StoreError(f"{path}: another process has held the lock for {seconds:g} s") from error
                time.sleep(0.05)
        yield file


def _make(path: Path) -> None:
    """Make an SQLite file that is there at once, with all of its tables."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")

    def migrate() -> None:
        connect(_sqlite_uri(temporary))  # what it sets holds for all that follows; nothing is opened yet
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(_sqlite_uri(temporary), (path.parent / "mlruns").as_uri()).engine.dispose()

    try:
        bounded(migrate, MAKING_SECONDS)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            left.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    """Raise `StoreError` at once where MLflow would try again for minutes: on what is no database, or can't be had."""
    try:
        with closing(sqlite3.connect(path, timeout=10.0, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        advice = "; it is only a view: delete it, and idp sync makes it again" if "not a database" in str(error) else ""
        raise StoreError(f"{path}: {error}{advice}") from error


def _is_empty(path: Path) -> bool:
    """Return True where the database shows no run."""
    with closing(sqlite3.connect(path, timeout=10.0)) as database:
        try:
            return database.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is None
        except sqlite3.OperationalError:
            return True  # not even the table


def _becomes_whole(path: Path) -> bool:
    """Return whether all migrations are done; a file that somebody else is making is waited for while it grows."""
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    last = ScriptDirectory(str(Path(db_migrations.__file__).parent)).get_current_head()
    before = None
    while (now := path.stat().st_mtime_ns) != before:
        with closing(sqlite3.connect(path, timeout=10.0)) as database:
            try:
                if database.execute("SELECT version_num FROM alembic_version").fetchone() == (last,):
                    return True
            except sqlite3.OperationalError:
                pass  # not even the table
        before = now
        time.sleep(_QUIET_SECONDS)
    return False


def send_folder(client: Client, run: Any, folder: Path) -> None:
    """Bring a folder's files to a run's artifacts."""
    if run.info.artifact_uri.startswith("file:"):
        # By its address: MLflow remembers where a run's artifacts are by its id, which copies of a storage share.
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        to = get_artifact_repository(run.info.artifact_uri)
        bounded(lambda: to.log_artifacts(str(folder)), SLOW_CALLS["log_artifacts"])
    else:
        client.log_artifacts(run.info.run_id, str(folder))


def relocate(uri: str, experiment: str, old: str, new: str) -> None:
    """Make an experiment keep its artifacts at `new`: MLflow itself can't change where they are.

    Those it has are sent again, since they may have stayed behind.
    """
    path = sqlite_path(uri)
    assert path is not None
    try:
        with closing(sqlite3.connect(path, timeout=10.0)) as database, database:
            runs = "SELECT run_uuid FROM runs WHERE experiment_id = ?"
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, int(experiment))
            )
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (new, len(old) + 1, int(experiment), len(old), old),
            )
            database.execute(
                f"DELETE FROM tags WHERE key = 'idp.documents' AND run_uuid IN ({runs})", (int(experiment),)
            )
            # A trial that MLflow has is not sent again, and would name its directory in the other storage for ever.
            here, there = (uri.removesuffix("/mlruns") for uri in (new, old))
            database.execute(
                "UPDATE tags SET value = replace(value, ?, ?) "
                f"WHERE key IN ('idp.directory', 'mlflow.note.content') AND run_uuid IN ({runs})",
                (f"{folder_of(there)}/trials/", f"{folder_of(here)}/trials/", int(experiment)),
            )
            database.execute(
                "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?) WHERE experiment_id = ?",
                (f"{there}/datasets/", f"{here}/datasets/", int(experiment)),
            )
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error


def folder_of(uri: str) -> Path:
    """Return the folder of a `file:` address."""
    return Path(unquote(urlsplit(uri).path))


def knows_experiment(uri: str, experiment: str, name: str) -> bool:
    """Return False where an SQLite store has no such experiment; of any other store it is not known without asking."""
    path = sqlite_path(uri)
    if path is None:
        return True
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=10.0)) as database:
            row = database.execute(
                "SELECT name FROM experiments WHERE experiment_id = ?", (int(experiment),)
            ).fetchone()
    except (sqlite3.Error, ValueError, OverflowError):
        return False
    return row is not None and row[0].partition("@")[0] == name
