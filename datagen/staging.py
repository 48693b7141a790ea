"""A node's own copy of a dataset: copied once, checked while it is copied, within a limit of space.

A cluster's datasets lie on a shared file system. A large one is read every epoch by every trial, so each node copies
it to its own disk first. Sets that no process holds are thrown out, least recently used first, when space is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from datagen.manifest import DatasetError, Manifest
from datagen.parquet import load_manifest

_CHUNK = 1 << 22


def _in_place(local: Path, manifest: Manifest) -> bool:
    """Return whether the copy is whole; its bytes were checked when it was made, and are again when it is read."""
    if not (local / "manifest.json").is_file() or load_manifest(local) != manifest:
        return False
    paths = [(local / record.name, record.bytes) for record in manifest.shards]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _copy(source: Path, target: Path) -> str:
    total = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            total.update(chunk)
            writer.write(chunk)
    return total.hexdigest()


def _held_by_nobody(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _make_room(cache: Path, needed: int, max_bytes: int) -> None:
    """Throw out sets that no process holds until `needed` more bytes fit."""
    present = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    used = sum(_size(path) for path in present)
    for path in present:
        if used + needed <= max_bytes:
            return
        with (cache / f".{path.name}.lock").open("wb") as lock:
            if _held_by_nobody(lock):
                used -= _size(path)
                shutil.rmtree(path)
    if used + needed > max_bytes:
        raise DatasetError(
            f"{cache}: {needed:,} bytes do not fit beside {used:,} bytes that other processes use (limit {max_bytes:,})"
        )


@contextmanager
def staged(directory: Path, cache: Path, max_bytes: int) -> Iterator[Path]:
    """Hold a node-local copy of a dataset for the duration of the block.

    The first process on the node copies, the others wait for it. While any process holds the copy it stays.

    Args:
        directory: The dataset's folder, wherever it is.
        cache: Folder on the node's own disk, shared by all processes of the node.
        max_bytes: Most bytes of datasets to keep in `cache`.

    Yields:
        The copy's folder, to be read like the original.

    Raises:
        DatasetError: The set is larger than the limit or does not fit beside those in use, a shard's bytes are not what
            the manifest says, or the disk is full.
    """
    directory, cache = Path(directory), Path(cache)
    manifest = load_manifest(directory)
    needed = sum(record.bytes for record in manifest.shards)
    if needed > max_bytes:
        raise DatasetError(f"{directory}: {needed:,} bytes exceed the limit of the node's copies, {max_bytes:,}")
    cache.mkdir(parents=True, exist_ok=True)
    local = cache / manifest.dataset_id
    with (cache / f".{local.name}.lock").open("wb") as hold:
        with (cache / ".staging.lock").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(hold, fcntl.LOCK_SH)
            if _in_place(local, manifest):
                os.utime(local)
            else:
                _stage(directory, local, manifest, needed, max_bytes)
        yield local


def _stage(directory: Path, local: Path, manifest: Manifest, needed: int, max_bytes: int) -> None:
    """Copy the set to `local`; the caller has the turn, so unfinished copies were left by processes that died."""
    cache = local.parent
    for left in cache.glob(".*.tmp"):
        shutil.rmtree(left)
    if local.exists():
        shutil.rmtree(local)
    _make_room(cache, needed, max_bytes)
    temporary = Path(tempfile.mkdtemp(prefix=f".{local.name}.", suffix=".tmp", dir=cache))
    try:
        for record in manifest.shards:
            if _copy(directory / record.name, temporary / record.name) != record.sha256:
                raise DatasetError(f"{directory / record.name}: altered (sha256 differs from the manifest's)")
        for name in ("README.md", "manifest.json"):
            shutil.copyfile(directory / name, temporary / name)
        os.chmod(temporary, 0o755)
        os.replace(temporary, local)
    except OSError as error:
        raise DatasetError(f"{local}: cannot copy {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
