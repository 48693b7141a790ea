"""MLflow, a live view of the trial directories: whatever it shows can be rebuilt from them.

Only the driver writes to it, from one thread that trials never wait for. An event says no more than "look at this
trial again": the thread then sends what the trial directory has and MLflow has not. So an outage needs no care of
its own, and `idp sync` is the same code applied to every trial.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from orchestrator.addresses import shown_uri as shown_uri
from orchestrator.addresses import without_secrets
from orchestrator.errors import TrackingError as TrackingError
from orchestrator.storage.layout import Storage
from orchestrator.storage.variants import every_trial
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tables.records import collect
from orchestrator.tables.rows import rows
from orchestrator.tables.studies import studies_of
from orchestrator.tracking.documents import digest_of_documents, said_of, write_documents
from orchestrator.tracking.note import page_of as page_of
from orchestrator.tracking.note import result_digest, write_sent
from orchestrator.tracking.note import unsent as unsent
from orchestrator.tracking.store import StoreError
from orchestrator.tracking.store import check_uri as check_uri
from orchestrator.tracking.store import default_uri as default_uri
from orchestrator.tracking.view import View

Event = Literal["started", "epoch", "finished"]
NOWHERE = "none"
"""The address of no store: MLflow is not asked, and `idp sync` fills it afterwards."""
MOST_SECONDS_BETWEEN = 30.0
"""Between two attempts to reach a store that does not answer."""


class Tracker:
    """Keeps the view up to date from a thread of its own; no method waits for MLflow, except `close`.

    Args:
        uri: MLflow's store.
        sweep: The sweep.
        storage: The storage directory.
        say: Is told, once each, that the store can't be reached, that it can be again, and what is damaged here.
    """

    def __init__(self, uri: str, sweep: SweepSpec, storage: Storage, say: Callable[[str], None]) -> None:
        self._uri, self._sweep, self._storage, self._say = uri, sweep, storage, say
        self._dirty: dict[str, tuple[PlannedTrial, Event]] = {}
        self._noted: set[str] = set()
        self._sent: dict[str, str] = {}
        self._told: set[str] = set()
        self._experiment: str | None = None
        self._compared = False
        self._changed = threading.Condition()
        self._closing: str | None = None
        self._failing_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def note(self, trial: PlannedTrial, event: Event) -> None:
        """Note that something happened to a trial; returns at once."""
        with self._changed:
            self._dirty[trial.trial_id] = (trial, event)
            self._noted.add(trial.trial_id)
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
            _note(self._storage, self._sweep, self._uri, self._experiment, sent, self._compared)
        return unsent

    def _work(self) -> None:
        view: View | None = None
        attempt = 0  # failures in a row
        while True:
            with self._changed:
                while not self._dirty and self._closing is None:
                    self._changed.wait()
                item = self._dirty.pop(next(iter(self._dirty))) if self._dirty else None
            try:
                if view is None:
                    view = self._open()
                if item is not None:
                    self._show(view, *item)
                elif self._closing is not None:
                    _end(view, self._sweep, self._storage, self._closing, self._tell)
                    self._compared = True
            except StoreError as error:  # the sweep goes on
                attempt += 1
                if item is not None:
                    with self._changed:
                        self._dirty.setdefault(item[0].trial_id, item)
                if self._failing_since is None:
                    self._failing_since = time.monotonic()
                if attempt == 3:
                    self._say(f"MLflow at {shown_uri(self._uri)} fails, the sweep goes on: {_reason(error, self._uri)}")
                view = None
                time.sleep(seconds_between(attempt) * random.uniform(0.5, 1.0))
                continue
            except Exception as error:  # what is wrong here: trying again would not mend it
                self._tell(f"{item[0].trial_id if item else 'the documents'}: not in MLflow: {_named(error)}")
            if attempt >= 3:
                self._say(f"MLflow at {shown_uri(self._uri)} answers again")
            attempt, self._failing_since = 0, None
            # A new view may have found that all is to be sent again.
            if item is None and not self._dirty:
                return

    def _open(self) -> View:
        view = View(self._uri, self._sweep, self._storage, self._tell)
        self._experiment = view.experiment
        if view.made:
            # Whatever was sent before went to an experiment that is there no more.
            others = [t for t in every_trial(self._sweep, self._storage) if t.trial_id not in self._noted]
            results = self._storage.results([trial.trial_id for trial in others])
            view.show_finished(others, results)
            with self._changed:
                self._sent |= {trial_id: result_digest(result) for trial_id, result in results.items()}
        return view

    def _tell(self, line: str) -> None:
        """Say a thing once."""
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def _show(self, view: View, trial: PlannedTrial, event: Event) -> None:
        view.show(trial, running=event != "finished", epochs=event != "started")
        if event == "finished":
            result = self._storage.results([trial.trial_id]).get(trial.trial_id)
            if result is not None:
                with self._changed:
                    self._sent[trial.trial_id] = result_digest(result)


class Untracked:
    """Tells nobody."""

    def note(self, trial: PlannedTrial, event: Event) -> None:
        """Do nothing."""

    def close(self, status: str, patience: float = 10.0) -> int:
        """Return that nothing is left to be sent."""
        return 0


def seconds_between(attempt: int) -> float:
    """Return how long to wait after the n-th failure in a row."""
    return min(MOST_SECONDS_BETWEEN, 0.2 * 2.0 ** min(attempt, 10))


def _end(view: View, sweep: SweepSpec, storage: Storage, status: str, say: Callable[[str], object]) -> None:
    """Send what is about the sweep as a whole, whatever part of it was looked at: means, documents, how it ended."""
    trials = every_trial(sweep, storage)
    runs = collect(sweep, trials, storage)
    table = rows(trials, {run.trial.trial_id: run.result for run in runs if run.result})
    tried = [one for study in (studies_of(sweep.search, runs) if sweep.search else ()) for one in study.tried]
    searched = {trial_id: one.value for one in tried if one.value is not None for trial_id in one.trials}
    view.close(table, trials, status, said_of(sweep, runs), searched)
    if status != "KILLED":  # whoever stops a sweep does not wait for pictures; the next run sends them
        for line in (line for run in runs for line in run.damaged):
            say(line)
        content = digest_of_documents(sweep, runs)
        view.attach(content, lambda folder: write_documents(sweep, runs, storage, folder))


def sync(
    uri: str,
    sweep: SweepSpec,
    trials: list[PlannedTrial],
    storage: Storage,
    say: Callable[[str], object] = str,
) -> int:
    """Bring MLflow up to date with the trials' directories, and return how many of the trials it shows.

    Doing it again changes nothing.

    Args:
        uri: MLflow's store.
        sweep: The sweep.
        trials: Those of its trials that are looked at; means and documents are of all of them.
        storage: The storage directory.
        say: Is told what had to be left out.

    Raises:
        TrackingError: MLflow does not answer.
    """
    if uri == NOWHERE:
        raise TrackingError("--tracking-uri (or MLFLOW_TRACKING_URI) is none: name the store that is to be filled")
    check_uri(uri)
    chosen = {trial.trial_id: trial for trial in trials}
    results = storage.results(chosen)
    notices: dict[str, None] = {}
    try:
        view = View(uri, sweep, storage, notices.setdefault)
        if view.made:  # what was sent before is gone
            chosen = {trial.trial_id: trial for trial in every_trial(sweep, storage)}
            results = storage.results(chosen)
        view.show_finished(chosen.values(), results)
        failed = any(result.status == "FAILED" for result in results.values())
        _end(view, sweep, storage, "FAILED" if failed else "FINISHED", notices.setdefault)
    except StoreError as error:
        raise TrackingError(f"MLflow at {shown_uri(uri)}: {_reason(error, uri)}") from error
    finally:
        for line in notices:
            say(line)
    sent = {trial_id: result_digest(result) for trial_id, result in results.items()}
    _note(storage, sweep, uri, view.experiment, sent, compared=True)
    return len(results)


def _note(storage: Storage, sweep: SweepSpec, uri: str, experiment: str, sent: dict[str, str], compared: bool) -> None:
    # Without the note, MLflow is asked; a storage that can't be written is told of by whoever must write there.
    with suppress(PermissionError):
        write_sent(storage, sweep, uri, experiment, sent, compared=compared)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _reason(error: Exception, uri: str) -> str:
    """Return what went wrong without the address's user and password, which errors like to repeat."""
    text = " ".join(str(error).split()) if isinstance(error, StoreError) else _named(error)
    return without_secrets(text, uri)[:300]
