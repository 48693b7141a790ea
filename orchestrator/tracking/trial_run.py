"""What MLflow is told of one trial, from its directory; pure but for reading that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.tasks.registry import dataset_id
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import PlannedTrial
from orchestrator.sweep.systems import METRIC
from orchestrator.tables.freshness import version
from orchestrator.tables.records import read_whole_curves
from orchestrator.tracking.note import result_digest
from orchestrator.tracking.numbers import metrics_of, params_of, present_version, seconds_of, solved_by
from orchestrator.words import trial_name

EPOCH = "epoch/"
"""Stands before the names of what there is of every epoch."""
STATUS = {"COMPLETED": "FINISHED", "OUT_OF_MEMORY": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
CONTEXT = "mlflow.data.context"
_LARGEST_FILE = 4_000_000


@dataclass(frozen=True)
class Data:
    """What a trial learned from, as MLflow names it.

    Attributes:
        name: The dataset's id.
        digest: The hash at its end.
        source: Where it is, as JSON.
        profile: How large, as JSON.
    """

    name: str
    digest: str
    source: str
    profile: str

    def as_input(self) -> Any:
        """Return it as MLflow's input of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(self.name, self.digest, "local", self.source, profile=self.profile)
        return DatasetInput(dataset, [InputTag(CONTEXT, "training")])


@dataclass(frozen=True)
class TrialRun:
    """A trial as MLflow shows it.

    Attributes:
        key: What finds the run again.
        name: For people.
        code: The version of the code that its numbers are of.
        start: When it began, in milliseconds.
        end: When its result was written, in milliseconds.
        status: MLflow's word for how it ended, RUNNING where it has not.
        tags: What is known from its beginning.
        params: Its settings.
        epochs: MLflow's metrics of each epoch, by number.
        numbers: MLflow's metrics of its result.
        facts: Tags that say how its result came about; the last says which result it is.
        data: What it learned from.
        files: What is kept of it as artifacts.
    """

    key: str
    name: str
    code: str
    start: int
    end: int
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    epochs: dict[int, list[Any]]
    numbers: list[Any]
    facts: dict[str, str]
    data: Data
    files: tuple[Path, ...]


def trial_key(trial: PlannedTrial) -> str:
    """Return what finds the trial's run again."""
    return f"trial:{trial.trial_id}"


def trial_run(
    trial: PlannedTrial,
    storage: Storage,
    result: TrialResult | None,
    label: str,
    say: Callable[[str], object],
    *,
    epochs: bool = True,
) -> TrialRun:
    """Return what is to be shown of a trial.

    Args:
        trial: The trial.
        storage: The storage directory.
        result: Its result; None while it runs.
        label: In words, the variant of the sweep.
        say: Is told what is damaged.
        epochs: False where the curves in its directory may be of an earlier attempt.
    """
    directory = storage.trial(trial.trial_id)
    curves = read_whole_curves(directory, say) if epochs else []
    seconds = [seconds_of(record) for record in curves]
    # Copies and archives may have lost the file's time; MLflow takes no time before 1970.
    end = max(time.time() if result is None else directory.result_file.stat().st_mtime, sum(seconds) + 1.0)
    times = [end - sum(seconds[number + 1 :]) for number in range(len(curves))]
    code = present_version(trial) if result is None else version(result.provenance)
    path = str(directory.path.resolve())
    kept = (directory.spec_file, directory.result_file, directory.curves_file, directory.log)
    return TrialRun(
        key=trial_key(trial),
        name=trial_name(trial) + (f" ({label})" if label else ""),
        code=code,
        start=int((end - sum(seconds)) * 1000),
        end=int(end * 1000),
        status="RUNNING" if result is None else STATUS[result.status],
        tags={
            "idp.trial_id": trial.trial_id,
            "idp.code": code,
            "idp.kind": "trial",
            "idp.directory": path,
            "mlflow.note.content": f"Its directory: `{path}`",
        },
        params=params_of(trial),
        epochs={int(r["epoch"]): _epoch(trial, r, when) for r, when in zip(curves, times, strict=True)},
        numbers=[] if result is None else _numbers(trial, result, end),
        facts={} if result is None else _facts(result),
        data=_data(trial, storage),
        files=tuple(file for file in kept if file.is_file() and file.stat().st_size <= _LARGEST_FILE),
    )


def _epoch(trial: PlannedTrial, record: dict[str, Any], when: float) -> list[Any]:
    values = {name: value for name, value in record.items() if name != "epoch"}
    solved = solved_by(trial) if record.get("not_finite") else ()
    return metrics_of(values, int(record["epoch"]), when, solved, EPOCH)


def _numbers(trial: PlannedTrial, result: TrialResult, end: float) -> list[Any]:
    # Step 0: MLflow draws bars of what has no steps, and of anything else a line, here of one point.
    numbers = {name: getattr(result, name) for name in TrialResult.model_fields}
    numbers |= {f"{METRIC}{name}": value for name, value in result.metrics.items()}
    return metrics_of(numbers, 0, end, solved_by(trial) if result.not_finite else ())


def _facts(result: TrialResult) -> dict[str, str]:
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
    return {**{name: value for name, value in facts.items() if value}, "idp.result": result_digest(result)}


def _data(trial: PlannedTrial, storage: Storage) -> Data:
    spec = trial.spec.data
    name = dataset_id(spec)
    return Data(
        name=name,
        digest=name.rpartition("-")[2],
        source=json.dumps({"uri": storage.resolve().dataset(spec).as_uri()}),
        profile=json.dumps({"train": spec.train, "valid": spec.valid, "test": spec.test}),
    )
