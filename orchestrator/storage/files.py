"""Files of a storage: written whole or not at all, and refused where they are none or were altered since."""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from datagen.spec import first_problem
from orchestrator.errors import ResultError as ResultError
from planners.trial_files import checksum_of as checksum_of
from planners.trial_files import sealed as sealed
from planners.trial_files import unsealed as unsealed

MOST_JSON_BYTES = 2**24
MOST_NESTED = 20

_NO_FILE = "expected a file, found a folder, a pipe or a device"


@dataclass(frozen=True)
class Folder:
    """A folder that knows the names in it, and stands wherever its path may; nothing is created by looking.

    Attributes:
        path: The folder; it need not exist.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)


def printable(text: str) -> str:
    """Return the text on one line without what would steer a terminal: a file may hold anything."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


Line = Annotated[str, AfterValidator(printable)]
"""A text of one line that may go to a terminal."""


def read_stored(path: Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: There is none.
        ResultError: A folder, a pipe or a device stands there, or more bytes than any file of ours has.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise ResultError(f"{path}: expected a file: {error.strerror}") from None
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ResultError(f"{path}: {_NO_FILE}")
        content = bytearray()
        while len(content) <= most_bytes and (part := os.read(handle, 2**20)):
            content += part
    finally:
        os.close(handle)
    if len(content) > most_bytes:
        raise ResultError(f"{path}: expected at most {most_bytes:,} bytes, found {found.st_size:,}")
    return bytes(content)


def check_output(path: Path) -> None:
    """Raise ResultError where a pipe or a device is named to write to: a file would take its place."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a folder is told of by whoever writes
        raise ResultError(f"{path}: expected a file, found a pipe or a device")


def write_bytes(path: Path, content: bytes, durable: bool = True, check: Callable[[], object] | None = None) -> None:
    """Replace `path` by `content`: a reader sees the old or the new file, whole.

    Args:
        path: The file; its folder is made.
        content: The bytes.
        durable: True where this must hold after a power cut too, which takes milliseconds.
        check: Is called when all is written, which a dead server can hold up for hours, and only the name is to
            change; what it raises leaves the file as it was.
    """
    if not path.name:  # "", "." and "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if check is not None:
            check()
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # Of a write the system does not say into what, and a temporary's name is nobody's business.
        if isinstance(error, OSError) and (error.filename is None or Path(error.filename) == temporary):
            error.filename = str(path)
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Any, check: Callable[[], object] | None = None) -> None:
    """Write `content` as JSON, as `write_bytes` does; a number that is not finite is refused (it would not be JSON)."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(), check=check)


def appending(path: Path) -> TextIO:
    """Open a file to add to it; where it is another user's, one beside it with this user's number in its name.

    Raises:
        ResultError: A pipe or a device stands there.
        OSError: It can't be opened, as a folder can't.
    """
    try:
        return _appending(path)
    except PermissionError:
        return _appending(path.with_suffix(f".{os.getuid()}{path.suffix}"))


def _appending(path: Path) -> TextIO:
    # Without O_NONBLOCK, opening a pipe would wait for somebody to read from it.
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise ResultError(f"{path}: {_NO_FILE}") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ResultError(f"{path}: {_NO_FILE}")
    return open(handle, "a", encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, as `appending` opens it."""
    with appending(path) as file:
        file.write(f"{line}\n")


Record = TypeVar("Record", bound=BaseModel)


def parsed(kind: type[Record], text: bytes | str) -> Record:
    """Return the record in the text of a file that was written sealed: a result, an evaluation.

    Args:
        kind: What it is.
        text: The file's.

    Raises:
        ValueError: It is none, has been altered, or holds a number that can't be; one line.
    """
    try:
        return kind.model_validate(read_object(text))
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def read_object(text: bytes | str) -> dict[str, Any]:
    """Return the JSON object in a file that was written sealed.

    Version 0.1.0 wrote no checksum: there the file begins with the trial's id. Where neither is first, the name of the
    checksum itself is what was damaged.

    Raises:
        ValueError: It is no such object.
    """
    content = read_value(text)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    if next(iter(content), None) not in ("checksum", "trial_id"):
        raise ValueError("expected its checksum first: altered since it was written")
    return content


def read_value(text: bytes | str) -> Any:
    """Return the JSON value in a text.

    Raises:
        ValueError: There is none, or one nested more deeply than any of ours, which could not be written again.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        content = json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if _deeper(content, MOST_NESTED):
        raise ValueError("nested too deeply")
    return content


def _deeper(value: Any, most: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(_deeper(part, most - 1) for part in inside)
