"""A sweep's experiment in MLflow: found, taken up again, or made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from orchestrator.storage.layout import Storage
from orchestrator.tracking.store import Client, relocate, sqlite_path

_TAGS = {
    # Opens the experiment's page on its runs, where MLflow would guess, or ask.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "test_success_rate",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}

REMEMBERED = ("idp.code", "idp.result", "idp.documents", "idp.variant")
"""The tags of a run that are looked at again."""


@dataclass(frozen=True)
class Experiment:
    """A sweep's experiment.

    Attributes:
        id: MLflow's id.
        artifacts: Where it keeps artifacts.
        tags: Its tags.
        made: Whether it was made just now.
    """

    id: str
    artifacts: str
    tags: dict[str, str]
    made: bool


def find_experiment(client: Client, uri: str, name: str, storage: Storage) -> Experiment:
    """Return the sweep's experiment, whose artifacts are never in another storage than this one.

    Args:
        client: MLflow's client.
        uri: MLflow's store.
        name: Of the sweep.
        storage: The storage directory.
    """
    database = sqlite_path(uri)
    place = None if database is None else storage.resolve().artifacts.as_uri()
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and place and experiment.artifact_location != place:
        if database == storage.resolve().mlflow:
            # The storage was moved or copied, the database with it.
            relocate(uri, experiment.experiment_id, experiment.artifact_location, place)
        elif experiment.artifact_location.startswith("file:") and experiment.artifact_location.endswith("/mlruns"):
            # A database that several storages share: this is another storage's experiment.
            name += f"@{hashlib.sha256(place.encode()).hexdigest()[:6]}"
            experiment = client.get_experiment_by_name(name)
    if experiment is None:
        created: str = client.create_experiment(name, artifact_location=place, tags=_TAGS)
        return Experiment(created, client.get_experiment(created).artifact_location, dict(_TAGS), made=True)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    for tag, value in _TAGS.items():
        if tag not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, tag, value)
    artifacts = experiment.artifact_location if place is None or database != storage.resolve().mlflow else place
    return Experiment(experiment.experiment_id, artifacts, dict(experiment.tags), made=False)


@dataclass(frozen=True, slots=True)
class KnownRun:
    """What is remembered of a run: MLflow's own record of it has every number, too much for thousands of runs."""

    run_id: str
    status: str
    start: int
    tags: tuple[str | None, ...]

    @classmethod
    def of(cls, run: Any) -> KnownRun:
        """Return what is remembered of MLflow's own record."""
        tags = tuple(run.data.tags.get(name) for name in REMEMBERED)
        return cls(run.info.run_id, run.info.status, run.info.start_time or 0, tags)

    def tag(self, name: str) -> str | None:
        """Return one of `REMEMBERED`."""
        return self.tags[REMEMBERED.index(name)]
