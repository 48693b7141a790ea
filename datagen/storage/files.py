"""Files of datasets: read where they are regular files of a bounded length, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from io import BufferedReader
from pathlib import Path

from datagen.storage.manifest import DatasetError

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_ATTEMPTS = 3


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: There is no such file, or what is there is none, so that reading it might never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"expected a file, got {_KINDS.get(stat.S_IFMT(mode), 'a device')}", str(path))
    return open(descriptor, "rb")


def read_file(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: It can't be read, is no file, or is longer.
    """
    with open_file(path) as file:
        content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"longer than the {most:,} bytes it should have", str(path))
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        DatasetError: The disk is full or cannot be written.
    """
    try:
        for _ in range(_ATTEMPTS - 1):
            try:
                return _write_and_rename(path, content)
            except FileNotFoundError:
                continue  # somebody has cleared the folder of what looked left over: again
        _write_and_rename(path, content)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        again = "run the same command again" + (" once there is room" if full else "")
        raise DatasetError(
            f"{path}: cannot write {len(content):,} bytes: {error.strerror or error}; what is finished is kept, {again}"
        ) from error


def _write_and_rename(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
