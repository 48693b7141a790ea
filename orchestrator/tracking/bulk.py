"""Many finished runs into MLflow's SQLite file at once: its own calls take a transaction for each thing of each run."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from orchestrator.tracking.store import StoreError, folder_of
from orchestrator.tracking.trial_run import CONTEXT, TrialRun

_RUNS = (
    "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, "
    "end_time, source_version, lifecycle_stage, artifact_uri, experiment_id) "
    "VALUES (?, ?, 'UNKNOWN', '', '', 'unknown', ?, ?, ?, '', 'active', ?, ?)"
)
_METRICS = "INSERT INTO {} (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
_DATASETS = (
    "INSERT OR IGNORE INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source, "
    "dataset_profile) VALUES (?, ?, ?, ?, 'local', ?, ?)"
)
_FIND_DATASET = "SELECT dataset_uuid FROM datasets WHERE experiment_id = ? AND name = ? AND digest = ?"
_INPUTS = (
    "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id) "
    "VALUES (?, 'DATASET', ?, 'RUN', ?)"
)


def insert_runs(
    database: Path, experiment: str, location: str, parent: str, runs: Sequence[TrialRun]
) -> dict[str, str] | None:
    """Put finished trials that MLflow knows no run of into its database, all or none; return the runs' ids by key.

    Args:
        database: MLflow's SQLite file.
        experiment: MLflow's id of the experiment.
        location: Where the experiment keeps its artifacts.
        parent: The run below which they are shown.
        runs: The trials.

    Returns:
        None where this version of MLflow has other tables: then nothing has been written.

    Raises:
        StoreError: The file can't be written.
    """
    ids = {run.key: uuid.uuid4().hex for run in runs}
    artifacts = {run.key: f"{location}/{ids[run.key]}/artifacts" for run in runs}
    for run in runs:
        keep_files(run.files, artifacts[run.key])
    try:
        with closing(sqlite3.connect(database, timeout=20.0)) as connection, connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            for run in runs:
                _insert(connection, run, ids[run.key], artifacts[run.key], int(experiment), parent)
    except sqlite3.Error as error:
        for uri in artifacts.values():
            shutil.rmtree(folder_of(uri).parent, ignore_errors=True)
        if _is_of_other_tables(error):
            return None
        raise StoreError(f"{database}: {error}") from error
    return ids


def _is_of_other_tables(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.IntegrityError) or "no such" in str(error) or "has no column" in str(error)


def _insert(
    connection: sqlite3.Connection, run: TrialRun, run_id: str, artifacts: str, experiment: int, parent: str
) -> None:
    connection.execute(_RUNS, (run_id, run.name, run.status, run.start, run.end, artifacts, experiment))
    tags = {"idp.key": run.key, "mlflow.source.name": "idp", "mlflow.parentRunId": parent, "mlflow.runName": run.name}
    tags |= {**run.tags, **run.facts}
    connection.executemany(
        "INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", ((run_id, *item) for item in tags.items())
    )
    connection.executemany(
        "INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", ((run_id, *item) for item in run.params.items())
    )
    metrics = [metric for together in (run.numbers, *run.epochs.values()) for metric in together]
    latest = {metric.key: metric for metric in metrics}
    for table, some in (("metrics", metrics), ("latest_metrics", latest.values())):
        rows = ((run_id, metric.key, metric.value, metric.timestamp, metric.step) for metric in some)
        connection.executemany(_METRICS.format(table), rows)
    data = run.data
    connection.execute(_DATASETS, (uuid.uuid4().hex, experiment, data.name, data.digest, data.source, data.profile))
    ((dataset,),) = connection.execute(_FIND_DATASET, (experiment, data.name, data.digest)).fetchall()
    used = uuid.uuid4().hex
    connection.execute(_INPUTS, (used, dataset, run_id))
    connection.execute("INSERT INTO input_tags (input_uuid, name, value) VALUES (?, ?, 'training')", (used, CONTEXT))


def keep_files(files: Iterable[Path], artifacts: str) -> None:
    """Copy a trial's files to the artifacts of its run.

    Args:
        files: The files.
        artifacts: A `file:` address.

    Raises:
        StoreError: It can't be written.
    """
    folder = folder_of(artifacts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}") from error
