"""Hands on a running sweep: stopping chosen trials and taking them up again, by files in the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from orchestrator.leases import Owner, TrialHeld, take
from orchestrator.provenance import provenance
from orchestrator.results import TrialResult, read_result, trial_directory, write_result

_MARK = "cancelled"


class Cancelled(Exception):
    """The trial is to stop and to stay stopped."""


def is_cancelled(directory: Path) -> bool:
    """Return True where the trial in `directory` is to stop, or not to start."""
    return (directory / _MARK).exists()


def why_cancelled(directory: Path) -> str:
    """Return the reason that `cancel` was given."""
    try:
        return (directory / _MARK).read_text() or "cancelled"
    except OSError:
        return "cancelled"


def cancel(
    storage: Path, trial_id: str, reason: str = "cancelled"
) -> Literal["cancelled", "at the next epoch", "already done"]:
    """Stop a trial and keep it stopped; one that is running stops after its present epoch.

    Args:
        storage: The storage directory.
        trial_id: The trial.
        reason: Why, for its result.

    Returns:
        What becomes of it.
    """
    directory = trial_directory(storage, trial_id)
    result = read_result(directory)
    if result is not None and result.final:
        return "already done"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).write_text(reason)
    try:
        lease = take(directory, Owner.here())
    except TrialHeld:
        return "at the next epoch"
    result = TrialResult(trial_id=trial_id, status="CANCELLED", reason=reason, provenance=provenance())
    write_result(directory, result)
    lease.release()
    return "cancelled"


def retry(storage: Path, trial_id: str) -> bool:
    """Let a cancelled or failed trial run again with the sweep, from its last checkpoint; True where it was one.

    Args:
        storage: The storage directory.
        trial_id: The trial.
    """
    directory = trial_directory(storage, trial_id)
    marked = is_cancelled(directory)
    (directory / _MARK).unlink(missing_ok=True)
    result = read_result(directory)
    again = result is not None and result.status in ("CANCELLED", "FAILED")
    if again:
        (directory / "result.json").unlink(missing_ok=True)
    return marked or again
