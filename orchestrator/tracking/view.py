"""A sweep's experiment in MLflow: runs for the sweep, its trials and its means, sent as far as MLflow has them not."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.storage.layout import Storage
from orchestrator.storage.results import TrialResult
from orchestrator.storage.variants import variant
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tables.freshness import version
from orchestrator.tables.rows import Row
from orchestrator.tables.table import varying
from orchestrator.tracking.bulk import insert_runs, keep_files
from orchestrator.tracking.comparison import colour_of, comparison
from orchestrator.tracking.experiment import REMEMBERED, KnownRun, find_experiment
from orchestrator.tracking.note import note_path, result_digest
from orchestrator.tracking.numbers import MOST_PER_BATCH, means_of, means_together, metrics_of, shared_params
from orchestrator.tracking.store import StoreError, locked, open_store, send_folder, sqlite_path
from orchestrator.tracking.store import connect as connect
from orchestrator.tracking.trial_run import EPOCH, STATUS, TrialRun, trial_key, trial_run
from orchestrator.words import cell_name

_MEANS = 4
"""Version of how means are shown; another one shows them all again."""
_AT_ONCE = 200
"""Finished trials in one transaction."""


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
        self._database = sqlite_path(uri)
        self._sweep, self._storage, self._say = sweep, storage, say
        self._lock_path = note_path(storage, sweep.name, uri).with_suffix(".lock")
        self._variant, self._creator, self._behind = variant(sweep), uuid.uuid4().hex, True
        with self._creating():
            self._experiment = find_experiment(self._client, uri, sweep.name, storage)
        self.experiment, self.made = self._experiment.id, self._experiment.made
        self._takes_files = True
        self._runs: dict[str, KnownRun] = {}
        self._epochs: dict[str, int] = {}
        self._look()
        self._scope = ""
        self._label = sweep.label
        self._parent = self._ensure("sweep", self._named(sweep.name), self._parent_tags())
        if not self._is_ours():
            self._scope, self._label = f":{self._variant}", sweep.label or self._variant
            self._parent = self._ensure(f"sweep{self._scope}", self._named(sweep.name), self._parent_tags())

    def _named(self, name: str) -> str:
        """Return a run's name, which tells variants of a sweep apart."""
        return f"{name} ({self._label})"[:250] if self._label else name[:250]

    def _look(self, key: str | None = None) -> None:
        """Read which runs there are, or the one with a key; of several with the same key all but the newest go."""
        from mlflow.entities import ViewType

        runs_of: dict[str, list[KnownRun]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment],
                filter_string="" if key is None else f"tags.\"idp.key\" = '{key}'",
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=1000,
                page_token=token,
            )
            for run in page:
                if found := run.data.tags.get("idp.key"):
                    runs_of.setdefault(found, []).append(KnownRun.of(run))
            token = page.token
            if not token:
                break
        self._behind = self._behind and key is not None
        for found, runs in runs_of.items():
            # Two drivers made them at once, or an experiment was restored with all that had been replaced.
            *twins, self._runs[found] = sorted(
                runs, key=lambda run: (bool(run.tag("idp.result")), run.start, run.run_id)
            )
            for twin in twins:
                self._client.delete_run(twin.run_id)

    def _parent_tags(self) -> dict[str, str]:
        kind = {"idp.kind": "sweep", "idp.variant": self._variant}
        return {"mlflow.note.content": self._sweep.description, **kind}

    def _is_ours(self) -> bool:
        """Return whether the experiment's first parent is this sweep's, not that of another one of its name."""
        if self._tag("sweep", "idp.variant") is None:
            self._client.set_tag(self._parent, "idp.variant", self._variant)
            return True
        return self._tag("sweep", "idp.variant") == self._variant

    @contextmanager
    def _creating(self) -> Iterator[bool]:
        """Keep other drivers of the sweep from creating anything; tells whether there may be runs of theirs to read."""
        with locked(self._lock_path) as file:
            file.seek(0)
            self._behind = self._behind or file.read() != self._creator
            yield self._behind
            file.truncate(0)
            file.write(self._creator)
            file.flush()

    def _ensure(self, key: str, name: str, tags: dict[str, str], start_ms: int | None = None) -> str:
        """Return the id of the run with this key, made where there is none."""
        if key not in self._runs:
            with self._creating() as others:
                if others:
                    self._look(key)  # alone: of thousands of runs, all take seconds, which others wait for
                if key not in self._runs:
                    self._create(key, name, tags, start_ms)
        return self._runs[key].run_id

    def _create(self, key: str, name: str, tags: dict[str, str], start_ms: int | None) -> None:
        # Means stand beside their sweep, not below it, where MLflow shows neither them nor their charts.
        parent = {"mlflow.parentRunId": self._parent} if key.startswith("trial:") else {}
        run = self._client.create_run(
            self.experiment,
            start_time=start_ms,
            run_name=name,
            tags={"idp.key": key, "mlflow.source.name": "idp", **parent, **tags},
        )
        self._runs[key] = KnownRun.of(run)
        self._epochs[run.info.run_id] = 0

    def show(self, trial: PlannedTrial, running: bool, epochs: bool = True) -> None:
        """Send what the trial's directory has and MLflow has not.

        Args:
            trial: The trial.
            running: True while a process works on it: then an old result in its directory is not its result.
            epochs: False where the curves in its directory may be of an earlier attempt.
        """
        result = None if running else self._storage.results([trial.trial_id]).get(trial.trial_id)
        if (result is None and not running) or (result is not None and self._is_shown(trial, result)):
            return
        run = trial_run(trial, self._storage, result, self._label, self._say, epochs=epochs)
        self._forget_other_code(run)
        known = run.key in self._runs
        run_id = self._ensure(run.key, run.name, run.tags, run.start)
        if running and self._runs[run.key].status != "RUNNING":
            self._set_status(run.key, "RUNNING")
        metrics = self._new_epochs(run_id, run)
        if result is not None:
            metrics.append(run.numbers)
            self._keep(run, run_id)
        # Of a run that is known, too: whoever made it may have died before they were sent. The last of the facts says
        # that all has arrived, but for how it ended, which is looked at anyway.
        self._send(run_id, metrics, {} if known and result is None else run.params, run.facts)
        if result is not None:
            self._remember(run.key, run.facts)
            self._set_status(run.key, run.status, run.end)

    def show_finished(self, trials: Iterable[PlannedTrial], results: Mapping[str, TrialResult]) -> None:
        """Show trials that have ended: those that an SQLite file knows no runs of in a transaction for many of them.

        Args:
            trials: The trials.
            results: Their results; those without one are left out.
        """
        ended = [trial for trial in trials if trial.trial_id in results]
        new = [trial for trial in ended if trial_key(trial) not in self._runs] if self._database else []
        for first in range(0, len(new), _AT_ONCE):
            some = new[first : first + _AT_ONCE]
            with self._creating() as others:
                if others:
                    self._look()
                runs = [
                    trial_run(trial, self._storage, results[trial.trial_id], self._label, self._say)
                    for trial in some
                    if trial_key(trial) not in self._runs
                ]
                assert self._database is not None
                ids = insert_runs(self._database, self.experiment, self._experiment.artifacts, self._parent, runs)
            if ids is None:
                break  # they go one by one
            for run in runs:
                tags = {**run.tags, **run.facts}
                remembered = tuple(tags.get(name) for name in REMEMBERED)
                self._runs[run.key] = KnownRun(ids[run.key], run.status, run.start, remembered)
        for trial in ended:
            self.show(trial, running=False)

    def _is_shown(self, trial: PlannedTrial, result: TrialResult) -> bool:
        key = trial_key(trial)
        if self._tag(key, "idp.result") != result_digest(result):
            return False
        if self._runs[key].status != STATUS[result.status]:
            self._set_status(key, STATUS[result.status])
        return True

    def _forget_other_code(self, run: TrialRun) -> None:
        """Delete a run with numbers of other code: a param or a step can't be overwritten."""
        old = self._runs.get(run.key)
        if old is not None and old.tag("idp.code") not in (None, run.code):
            self._delete(run.key)

    def _keep(self, run: TrialRun, run_id: str) -> None:
        """Send what a trial learned from, and its files, which are a convenience: without them the view is whole."""
        self._client.log_inputs(run_id, datasets=[run.data.as_input()])
        if self._experiment.artifacts.startswith("file:"):
            keep_files(run.files, f"{self._experiment.artifacts}/{run_id}/artifacts")
        elif self._takes_files:
            try:
                for file in run.files:
                    self._client.log_artifact(run_id, str(file))
            except StoreError as error:
                self._takes_files = False
                self._say(f"MLflow takes no files of trials: {error}")

    def _delete(self, key: str) -> None:
        self._client.delete_run(self._runs.pop(key).run_id)

    def _tag(self, key: str, name: str) -> str | None:
        run = self._runs.get(key)
        return None if run is None else run.tag(name)

    def _set_tag(self, key: str, name: str, value: str) -> None:
        self._client.set_tag(self._runs[key].run_id, name, value)
        self._remember(key, {name: value})

    def _remember(self, key: str, tags: Mapping[str, str]) -> None:
        run = self._runs[key]
        new = tuple(tags.get(name, old) for name, old in zip(REMEMBERED, run.tags, strict=True))
        self._runs[key] = replace(run, tags=new)

    def _set_status(self, key: str, status: str, end_ms: int | None = None) -> None:
        run_id = self._runs[key].run_id
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=end_ms)
        self._runs[key] = replace(self._runs[key], status=status)

    def _new_epochs(self, run_id: str, run: TrialRun) -> list[list[Any]]:
        """Return the metrics of each epoch that MLflow has not."""
        if run_id not in self._epochs:
            history = self._client.get_metric_history(run_id, f"{EPOCH}train_seconds")
            self._epochs[run_id] = max((metric.step for metric in history), default=0)
        return [metrics for epoch, metrics in run.epochs.items() if epoch > self._epochs[run_id]]

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
            steps = [metric.step for metric in batch if metric.key.startswith(EPOCH)]
            self._epochs[run_id] = max(steps, default=self._epochs.get(run_id, 0))

    def close(
        self,
        table: Sequence[Row],
        trials: Iterable[PlannedTrial],
        status: str,
        said: str,
        searched: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Bring the runs with mean and std up to date, and the page that compares them, and end the parent run.

        Args:
            table: The rows of the sweep's table.
            trials: The trials of the sweep.
            status: How the sweep ended: FINISHED, FAILED or KILLED.
            said: The table in Markdown.
            searched: Of a search, by trial, what its suggestion has reached of what is made largest.
        """
        self._end_open_runs()
        cells: dict[str, list[PlannedTrial]] = {}
        for trial in trials:
            cells.setdefault(_place(trial.cell), []).append(trial)
        # In the order of the table, which MLflow can put runs in by their start alone.
        first = int(time.time() * 1000) - len(table)
        axes = varying([row.axes for row in table])
        for number, row in enumerate(table):
            self._show_mean(
                row, cells[_place(row.axes)], self._named(cell_name(row.axes, axes)), first + number, searched
            )
        self._show_together(means_together(table, axes), said)
        metric = self._sweep.search.metric if self._sweep.search else None
        for name, value in comparison(self._variant, axes, len(table), metric).items():
            if self._experiment.tags.get(name) != value:
                self._client.set_experiment_tag(self.experiment, name, value)
                self._experiment.tags[name] = value
        if self._runs[self._parent_key].status != status:
            self._set_status(self._parent_key, status)

    def _end_open_runs(self) -> None:
        open_runs = {
            key: run for key, run in self._runs.items() if key.startswith("trial:") and run.status == "RUNNING"
        }
        results = self._storage.results([key.removeprefix("trial:") for key in open_runs])
        for key, run in open_runs.items():
            result = results.get(key.removeprefix("trial:"))
            # One that has ended meanwhile, in another driver, is that one's to show.
            if result is None or version(result.provenance) != run.tag("idp.code"):
                self._set_status(key, "KILLED")

    def _show_mean(
        self, row: Row, trials: Sequence[PlannedTrial], name: str, start: int, searched: Mapping[str, float]
    ) -> None:
        """Show a cell's means in a run that knows no others: what is left of older numbers would look like these."""
        key = "mean:" + hashlib.sha256((_place(row.axes) + self._scope).encode()).hexdigest()[:16]
        params = shared_params(trials)
        search = self._sweep.search
        reached = {} if search is None else {search.metric: searched.get(trials[0].trial_id)}
        content = _digest([_MEANS, name, asdict(row), params, reached])
        if self._tag(key, "idp.result") == content:
            return
        if key in self._runs:
            self._delete(key)
        if not row.used and not row.outcomes.get("OUT_OF_MEMORY"):
            return
        colour = colour_of(list(self._sweep.planners).index(str(row.axes["planner"])))
        tags = {"idp.kind": "mean", "idp.variant": self._variant, "mlflow.runColor": colour}
        run_id = self._ensure(key, name, tags, start)
        # Step 0, as for a trial's result.
        metrics = metrics_of(means_of(row) | reached, 0, time.time())
        self._send(run_id, [metrics], params, {"idp.result": content})
        # As long as a trial trains on average.
        self._set_status(key, "FINISHED", start + int(1000 * (row.train_seconds or 0.0)))

    def _show_together(self, means: Mapping[str, Any], said: str) -> None:
        """Give the sweep's own run the table, and the means of all cells as metrics."""
        together = metrics_of(means, 0, time.time())
        content = _digest([_MEANS, said, [[metric.key, metric.value] for metric in together]])
        if self._tag(self._parent_key, "idp.result") != content:
            tags = {"mlflow.note.content": said, "idp.result": content}
            for first in range(0, len(together), MOST_PER_BATCH):
                self._send(self._parent, [together[first : first + MOST_PER_BATCH]], {}, {})
            self._send(self._parent, [], {}, tags)
            self._remember(self._parent_key, tags)

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


def _place(axes: Mapping[str, Any]) -> str:
    return json.dumps(axes, sort_keys=True)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
