"""A sweep's experiment in MLflow: runs for the sweep, its trials and its means, sent as far as MLflow has them not."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.storage.layout import Storage
from orchestrator.storage.results import TrialResult
from orchestrator.storage.variants import variant
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.sweep.systems import METRIC
from orchestrator.tables.freshness import version
from orchestrator.tables.records import read_whole_curves
from orchestrator.tables.rows import Row
from orchestrator.tracking.note import note_path, result_digest
from orchestrator.tracking.numbers import MOST_PER_BATCH, metrics_of, params_of, present_version, seconds_of, solved_by
from orchestrator.tracking.store import connect as connect
from orchestrator.tracking.store import locked, open_store, relocate, send_folder, sqlite_path
from orchestrator.words import trial_name

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment's page on its runs, where MLflow would guess, or ask."""
_REMEMBERED = ("idp.code", "idp.result", "idp.documents", "idp.variant")
_MEANS = 2
"""Version of how means are shown; another one shows them all again."""
_EPOCH = "epoch/"
_STATUS = {"COMPLETED": "FINISHED", "OUT_OF_MEMORY": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a run: MLflow's own record of it has every number, too much for thousands of runs."""

    run_id: str
    status: str
    start: int
    tags: tuple[str | None, ...]

    @classmethod
    def of(cls, run: Any) -> _Known:
        tags = tuple(run.data.tags.get(name) for name in _REMEMBERED)
        return cls(run.info.run_id, run.info.status, run.info.start_time or 0, tags)

    def tag(self, name: str) -> str | None:
        return self.tags[_REMEMBERED.index(name)]


class View:
    """A sweep's experiment in MLflow: a parent run, a run per trial, and a run per cell with mean and std.

    Every method may raise `StoreError`, and may be called again.

    Attributes:
        experiment: MLflow's id of the experiment.
        made: Whether this view made it.

    Args:
        uri: MLflow's store.
        sweep: The sweep.
        storage: The storage directory, whose trial directories are shown.
        say: Is told what had to be left out or put aside.
    """

    def __init__(self, uri: str, sweep: SweepSpec, storage: Storage, say: Callable[[str], object] = str) -> None:
        self._client = open_store(uri, say)
        self._sweep, self._storage, self._say = sweep, storage, say
        self._lock_path = note_path(storage, sweep.name, uri).with_suffix(".lock")
        self._variant, self._creator = variant(sweep), uuid.uuid4().hex
        self.made = False
        with self._creating():
            self.experiment = self._find_experiment(uri)
        self._runs: dict[str, _Known] = {}
        self._epochs: dict[str, int] = {}
        self._look()
        self._scope = ""
        self._parent = self._ensure("sweep", sweep.name, self._parent_tags())
        if not self._is_ours():
            self._scope = f":{self._variant}"
            name = f"{sweep.name} ({self._variant})"
            self._parent = self._ensure(f"sweep{self._scope}", name, self._parent_tags())

    def _find_experiment(self, uri: str) -> str:
        """Return the sweep's experiment, whose artifacts are never in another storage than this one."""
        database = sqlite_path(uri)
        place = None if database is None else self._storage.resolve().artifacts.as_uri()
        name = self._sweep.name
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None and place and experiment.artifact_location != place:
            if database == self._storage.resolve().mlflow:
                # The storage was moved or copied, the database with it.
                relocate(uri, experiment.experiment_id, experiment.artifact_location, place)
            elif experiment.artifact_location.startswith("file:") and experiment.artifact_location.endswith("/mlruns"):
                # A database that several storages share: this is another storage's experiment.
                name += f"@{hashlib.sha256(place.encode()).hexdigest()[:6]}"
                experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            self.made = True
            created: str = self._client.create_experiment(name, artifact_location=place, tags=_KIND)
            return created
        if experiment.lifecycle_stage != "active":
            self._client.restore_experiment(experiment.experiment_id)
        for tag, value in _KIND.items():
            if tag not in experiment.tags:
                self._client.set_experiment_tag(experiment.experiment_id, tag, value)
        experiment_id: str = experiment.experiment_id
        return experiment_id

    def _look(self) -> None:
        """Read which runs there are; of several with the same key all but the newest go."""
        from mlflow.entities import ViewType

        runs_of: dict[str, list[_Known]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment],
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=1000,
                page_token=token,
            )
            for run in page:
                if key := run.data.tags.get("idp.key"):
                    runs_of.setdefault(key, []).append(_Known.of(run))
            token = page.token
            if not token:
                break
        for key, runs in runs_of.items():
            # Two drivers made them at once, or an experiment was restored with all that had been replaced.
            *twins, self._runs[key] = sorted(runs, key=lambda run: (bool(run.tag("idp.result")), run.start, run.run_id))
            for twin in twins:
                self._client.delete_run(twin.run_id)

    def _parent_tags(self) -> dict[str, str]:
        return {"mlflow.note.content": self._sweep.description, "idp.variant": self._variant}

    def _is_ours(self) -> bool:
        """Return whether the experiment's first parent is this sweep's, not that of another one of its name."""
        if self._tag("sweep", "idp.variant") is None:
            self._client.set_tag(self._parent, "idp.variant", self._variant)
            return True
        return self._tag("sweep", "idp.variant") == self._variant

    @contextmanager
    def _creating(self) -> Iterator[bool]:
        """Keep other drivers of the sweep from creating anything; tells whether one has since this one last did."""
        with locked(self._lock_path) as file:
            file.seek(0)
            creator = file.read()
            yield creator != self._creator
            file.truncate(0)
            file.write(self._creator)
            file.flush()

    def _ensure(self, key: str, name: str, tags: dict[str, str], start_ms: int | None = None) -> str:
        """Return the id of the run with this key, made where there is none."""
        if key not in self._runs:
            with self._creating() as others:
                if others:
                    self._look()  # for all of them: the mark that follows says that this one has seen them
                if key not in self._runs:
                    self._create(key, name, tags, start_ms)
        return self._runs[key].run_id

    def _create(self, key: str, name: str, tags: dict[str, str], start_ms: int | None) -> None:
        parent = {} if key.startswith("sweep") else {"mlflow.parentRunId": self._parent}
        run = self._client.create_run(
            self.experiment,
            start_time=start_ms,
            run_name=name,
            tags={"idp.key": key, "mlflow.source.name": "idp", **parent, **tags},
        )
        self._runs[key] = _Known.of(run)
        self._epochs[run.info.run_id] = 0

    def show(self, trial: PlannedTrial, running: bool, epochs: bool = True) -> None:
        """Send what the trial's directory has and MLflow has not.

        Args:
            trial: The trial.
            running: True while a process works on it: then an old result in its directory is not its result.
            epochs: False where the curves in its directory may be of an earlier attempt.
        """
        result = None if running else self._storage.results([trial.trial_id]).get(trial.trial_id)
        if result is None and not running:
            return
        code = present_version(trial) if result is None else version(result.provenance)
        key = f"trial:{trial.trial_id}"
        old = self._runs.get(key)
        if old is not None and old.tag("idp.code") not in (None, code):
            # Numbers of other code belong to another run; a param or a step can't be overwritten.
            self._delete(key)
        content = "" if result is None else result_digest(result)
        if result is not None and self._tag(key, "idp.result") == content:
            if self._runs[key].status != _STATUS[result.status]:
                self._set_status(key, _STATUS[result.status])
            return
        directory = self._storage.trial(trial.trial_id)
        curves = read_whole_curves(directory, self._say) if epochs else []
        seconds = [seconds_of(record) for record in curves]
        # Copies and archives may have lost the file's time; MLflow takes no time before 1970.
        end = max(time.time() if result is None else directory.result_file.stat().st_mtime, sum(seconds) + 1.0)
        times = [end - sum(seconds[number + 1 :]) for number in range(len(curves))]
        tags = {"idp.trial_id": trial.trial_id, "idp.code": code, "idp.kind": "trial"}
        known = key in self._runs
        run_id = self._ensure(key, trial_name(trial), tags, int((end - sum(seconds)) * 1000))
        if self._runs[key].status != "RUNNING" and running:
            self._set_status(key, "RUNNING")
        metrics, facts = self._new_epochs(run_id, trial, curves, times), {}
        if result is not None:
            metrics.append(_numbers(trial, result, end))
            facts = _facts(result)
        # Of a run that is known, too: whoever made it may have died before they were sent.
        self._send(run_id, metrics, {} if known and result is None else params_of(trial), facts)
        if result is not None:
            self._set_status(key, _STATUS[result.status], int(end * 1000))
            # The digest goes last, alone: it says that everything before it has arrived.
            self._set_tag(key, "idp.result", content)

    def _delete(self, key: str) -> None:
        self._client.delete_run(self._runs.pop(key).run_id)

    def _tag(self, key: str, name: str) -> str | None:
        run = self._runs.get(key)
        return None if run is None else run.tag(name)

    def _set_tag(self, key: str, name: str, value: str) -> None:
        run = self._runs[key]
        self._client.set_tag(run.run_id, name, value)
        tags = tuple(value if other == name else old for other, old in zip(_REMEMBERED, run.tags, strict=True))
        self._runs[key] = replace(run, tags=tags)

    def _set_status(self, key: str, status: str, end_ms: int | None = None) -> None:
        run_id = self._runs[key].run_id
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=end_ms)
        self._runs[key] = replace(self._runs[key], status=status)

    def _new_epochs(
        self, run_id: str, trial: PlannedTrial, curves: list[dict[str, Any]], times: list[float]
    ) -> list[list[Any]]:
        """Return the metrics of each epoch that MLflow has not."""
        if run_id not in self._epochs:
            history = self._client.get_metric_history(run_id, "epoch/train_loss")
            history += self._client.get_metric_history(run_id, "epoch/train_loss_not_finite")
            if trial.spec.system is not None:
                history = self._client.get_metric_history(run_id, "epoch/train_seconds")
            self._epochs[run_id] = max((metric.step for metric in history), default=0)
        found = []
        for record, when in zip(curves, times, strict=True):
            if (epoch := int(record["epoch"])) > self._epochs[run_id]:
                values = {name: value for name, value in record.items() if name != "epoch"}
                solved = solved_by(trial) if record.get("not_finite") else ()
                found.append(metrics_of(values, epoch, when, solved, _EPOCH))
        return found

    def _send(self, run_id: str, metrics: list[list[Any]], params: dict[str, str], tags: dict[str, str]) -> None:
        """Send what belongs together in as few requests as can be; the lists of metrics are never parted."""
        from mlflow.entities import Param, RunTag

        batches: list[list[Any]] = [[]]
        for together in metrics:
            if len(batches[-1]) + len(together) > MOST_PER_BATCH:
                batches.append([])
            batches[-1] += together
        for number, batch in enumerate(batches):
            first, last = number == 0, number == len(batches) - 1
            words = [Param(name, value) for name, value in params.items()] if first else []
            said = [RunTag(name, value) for name, value in tags.items()] if last else []
            if batch or words or said:
                self._client.log_batch(run_id, metrics=batch, params=words, tags=said)
            steps = [metric.step for metric in batch if metric.key.startswith(_EPOCH)]
            self._epochs[run_id] = max(steps, default=self._epochs.get(run_id, 0))

    def close(self, table: Iterable[Row], status: str) -> None:
        """Bring the runs with mean and std up to date and end the parent run.

        Args:
            table: The rows of the sweep's table.
            status: How the sweep ended: FINISHED, FAILED or KILLED.
        """
        open_runs = {
            key: run for key, run in self._runs.items() if key.startswith("trial:") and run.status == "RUNNING"
        }
        results = self._storage.results([key.removeprefix("trial:") for key in open_runs])
        for key, run in open_runs.items():
            result = results.get(key.removeprefix("trial:"))
            # One that has ended meanwhile, in another driver, is that one's to show.
            if result is None or version(result.provenance) != run.tag("idp.code"):
                self._set_status(key, "KILLED")
        for row in table:
            self._show_mean(row)
        if self._runs[self._parent_key].status != status:
            self._set_status(self._parent_key, status)

    def _show_mean(self, row: Row) -> None:
        """Show a cell's means in a run that knows no others: what is left of older numbers would look like these."""
        place = json.dumps(row.axes, sort_keys=True) + self._scope
        key = "mean:" + hashlib.sha256(place.encode()).hexdigest()[:16]
        out_of_memory = row.outcomes.get("OUT_OF_MEMORY", 0)
        content = hashlib.sha256(json.dumps([_MEANS, asdict(row)], sort_keys=True).encode()).hexdigest()[:16]
        if self._tag(key, "idp.result") == content:
            return
        if key in self._runs:
            self._delete(key)
        if not row.used and not out_of_memory:
            return
        name = " ".join(["mean", *(f"{axis}={value}" for axis, value in row.axes.items())])
        params = {**{axis: str(value) for axis, value in row.axes.items()}, "seed": "all"}
        run_id = self._ensure(key, name[:250], {"idp.kind": "mean"})
        numbers = {
            "test_success_rate": row.success_rate,
            "test_success_rate_std": row.success_rate_std,
            "test_optimality": row.optimality,
            "test_spl": row.spl,
            "test_exact": row.exact,
            "test_searched": row.searched,
            "forward_seconds": row.forward_seconds,
            "backward_seconds": row.backward_seconds,
            "peak_bytes": row.peak_bytes,
            "train_seconds": row.train_seconds,
            "trials": row.used,
            "trials_expected": row.expected,
            "trials_diverged": row.trial_diverged,
            "trials_out_of_memory": out_of_memory,
            **{f"{METRIC}{name}": found.mean for name, found in row.metrics.items()},
            **{f"{METRIC}{name}_std": found.deviation for name, found in row.metrics.items()},
        }
        self._send(run_id, [metrics_of(numbers, row.used, time.time())], params, {"idp.result": content})
        self._set_status(key, "FINISHED")

    def attach(self, content: str, write: Callable[[Path], None]) -> None:
        """Bring the artifacts of the parent run up to date.

        Args:
            content: What tells one version of them from another.
            write: Writes them into an empty folder; called where MLflow has another version.
        """
        if self._tag(self._parent_key, "idp.documents") == content:
            return
        with tempfile.TemporaryDirectory(prefix="idp-documents-") as folder:
            write(Path(folder))
            send_folder(self._client, self._client.get_run(self._parent), Path(folder))
        # Last, alone: it says that all of them have arrived.
        self._set_tag(self._parent_key, "idp.documents", content)

    @property
    def _parent_key(self) -> str:
        return f"sweep{self._scope}"


def _numbers(trial: PlannedTrial, result: TrialResult, end: float) -> list[Any]:
    """Return the metrics of a result."""
    numbers = {name: getattr(result, name) for name in TrialResult.model_fields}
    numbers |= {f"{METRIC}{name}": value for name, value in result.metrics.items()}
    return metrics_of(numbers, result.epochs, end, solved_by(trial) if result.not_finite else ())


def _facts(result: TrialResult) -> dict[str, str]:
    """Return the tags that say how a result came about."""
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
    return {name: value for name, value in facts.items() if value}
