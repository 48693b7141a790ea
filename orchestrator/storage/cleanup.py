"""What a storage holds that can be made again, or that a killed process left: listed, and freed when asked.

Only what this project's own code makes is looked at, by its exact name and in the folders where it makes it; links are
never followed. Whoever writes into a storage without holding a trial says so by `Storage.at_work`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datagen.storage.dataset import load_manifest
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import dataset_id
from orchestrator.errors import ResultError
from orchestrator.storage.layout import Storage, folders
from orchestrator.storage.leases import EXPIRY_SECONDS, free, latest_lease, silent

Kind = Literal["left over", "dataset", "elsewhere"]

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{12}|[a-z0-9_]{8})\.tmp")
"""Names that `write_bytes` and the leases give, and `tempfile.mkstemp` for datasets."""

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


def check_storage(storage: Storage) -> None:
    """Raise ResultError where a folder is no storage: nothing in it is ours to remove."""
    if not (storage.trial_folders() or storage.dataset_folders()):
        raise ResultError(f"{storage}: expected a storage, with trials/ID or datasets/NAME in it; nothing was touched")


def running(storage: Storage, *, wait: bool = False) -> list[str]:
    """Return what processes work on: trials, and runs as a whole.

    Args:
        storage: The storage directory.
        wait: Wait for a sign of life from each, to leave out owners that are gone.
    """
    trials = [trial.path for trial in storage.trial_folders()]
    held = [path for path in (*trials, *folders(storage.working)) if not free(latest_lease(path))]
    gone = {path for path, _ in silent(held if wait else [])}
    return [path.name for path in held if path not in gone]


def rebuildable(storage: Storage, busy: Collection[str] = ()) -> list[Rebuildable]:
    """Return what can be freed, largest first.

    A generated dataset can go; whether its trials are done is in the reason. An imported one can't be made again.

    Args:
        storage: The storage directory.
        busy: What `running` says: those trials and marks are left out, and so is all that any run may use.
    """
    found = [*_left_over(storage, busy), *_datasets(storage, busy)]
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


def _left_over(storage: Storage, busy: Collection[str]) -> Iterator[Rebuildable]:
    results = storage.results()
    # A beat's worth of time for whoever writes without a sign, or has begun just now.
    before = _now(storage) - EXPIRY_SECONDS
    for mark in folders(storage.working):
        if mark.name not in busy:
            yield Rebuildable(mark, "left over", _size(mark), "mark of a run that was killed")
    for trial in storage.trial_folders():
        if trial.name in busy:
            continue
        for folder in (trial.path, *folders(trial.path)):
            yield from _temporaries(folder, before)
        path = trial.previous_checkpoint
        if path.is_file() and not path.is_symlink() and trial.name in results and results[trial.name].final:
            yield Rebuildable(path, "left over", path.stat().st_size, "checkpoint before the last of a finished trial")
    if busy:
        return
    for folder in storage.dataset_folders():
        yield from _temporaries(folder, before)
    for sweep in (storage.sweep(path.name) for path in folders(storage.sweeps)):
        for folder in (sweep.path, *folders(sweep.path)):
            yield from _temporaries(folder, before)
        for scratch in folders(sweep.schedulers):
            if _SCRATCH.fullmatch(scratch.name) and _newest(scratch) < before:
                yield Rebuildable(scratch, "left over", _size(scratch), "scheduler's notes of a run that was killed")


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


def _now(storage: Storage) -> float:
    """Return the time by the clock that dates the storage's files, which may be another machine's."""
    probe = storage.path / f".time.{uuid.uuid4().hex[:12]}.tmp"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    except OSError:
        return time.time()  # it can't be written to, so nothing will be removed either
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _datasets(storage: Storage, busy: Collection[str]) -> Iterator[Rebuildable]:
    if busy:
        return
    wanted = _unfinished(storage)
    here = storage.dataset_folders()
    for path in (*here, *storage.linked_datasets()):
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


def _unfinished(storage: Storage) -> dict[str, int]:
    """Return how many trials without a final result use each dataset."""
    results = storage.results()
    counts: dict[str, int] = {}
    for trial in storage.trial_folders():
        if trial.name in results and results[trial.name].final:
            continue
        spec = trial.known_spec()
        if spec is not None:
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
