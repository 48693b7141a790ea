"""What a storage holds that can be made again, or that a killed process left: listed, and freed when asked.

Only what this project's own code makes is looked at, by its exact name and in the folders where it makes it; links are
never followed. Whoever writes into a storage without holding a trial says so by `leases.at_work`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datagen.storage.dataset import load_manifest
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import dataset_id
from orchestrator.storage.checkpoints import PREVIOUS
from orchestrator.storage.files import read_stored
from orchestrator.storage.leases import EXPIRY_SECONDS, WORKING, free, look, silent
from orchestrator.storage.results import ResultError, is_trial_id, list_results, trial_directory
from orchestrator.sweep.specs import TrialSpec

Kind = Literal["left over", "dataset", "elsewhere"]

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{12}|[a-z0-9_]{8})\.tmp")
"""Names that `write_bytes` and the leases give, and `tempfile.mkstemp` for datasets."""

_DATASET = re.compile(r".+-[0-9]+-[0-9a-f]{12}")
_SCRATCH = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Rebuildable:
    """Something in the storage that no result is lost with.

    Attributes:
        path: A file or a folder.
        kind: "left over" by a process that was killed, a "dataset" that its spec makes again, byte by byte, or one that
            lies "elsewhere", behind a link: others may use it, so it is never freed from here.
        bytes: Its size.
        reason: Why it can go.
    """

    path: Path
    kind: Kind
    bytes: int
    reason: str


def check_storage(storage: Path) -> None:
    """Raise ResultError where a folder is no storage: nothing in it is ours to remove."""
    if not (_trials(storage) or _dataset_folders(storage)):
        raise ResultError(f"{storage}: expected a storage, with trials/ID or datasets/NAME in it; nothing was touched")


def running(storage: Path, *, wait: bool = False) -> list[str]:
    """Return what processes work on: trials, and runs as a whole.

    Args:
        storage: The storage directory.
        wait: Wait for a sign of life from each, to leave out owners that are gone.
    """
    held = [path for path in (*_trials(storage), *_folders(storage / WORKING)) if not free(look(path))]
    gone = {path for path, _ in silent(held if wait else [])}
    return [path.name for path in held if path not in gone]


def rebuildable(storage: Path) -> list[Rebuildable]:
    """Return what can be freed where nothing runs, largest first.

    A generated dataset can go; whether its trials are done is in the reason. An imported one can't be made again.
    """
    found = [*_left_over(storage), *_datasets(storage)]
    return sorted(found, key=lambda item: -item.bytes)


def remove(items: list[Rebuildable]) -> None:
    """Remove them; what has become a link meanwhile, or is gone, is left alone."""
    for item in items:
        if item.path.is_symlink() or item.kind == "elsewhere":
            continue
        if item.path.is_dir():
            # Without its manifest a set is incomplete, not damaged, should this be cut short.
            (item.path / "manifest.json").unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, links to others left out."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _trials(storage: Path) -> list[Path]:
    return [path for path in _folders(storage / "trials") if is_trial_id(path.name)]


def _dataset_folders(storage: Path) -> list[Path]:
    return [path for path in _folders(storage / "datasets") if _DATASET.fullmatch(path.name)]


def _left_over(storage: Path) -> Iterator[Rebuildable]:
    results = list_results(storage)
    for trial in _trials(storage):
        # The trial's lease says whether somebody writes here.
        for folder in (trial, *_folders(trial)):
            yield from _temporaries(folder, before=float("inf"))
        path = trial / PREVIOUS
        if path.is_file() and not path.is_symlink() and trial.name in results and results[trial.name].final:
            yield Rebuildable(path, "left over", path.stat().st_size, "checkpoint before the last of a finished trial")
    # A beat's worth of time for whoever writes without a sign.
    before = _now(storage) - EXPIRY_SECONDS
    for folder in _dataset_folders(storage):
        yield from _temporaries(folder, before)
    for sweep in _folders(storage / "sweeps"):
        for folder in (sweep, *_folders(sweep)):
            yield from _temporaries(folder, before)
        for scratch in _folders(sweep / "ray"):
            if _SCRATCH.fullmatch(scratch.name) and _newest(scratch) < before:
                yield Rebuildable(scratch, "left over", _size(scratch), "scheduler's notes of a run that was killed")
    for mark in _folders(storage / WORKING):
        yield Rebuildable(mark, "left over", _size(mark), "mark of a run that was killed")


def _temporaries(folder: Path, before: float) -> Iterator[Rebuildable]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not _TEMPORARY.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):  # its writer has just finished
                found = entry.stat(follow_symlinks=False)
                if found.st_mtime < before:
                    path = folder / entry.name
                    yield Rebuildable(path, "left over", found.st_size, "half-written file of a killed process")


def _now(storage: Path) -> float:
    """Return the time by the clock that dates the storage's files, which may be another machine's."""
    probe = storage / f".time.{uuid.uuid4().hex[:12]}.tmp"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    except OSError:
        return time.time()  # it can't be written to, so nothing will be removed either
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _datasets(storage: Path) -> Iterator[Rebuildable]:
    wanted = _unfinished(storage)
    folder, here = storage / "datasets", _dataset_folders(storage)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not _DATASET.fullmatch(path.name) or not path.is_dir():
            continue
        try:
            manifest = load_manifest(path)
        except DatasetError:
            continue  # unfinished or damaged: the next run goes on with it
        if manifest.source == "generated" and manifest.dataset_id == path.name:
            waiting = wanted.get(path.name, 0)
            reason = f"{waiting} unfinished trials need it" if waiting else "no unfinished trial needs it"
            if path in here:
                yield Rebuildable(path, "dataset", _size(path), reason)
            else:
                yield Rebuildable(path, "elsewhere", _size(path), f"{reason}; behind a link, so it stays")


def _unfinished(storage: Path) -> dict[str, int]:
    """Return how many trials without a final result use each dataset."""
    results = list_results(storage)
    counts: dict[str, int] = {}
    for trial in _trials(storage):
        if trial.name in results and results[trial.name].final:
            continue
        try:
            spec = TrialSpec.model_validate_json(read_stored(trial_directory(storage, trial.name) / "spec.json"))
        except (OSError, ValueError):
            continue  # no trial, or of another version, or of a plug-in that is not loaded
        counts[dataset_id(spec.data)] = counts.get(dataset_id(spec.data), 0) + 1
    return counts


def _files(folder: Path) -> Iterator[os.stat_result]:
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(place, name))


def _size(folder: Path) -> int:
    return sum(found.st_size for found in _files(folder))


def _newest(folder: Path) -> float:
    return max((found.st_mtime for found in _files(folder)), default=folder.lstat().st_mtime)
