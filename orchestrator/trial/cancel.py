"""Hands on a running sweep: stopping chosen trials and taking them up again, by files in the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from orchestrator.storage.leases import LeaseLost, Owner, TrialHeld, free, look, take
from orchestrator.storage.marks import drop_mark, is_cancelled, set_mark
from orchestrator.storage.provenance import provenance
from orchestrator.storage.results import TrialResult, trial_directory, whole_result
from orchestrator.trial.failure import settle


class Cancelled(Exception):
    """The trial is to stop and to stay stopped."""


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
    found = whole_result(directory)
    if found is not None and found.final and free(look(directory)):
        return "already done"
    # The mark first: whoever holds the trial finds it, or has ended by the time that the lease can be had.
    set_mark(directory, reason)
    outcome = TrialResult(trial_id=trial_id, status="CANCELLED", reason=reason, provenance=provenance())
    try:
        kept = settle(directory, Owner.here(), outcome)
    except (TrialHeld, LeaseLost):
        return "at the next epoch"
    if kept is outcome:
        return "cancelled"
    drop_mark(directory)
    return "already done"


def retry(storage: Path, trial_id: str) -> bool:
    """Let a cancelled or failed trial run again with the sweep, from its last checkpoint; True where it was one.

    Args:
        storage: The storage directory.
        trial_id: The trial.
    """
    directory = trial_directory(storage, trial_id)
    if not directory.is_dir():
        return False
    marked = is_cancelled(directory)
    found = whole_result(directory)
    if not marked and (found is None or found.final) and not (directory / "result.json").exists():
        return False
    drop_mark(directory)
    try:
        lease = take(directory, Owner.here())
    except TrialHeld:
        return marked  # it runs, and now goes on
    try:
        drop_mark(directory)
        path = directory / "result.json"
        found = whole_result(directory)
        again = path.is_file() if found is None else not found.final
        if again:
            lease.renew()
            path.unlink(missing_ok=True)
    except LeaseLost:
        return marked
    finally:
        lease.release()
    return marked or again
