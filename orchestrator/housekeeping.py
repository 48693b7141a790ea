"""What a storage holds that can be made again, or that a killed process left: listed, and freed when asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from datagen.manifest import DatasetError
from datagen.parquet import load_manifest
from datagen.task import dataset_id
from orchestrator.checkpoints import PREVIOUS
from orchestrator.leases import free, look
from orchestrator.results import list_results, trial_directory
from orchestrator.specs import TrialSpec

Kind = Literal["left over", "dataset"]


@dataclass(frozen=True)
class Rebuildable:
    """Something in the storage that no result is lost with.

    Attributes:
        path: A file or a folder.
        kind: "left over" by a process that was killed, or a "dataset" that its spec makes again, byte by byte.
        bytes: Its size.
        reason: Why it can go.
    """

    path: Path
    kind: Kind
    bytes: int
    reason: str


def running(storage: Path) -> list[str]:
    """Return the trials that a process works on, as far as can be told at once."""
    return [path.name for path in _trials(storage) if not free(look(path))]


def rebuildable(storage: Path) -> list[Rebuildable]:
    """Return what can be freed where nothing runs, largest first.

    A generated dataset can go; whether its trials are done is in the reason. An imported one can't be made again.
    """
    found = [*_left_over(storage), *_datasets(storage)]
    return sorted(found, key=lambda item: -item.bytes)


def remove(items: list[Rebuildable]) -> None:
    """Remove them."""
    for item in items:
        if item.path.is_dir():
            # Without its manifest a set is incomplete, not damaged, should this be cut short.
            (item.path / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)


def _trials(storage: Path) -> list[Path]:
    folder = storage / "trials"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _left_over(storage: Path) -> Iterator[Rebuildable]:
    for path in sorted(storage.rglob(".*.tmp")):
        yield Rebuildable(path, "left over", path.stat().st_size, "half-written file of a killed process")
    for path in sorted((storage / "sweeps").glob("*/ray")):
        yield Rebuildable(path, "left over", _size(path), "scheduler's notes of a killed run")
    results = list_results(storage)
    for trial in _trials(storage):
        path = trial / PREVIOUS
        if path.exists() and trial.name in results and results[trial.name].final:
            yield Rebuildable(path, "left over", path.stat().st_size, "checkpoint before the last of a finished trial")


def _datasets(storage: Path) -> Iterator[Rebuildable]:
    folder = storage / "datasets"
    wanted = _unfinished(storage)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            manifest = load_manifest(path)
        except DatasetError:
            continue  # unfinished or damaged: the next run goes on with it
        if manifest.source == "generated":
            waiting = wanted.get(path.name, 0)
            reason = f"{waiting} unfinished trials need it" if waiting else "no unfinished trial needs it"
            yield Rebuildable(path, "dataset", _size(path), reason)


def _unfinished(storage: Path) -> dict[str, int]:
    """Return how many trials without a final result use each dataset."""
    results = list_results(storage)
    counts: dict[str, int] = {}
    for trial in _trials(storage):
        if trial.name in results and results[trial.name].final:
            continue
        try:
            spec = TrialSpec.model_validate_json((trial_directory(storage, trial.name) / "spec.json").read_bytes())
        except (OSError, ValidationError, ValueError):
            continue  # no trial, or of another version
        counts[dataset_id(spec.data)] = counts.get(dataset_id(spec.data), 0) + 1
    return counts


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
