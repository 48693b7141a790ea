"""A sweep's experiment in MLflow: runs for the sweep, its trials and its means, sent as far as MLflow has them not."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.progress import trial_name
from orchestrator.provenance import code_hash
from orchestrator.results import TrialResult, read_curves, read_result, trial_directory
from orchestrator.specs import PlannedTrial, SweepSpec
from orchestrator.tables import Row

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
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment's page on its runs, where MLflow would guess, or ask."""
_REMEMBERED = ("idp.code", "idp.result", "idp.documents")
_FLAGS = ("trial_diverged", "forward_diverged")
_STATUS = {"COMPLETED": "FINISHED", "OUT_OF_MEMORY": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}


def connect(uri: str) -> Any:
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


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a run: MLflow's own record of it has every number, too much for thousands of runs."""

    run_id: str
    status: str
    tags: tuple[str | None, ...]

    @classmethod
    def of(cls, run: Any) -> _Known:
        return cls(run.info.run_id, run.info.status, tuple(run.data.tags.get(name) for name in _REMEMBERED))

    def tag(self, name: str) -> str | None:
        return self.tags[_REMEMBERED.index(name)]


class View:
    """A sweep's experiment in MLflow: a parent run, a run per trial, and a run per cell with mean and std.

    Every method may raise whatever MLflow raises, and may be called again.

    Attributes:
        experiment: MLflow's id of the experiment.

    Args:
        uri: MLflow's store.
        sweep: The sweep.
        storage: The storage directory, whose trial directories are shown.
    """

    def __init__(self, uri: str, sweep: SweepSpec, storage: Path) -> None:
        from mlflow.entities import ViewType

        self._client = connect(uri)
        self._sweep, self._storage = sweep, storage
        self.experiment = self._find_experiment(uri)
        self._runs: dict[str, _Known] = {}
        self._epochs: dict[str, int] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
            )
            for run in page:
                if key := run.data.tags.get("idp.key"):
                    self._runs[key] = _Known.of(run)
            token = page.token
            if not token:
                break
        self._parent = self._ensure("sweep", sweep.name, {"mlflow.note.content": sweep.description}, {})

    def _find_experiment(self, uri: str) -> str:
        found = self._client.get_experiment_by_name(self._sweep.name)
        if found is None:
            local = uri.startswith("sqlite:")
            place = (self._storage.resolve() / "mlruns").as_uri() if local else None
            created: str = self._client.create_experiment(self._sweep.name, artifact_location=place, tags=_KIND)
            return created
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        for name, value in _KIND.items():
            if name not in found.tags:
                self._client.set_experiment_tag(found.experiment_id, name, value)
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
                self.experiment,
                start_time=start_ms,
                run_name=name,
                tags={"idp.key": key, "mlflow.source.name": "idp", **parent, **tags},
            )
            self._runs[key] = _Known.of(run)
            self._epochs[run.info.run_id] = 0
            self._client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in params.items()])
        return self._runs[key].run_id

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
        if old is not None and old.tag("idp.code") not in (None, code):
            # Numbers of other code belong to another run; a param or a step can't be overwritten.
            self._client.delete_run(old.run_id)
            del self._runs[key]
        content = "" if result is None else result_digest(result)
        if result is not None and self._tag(key, "idp.result") == content:
            return
        curves = read_curves(directory) if epochs else []
        end = time.time() if result is None else (directory / "result.json").stat().st_mtime
        times = _epoch_times(curves, end)
        start = times[0] - float(curves[0].get("train_seconds") or 0.0) if curves else end
        tags = {"idp.trial_id": trial.trial_id, "idp.code": code, "idp.kind": "trial"}
        run_id = self._ensure(key, trial_name(trial), tags, _params(trial), int(start * 1000))
        if self._runs[key].status != "RUNNING" and running:
            self._set_status(key, "RUNNING")
        self._send_epochs(run_id, curves, times)
        if result is not None:
            self._send_result(key, result, content, int(end * 1000))

    def _tag(self, key: str, name: str) -> str | None:
        run = self._runs.get(key)
        return None if run is None else run.tag(name)

    def _set_status(self, key: str, status: str, end_ms: int | None = None) -> None:
        run_id = self._runs[key].run_id
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=end_ms)
        self._runs[key] = _Known.of(self._client.get_run(run_id))

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

        run_id = self._runs[key].run_id
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
        self._runs[key] = _Known.of(self._client.get_run(run_id))

    def close(self, table: Iterable[Row], status: str) -> None:
        """Bring the runs with mean and std up to date and end the parent run.

        Args:
            table: The rows of the sweep's table.
            status: How the sweep ended: FINISHED, FAILED or KILLED.
        """
        from mlflow.entities import RunTag

        for key, run in list(self._runs.items()):
            if key.startswith("trial:") and run.status == "RUNNING":
                self._set_status(key, "KILLED")
        for row in table:
            out_of_memory = row.outcomes.get("OUT_OF_MEMORY", 0)
            if not row.used and not out_of_memory:
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
                "train_seconds": row.train_seconds,
                "trials": row.used,
                "trials_expected": row.expected,
                "trials_diverged": row.trial_diverged,
                "trials_out_of_memory": out_of_memory,
            }
            known = {name: value for name, value in numbers.items() if value is not None}
            tags = [RunTag("idp.result", content)]
            self._client.log_batch(run_id, metrics=_metrics(known, row.used, time.time()), tags=tags)
            self._set_status(key, "FINISHED")
        if self._runs["sweep"].status != status:
            self._set_status("sweep", status)

    def attach(self, content: str, write: Callable[[Path], None]) -> None:
        """Bring the artifacts of the parent run up to date.

        Args:
            content: What tells one version of them from another.
            write: Writes them into an empty folder; called where MLflow has another version.
        """
        if self._tag("sweep", "idp.documents") == content:
            return
        with tempfile.TemporaryDirectory(prefix="idp-documents-") as folder:
            write(Path(folder))
            self._client.log_artifacts(self._parent, folder)
        # Last, alone: it says that all of them have arrived.
        self._client.set_tag(self._parent, "idp.documents", content)
        self._runs["sweep"] = _Known.of(self._client.get_run(self._parent))


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


def result_digest(result: TrialResult) -> str:
    """Return what tells one result from another."""
    return hashlib.sha256(result.model_dump_json().encode()).hexdigest()[:16]
