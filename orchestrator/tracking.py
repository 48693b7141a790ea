"""MLflow, a live view of the trial directories: whatever it shows can be rebuilt from them.

Only the driver writes to it, from one thread that trials never wait for. An event says no more than "look at this
trial again": the thread then sends what the trial directory has and MLflow has not. So an outage needs no care of
its own, and `idp sync` is the same code applied to every trial.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from orchestrator.results import TrialResult, read_result, trial_directory, write_json
from orchestrator.runs import collect
from orchestrator.specs import PlannedTrial, SweepSpec
from orchestrator.tables import rows
from orchestrator.tracking_documents import digest_of_documents, write_documents
from orchestrator.tracking_view import View, result_digest

Event = Literal["started", "epoch", "finished"]


def default_uri(storage: Path) -> str:
    """Return the address of the SQLite file in the storage."""
    return f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def shown_uri(uri: str) -> str:
    """Return the address without a password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


class Tracker:
    """Keeps the view up to date from a thread of its own; no method waits for MLflow, except `close`.

    Args:
        uri: MLflow's store.
        sweep: The sweep.
        trials: All its trials, for the means.
        storage: The storage directory.
        say: Is told, once each, that the store can't be reached and that it can be again.
    """

    def __init__(
        self, uri: str, sweep: SweepSpec, trials: list[PlannedTrial], storage: Path, say: Callable[[str], None]
    ) -> None:
        self._uri, self._sweep, self._trials, self._storage, self._say = uri, sweep, trials, storage, say
        self._dirty: dict[str, tuple[PlannedTrial, Event]] = {}
        self._sent: dict[str, str] = {}
        self._experiment: str | None = None
        self._changed = threading.Condition()
        self._closing: str | None = None
        self._failing_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def note(self, trial: PlannedTrial, event: Event) -> None:
        """Note that something happened to a trial; returns at once."""
        with self._changed:
            self._dirty[trial.trial_id] = (trial, event)
            self._changed.notify_all()

    def close(self, status: str, patience: float = 10.0) -> int:
        """Send the rest and return how many trials could not be sent.

        Args:
            status: How the sweep ended: FINISHED, FAILED or KILLED.
            patience: Seconds to go on trying once the store does not answer.
        """
        with self._changed:
            self._closing = status
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(0.1)
            since = self._failing_since
            if since is not None and time.monotonic() - since > patience:
                break
        with self._changed:
            unsent = len(self._dirty) or int(self._thread.is_alive())
            sent = dict(self._sent)
        if self._experiment is not None:
            write_sent(self._storage, self._sweep.name, self._uri, self._experiment, sent)
        return unsent

    def _work(self) -> None:
        view: View | None = None
        attempt = 0
        while True:
            with self._changed:
                while not self._dirty and self._closing is None:
                    self._changed.wait()
                item = self._dirty.pop(next(iter(self._dirty))) if self._dirty else None
            try:
                view = view or View(self._uri, self._sweep, self._storage)
                self._experiment = view.experiment
                if item is None:
                    assert self._closing is not None
                    _end(view, self._sweep, self._trials, self._storage, self._closing)
                else:
                    self._show(view, *item)
            except Exception as error:  # whatever MLflow, its database or the network throws: the sweep goes on
                attempt += 1
                if item is not None:
                    with self._changed:
                        self._dirty.setdefault(item[0].trial_id, item)
                if self._failing_since is None:
                    self._failing_since = time.monotonic()
                if attempt == 3:
                    self._say(f"MLflow at {shown_uri(self._uri)} fails, the sweep goes on: {_reason(error, self._uri)}")
                view = None
                time.sleep(min(30.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))
                continue
            if attempt >= 3:
                self._say(f"MLflow at {shown_uri(self._uri)} answers again")
            attempt, self._failing_since = 0, None
            if item is None:
                return

    def _show(self, view: View, trial: PlannedTrial, event: Event) -> None:
        view.show(trial, running=event != "finished", epochs=event != "started")
        if event == "finished":
            result = read_result(trial_directory(self._storage, trial.trial_id))
            if result is not None:
                with self._changed:
                    self._sent[trial.trial_id] = result_digest(result)


def _end(view: View, sweep: SweepSpec, trials: list[PlannedTrial], storage: Path, status: str) -> None:
    """Send what is about the sweep as a whole: its means, how it ended, and its documents."""
    runs = collect(sweep, trials, storage)
    view.close(rows(trials, {run.trial.trial_id: run.result for run in runs if run.result}), status)
    if status != "KILLED":  # whoever stops a sweep does not wait for pictures; the next run sends them
        content = digest_of_documents(sweep, runs)
        view.attach(content, lambda folder: write_documents(sweep, runs, storage, folder))


def sync(uri: str, sweep: SweepSpec, trials: list[PlannedTrial], storage: Path) -> int:
    """Bring MLflow up to date with every trial directory of the sweep, and return how many trials it shows.

    Doing it again changes nothing.

    Raises:
        TrackingError: MLflow does not answer.
    """
    try:
        view = View(uri, sweep, storage)
        sent = {}
        failed = False
        for trial in {trial.trial_id: trial for trial in trials}.values():
            result = read_result(trial_directory(storage, trial.trial_id))
            if result is not None:
                view.show(trial, running=False)
                sent[trial.trial_id] = result_digest(result)
                failed |= result.status == "FAILED"
        _end(view, sweep, trials, storage, "FAILED" if failed else "FINISHED")
    except Exception as error:  # MLflow passes on whatever its database or the network throws
        raise TrackingError(f"MLflow at {shown_uri(uri)}: {_reason(error, uri)}") from error
    write_sent(storage, sweep.name, uri, view.experiment, sent)
    return len(sent)


def _reason(error: Exception, uri: str) -> str:
    """Return what went wrong without the address's user and password, which errors like to repeat."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    login = urlsplit(uri).netloc.rpartition("@")[0]
    for secret in (login, unquote(login), *login.split(":")[1:], *unquote(login).split(":")[1:]):
        if secret:
            text = text.replace(secret, "***")
    return text[:300]


class TrackingError(RuntimeError):
    """MLflow does not answer."""


def unsent(storage: Path, sweep: str, uri: str, results: Mapping[str, TrialResult]) -> list[str]:
    """Return the trials whose result MLflow has not been sent, from a note in the storage; asks no MLflow."""
    sent = _read_sent(storage, sweep, uri)
    return [trial_id for trial_id, result in results.items() if sent.get(trial_id) != result_digest(result)]


def write_sent(storage: Path, sweep: str, uri: str, experiment: str, sent: Mapping[str, str]) -> None:
    """Note what MLflow has been sent, and where to; only saves asking it, so losing the note loses nothing."""
    note = {"experiment": experiment, "sent": {**_read_sent(storage, sweep, uri), **sent}}
    write_json(_note_path(storage, sweep, uri), note)


def page_of(storage: Path, sweep: str, uri: str) -> str:
    """Return the path and fragment of the sweep's page below MLflow's address; "" where MLflow never answered."""
    experiment = _read_note(storage, sweep, uri).get("experiment")
    # Without its last word, MLflow's pages open on its views for language models.
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if experiment else ""


def _note_path(storage: Path, sweep: str, uri: str) -> Path:
    # A digest, because an address may hold a password.
    return storage / "sweeps" / sweep / f"mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.json"


def _read_note(storage: Path, sweep: str, uri: str) -> dict[str, Any]:
    try:
        note = json.loads(_note_path(storage, sweep, uri).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _read_sent(storage: Path, sweep: str, uri: str) -> dict[str, str]:
    sent = _read_note(storage, sweep, uri).get("sent")
    return sent if isinstance(sent, dict) else {}
