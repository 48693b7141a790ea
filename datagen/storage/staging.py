"""A node's own copy of a dataset: copied once, checked whenever it is taken, within a limit of space.

A cluster's datasets lie on a shared file system. A large one is read every epoch by every trial, so each node copies
it to its own disk first. Sets that no process holds are thrown out, least recently used first, when space is needed.

A copy lies at CACHE/DATASET_ID.SUM/DATASET_ID, where SUM is of the manifest: a set that was made again is another copy,
and the old one stays for those who hold it. Files of a copy are replaced one by one, never removed under a reader.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from datagen.storage.dataset import intact, load_manifest
from datagen.storage.files import open_file, read_file, write_atomically
from datagen.storage.manifest import DatasetError, Manifest, ShardRecord, manifest_bytes

_CHUNK = 1 << 22


def _finished(local: Path, manifest: bytes) -> bool:
    try:
        return read_file(local / "manifest.json", len(manifest)) == manifest
    except OSError:
        return False


def _damaged(local: Path, manifest: Manifest) -> list[ShardRecord]:
    """Return the shards of which the copy has not the very bytes."""
    return [record for record in manifest.shards if not intact(local, record)]


def _copy(source: Path, target: Path, record: ShardRecord) -> None:
    """Copy a shard; what appears at `target` has its bytes, and their number and sha256 are the manifest's."""
    total, left = hashlib.sha256(), record.bytes
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as writer, open_file(source) as reader:
            while left >= 0 and (chunk := reader.read(_CHUNK)):
                left -= len(chunk)
                total.update(chunk)
                writer.write(chunk)
        if left or total.hexdigest() != record.sha256:
            raise DatasetError(f"{source}: altered (its bytes are not the manifest's)")
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _held_by_nobody(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _make_room(cache: Path, local: Path, needed: int, max_bytes: int) -> None:
    """Throw out sets that no process holds until `needed` more bytes fit."""
    # What has no lock beside it is nobody's copy: whoever names a folder of their own as cache keeps what is in it.
    folders = [path for path in cache.iterdir() if path.is_dir() and not path.is_symlink() and path != local.parent]
    copies = [path for path in folders if (cache / f".{path.name}.lock").exists()]
    copies.sort(key=lambda path: path.stat().st_mtime)
    used = sum(_size(path) for path in copies)
    for path in copies:
        if used + needed <= max_bytes:
            return
        with (cache / f".{path.name}.lock").open("ab") as lock:
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

    The first process on the node copies, the others wait for it. While any process holds the copy it stays. A shard
    of which the copy has other bytes than it should is copied again.

    Args:
        directory: The dataset's folder, wherever it is.
        cache: Folder on the node's own disk, shared by all processes of the node.
        max_bytes: Most bytes of datasets to keep in `cache`.

    Yields:
        The copy's folder, named by the dataset's id, to be read like the original.

    Raises:
        DatasetError: The set is larger than the limit or does not fit beside those in use, a shard's bytes are not what
            the manifest says, or the disk is full.
    """
    directory, cache = Path(directory), Path(cache)
    manifest = load_manifest(directory)
    content = manifest_bytes(manifest)
    needed = sum(record.bytes for record in manifest.shards)
    if needed > max_bytes:
        raise DatasetError(f"{directory}: {needed:,} bytes exceed the limit of the node's copies, {max_bytes:,}")
    name = f"{manifest.dataset_id}.{hashlib.sha256(content).hexdigest()[:12]}"
    local = cache / name / manifest.dataset_id
    with _copying(directory, local):
        cache.mkdir(parents=True, exist_ok=True)
        hold = (cache / f".{name}.lock").open("ab")
    with hold:
        with _copying(directory, local), (cache / ".staging.lock").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(hold, fcntl.LOCK_SH)
            if not _finished(local, content):
                _make_room(cache, local, needed, max_bytes)
                _stage(directory, local, manifest.shards)
                write_atomically(local / "manifest.json", content)
            os.utime(local.parent)
        # Not in turn: all that hold a large copy may check it at once.
        if damaged := _damaged(local, manifest):
            with _copying(directory, local), (cache / ".staging.lock").open("ab") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                _stage(directory, local, damaged)
        yield local


@contextmanager
def _copying(directory: Path, local: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{local}: cannot copy {directory}: {error.strerror or error}") from error


def _stage(directory: Path, local: Path, records: Iterable[ShardRecord]) -> None:
    """Copy shards to `local`; the caller has the turn, so unfinished copies were left by processes that died."""
    local.mkdir(parents=True, exist_ok=True)
    for left in local.glob(".*.tmp"):
        left.unlink()
    for record in records:
        if not intact(local, record):
            _copy(directory / record.name, local / record.name, record)
