"""The mark in a trial directory that a trial is to stop, or not to start."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import ResultError
from orchestrator.storage.files import printable, read_stored, write_bytes

_MARK = "cancelled"


def set_mark(directory: Path, reason: str) -> None:
    """Let the trial in `directory` stop, or not start, for that reason."""
    write_bytes(directory / _MARK, reason.encode(), durable=False)


def is_cancelled(directory: Path) -> bool:
    """Return True where the trial in `directory` is to stop, or not to start."""
    return (directory / _MARK).exists()


def why_cancelled(directory: Path) -> str:
    """Return the reason that `cancel` was given."""
    try:
        return printable(read_stored(directory / _MARK, 4096).decode()) or "cancelled"
    except (OSError, ResultError, UnicodeDecodeError):
        return "cancelled"


def drop_mark(directory: Path) -> None:
    """Let the trial in `directory` run: it is complete, or asked for again."""
    (directory / _MARK).unlink(missing_ok=True)
