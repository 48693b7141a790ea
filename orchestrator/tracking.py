"""MLflow, a live view of the trial directories: whatever it shows can be rebuilt from them.

Only the driver writes to it, from one thread that trials never wait for. An event says no more than "look at this
trial again": the thread then sends what the trial directory has and MLflow has not. So an outage needs no care of
its own, and `idp sync` is the same code applied to every trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from orchestrator.progress import trial_name
from orchestrator.results import (
    TrialResult,
    code_hash,
    list_results,
    read_curves,
    read_result,
    trial_directory,
    write_json,
)
from orchestrator.specs import PlannedTrial, SweepSpec
from orchestrator.tables import Row, rows

Event = Literal["started", "epoch", "finished"]

MOST_PER_BATCH = 900
"""Metrics per request; the server takes 1,000."""
_FINAL = (
    "test_success_rate",
    "test_optimality",
    "test_spl",
    "valid_success_rate",
    "train_loss",
    "forward_seconds",
    "backward_seconds",
    "forward_steps",
    "forward_residual",
    "backward_residual",
    "peak_bytes",
    "train_seconds",
    "epochs",
)
_FLAGS = ("trial_diverged", "forward_diverged")
_STATUS = {"COMPLETED": "FINISHED", "OUT_OF_MEMORY": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}


def default_uri(storage: Path) -> str:
    """Return the address of the SQLite file in the storage."""
    return f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def shown_uri(uri: str) -> str:
    """Return the address without a password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def _client(uri: str) -> Any:
    """Return a client that fails soon, says nothing, and reports to nobody."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


class View:
    """A sweep's experiment in MLflow: a parent run, a run per trial, and a run per cell with mean and std.

    Every method may raise whatever MLflow raises, and may be called again.

    Args:
        uri: MLflow's store.
        sweep: The sweep.
        storage: The storage directory, whose trial directories are shown.
    """

    def __init__(self, uri: str, sweep: SweepSpec, storage: Path) -> None:
        from mlflow.entities import ViewType

        self._client = _client(uri)
        self._sweep, self._storage = sweep, storage
        self._experiment = self._find_experiment(uri)
        self._runs: dict[str, Any] = {}
        self._epochs: dict[str, int] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
            )
            for run in page:
                if key := run.data.tags.get("idp.key"):
                    self._runs[key] = run
            token = page.token
            if not token:
                break
        self._parent = self._ensure("sweep", sweep.name, {"mlflow.note.content": sweep.description}, {})

    def _find_experiment(self, uri: str) -> str:
        found = self._client.get_experiment_by_name(self._sweep.name)
        if found is None:
            local = uri.startswith("sqlite:")
            place = (self._storage.resolve() / "mlruns").as_uri() if local else None
            created: str = self._client.create_experiment(self._sweep.name, artifact_location=place)
            return created
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        experiment_id: str = found.experiment_id
        return experiment_id

    def _ensure(
        self, key: str, name: str, tags: dict[str, str], params: dict[str, str], start_ms: int | None = None
    ) -> str:
        """Return the id of the run with this key, made where there is none."""
        if key not in self._runs:
            from mlflow.entities import Param

            parent = {} if key == "sweep" else {"mlflow.parentRunId": self._parent}
            run = self._client.create_run(
                self._experiment,
                start_time=start_ms,
                run_name=name,
                tags={"idp.key": key, "mlflow.source.name": "idp", **parent, **tags},
            )
            self._runs[key] = run
            self._epochs[run.info.run_id] = 0
            self._client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in params.items()])
        run_id: str = self._runs[key].info.run_id
        return run_id

    def show(self, trial: PlannedTrial, running: bool, epochs: bool = True) -> None:
        """Send what the trial's directory has and MLflow has not.

        Args:
            trial: The trial.
            running: True while a process works on it: then an old result in its directory is not its result.
            epochs: False where the curves in its directory may be of an earlier attempt.
        """
        directory = trial_directory(self._storage, trial.trial_id)
        result = None if running else read_result(directory)
        if result is None and not running:
            return
        code = code_hash() if result is None else result.provenance.code
        key = f"trial:{trial.trial_id}"
        old = self._runs.get(key)
        if old is not None and old.data.tags.get("idp.code", code) != code:
            # Numbers of other code belong to another run; a param or a step can't be overwritten.
            self._client.delete_run(old.info.run_id)
            del self._runs[key]
        content = "" if result is None else _digest(result)
        if result is not None and self._tag(key, "idp.result") == content:
            return
        curves = read_curves(directory) if epochs else []
        end = time.time() if result is None else (directory / "result.json").stat().st_mtime
        times = _epoch_times(curves, end)
        start = times[0] - float(curves[0].get("train_seconds") or 0.0) if curves else end
        tags = {"idp.trial_id": trial.trial_id, "idp.code": code, "idp.kind": "trial"}
        run_id = self._ensure(key, trial_name(trial), tags, _params(trial), int(start * 1000))
        if self._runs[key].info.status != "RUNNING" and running:
            self._set_status(key, "RUNNING")
        self._send_epochs(run_id, curves, times)
        if result is not None:
            self._send_result(key, result, content, int(end * 1000))

    def _tag(self, key: str, name: str) -> str | None:
        run = self._runs.get(key)
        value: str | None = None if run is None else run.data.tags.get(name)
        return value

    def _set_status(self, key: str, status: str, end_ms: int | None = None) -> None:
        run_id = self._runs[key].info.run_id
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=end_ms)
        self._runs[key] = self._client.get_run(run_id)

    def _send_epochs(self, run_id: str, curves: list[dict[str, Any]], times: list[float]) -> None:
        if run_id not in self._epochs:
            history = self._client.get_metric_history(run_id, "epoch/train_loss")
            history += self._client.get_metric_history(run_id, "epoch/train_loss_not_finite")
            self._epochs[run_id] = max((metric.step for metric in history), default=0)
        for record, when in zip(curves, times, strict=True):
            epoch = int(record["epoch"])
            if epoch > self._epochs[run_id]:
                named = {f"epoch/{name}": value for name, value in record.items() if name != "epoch"}
                self._client.log_batch(run_id, metrics=_metrics(named, epoch, when))
                self._epochs[run_id] = epoch

    def _send_result(self, key: str, result: TrialResult, content: str, end_ms: int) -> None:
        from mlflow.entities import RunTag

        run_id = self._runs[key].info.run_id
        numbers = {name: getattr(result, name) for name in (*_FINAL, *_FLAGS)}
        self._client.log_batch(run_id, metrics=_metrics(numbers, result.epochs, end_ms / 1000))
        origin = result.provenance
        facts = {
            "idp.status": result.status,
            "idp.reason": result.reason[:4000],
            "idp.host": origin.host,
            "idp.commit": origin.git_commit + ("-dirty" if origin.git_dirty else ""),
            "idp.dataset_id": origin.dataset_id,
            "idp.accelerator": origin.accelerator,
            "mlflow.source.git.commit": origin.git_commit,
        }
        self._set_status(key, _STATUS[result.status], end_ms)
        # The digest goes last, alone: it says that everything before it has arrived.
        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in facts.items() if value])
        self._client.set_tag(run_id, "idp.result", content)
        self._runs[key] = self._client.get_run(run_id)

    def close(self, table: Iterable[Row], status: str) -> None:
        """Bring the runs with mean and std up to date and end the parent run.

        Args:
            table: The rows of the sweep's table.
            status: How the sweep ended: FINISHED, FAILED or KILLED.
        """
        from mlflow.entities import RunTag

        for key, run in list(self._runs.items()):
            if key.startswith("trial:") and run.info.status == "RUNNING":
                self._set_status(key, "KILLED")
        for row in table:
            if not row.used:
                continue
            key = "mean:" + hashlib.sha256(json.dumps(row.axes, sort_keys=True).encode()).hexdigest()[:16]
            content = hashlib.sha256(json.dumps(asdict(row), sort_keys=True).encode()).hexdigest()[:16]
            if self._tag(key, "idp.result") == content:
                continue
            name = " ".join(["mean", *(f"{axis}={value}" for axis, value in row.axes.items())])
            params = {**{axis: str(value) for axis, value in row.axes.items()}, "seed": "all"}
            run_id = self._ensure(key, name[:250], {"idp.kind": "mean"}, params)
            numbers = {
                "test_success_rate": row.success_rate,
                "test_success_rate_std": row.success_rate_std,
                "test_optimality": row.optimality,
                "test_spl": row.spl,
                "forward_seconds": row.forward_seconds,
                "backward_seconds": row.backward_seconds,
                "peak_bytes": row.peak_bytes,
                "trials": row.used,
            }
            known = {name: value for name, value in numbers.items() if value is not None}
            tags = [RunTag("idp.result", content)]
            self._client.log_batch(run_id, metrics=_metrics(known, row.used, time.time()), tags=tags)
            self._set_status(key, "FINISHED")
        if self._runs["sweep"].info.status != status:
            self._set_status("sweep", status)


def _params(trial: PlannedTrial) -> dict[str, str]:
    """Return flat params, so that MLflow's pages can group and compare by them."""
    spec = trial.spec
    params = {
        **trial.axes,
        "core": spec.planner.core,
        "adjoint": spec.planner.adjoint,
        "solver": spec.planner.solver,
        "solver_bwd": spec.planner.solver_bwd,
        "k_bwd": spec.planner.k_bwd,
        "epochs": spec.training.epochs,
        "batch_size": spec.training.batch_size,
        "optimizer": spec.training.optimizer,
        "learning_rate": spec.training.learning_rate,
        "labels": spec.training.labels,
        "train_maps": spec.data.train,
        "threads": spec.execution.threads,
    }
    return {name: str(value)[:500] for name, value in params.items()}


def _metrics(values: Mapping[str, Any], step: int, seconds: float) -> list[Any]:
    """Return MLflow metrics; a value that is missing or not finite becomes the flag NAME_not_finite."""
    from mlflow.entities import Metric

    metrics = []
    for name, value in values.items():
        if isinstance(value, (bool, int, float)) and math.isfinite(value):
            metrics.append(Metric(name, float(value), int(seconds * 1000), step))
        elif value is None or isinstance(value, float):
            metrics.append(Metric(f"{name}_not_finite", 1.0, int(seconds * 1000), step))
    assert len(metrics) <= MOST_PER_BATCH
    return metrics


def _epoch_times(curves: list[dict[str, Any]], end: float) -> list[float]:
    """Return when each epoch ended, counted back from the end of the last, so that a rebuilt curve has its times."""
    times = []
    for record in reversed(curves):
        times.append(end)
        end -= float(record.get("train_seconds") or 0.0)
    return times[::-1]


def _digest(result: TrialResult) -> str:
    return hashlib.sha256(result.model_dump_json().encode()).hexdigest()[:16]


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
        if sent:
            write_sent(self._storage, self._sweep.name, self._uri, sent)
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
                if item is None:
                    assert self._closing is not None
                    view.close(_rows(self._trials, self._storage), self._closing)
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
                    self._say(f"MLflow at {shown_uri(self._uri)} fails, the sweep goes on: {_reason(error)}")
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
                    self._sent[trial.trial_id] = _digest(result)


def _rows(trials: list[PlannedTrial], storage: Path) -> list[Row]:
    return rows(trials, list_results(storage, [trial.trial_id for trial in trials]), code_hash())


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
                sent[trial.trial_id] = _digest(result)
                failed |= result.status == "FAILED"
        view.close(_rows(trials, storage), "FAILED" if failed else "FINISHED")
    except Exception as error:  # MLflow passes on whatever its database or the network throws
        raise TrackingError(f"MLflow at {shown_uri(uri)}: {_reason(error)}") from error
    write_sent(storage, sweep.name, uri, sent)
    return len(sent)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class TrackingError(RuntimeError):
    """MLflow does not answer."""


def unsent(storage: Path, sweep: str, uri: str, results: Mapping[str, TrialResult]) -> list[str]:
    """Return the trials whose result MLflow has not been sent, from a note in the storage; asks no MLflow."""
    sent = _read_sent(storage, sweep, uri)
    return [trial_id for trial_id, result in results.items() if sent.get(trial_id) != _digest(result)]


def write_sent(storage: Path, sweep: str, uri: str, sent: Mapping[str, str]) -> None:
    """Note what MLflow has been sent; only saves asking it, so losing the note loses nothing."""
    write_json(_sent_path(storage, sweep, uri), {**_read_sent(storage, sweep, uri), **sent})


def _sent_path(storage: Path, sweep: str, uri: str) -> Path:
    # A digest, because an address may hold a password.
    return storage / "sweeps" / sweep / f"sent-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.json"


def _read_sent(storage: Path, sweep: str, uri: str) -> dict[str, str]:
    try:
        note = json.loads(_sent_path(storage, sweep, uri).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
