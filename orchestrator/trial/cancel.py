"""Hands on a running sweep: stopping chosen trials and taking them up again, by files in the storage."""

from __future__ import annotations

from typing import Literal

from orchestrator.storage.leases import LeaseLost, Owner, TrialHeld, free
from orchestrator.storage.provenance import provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory


class Cancelled(Exception):
    """The trial is to stop and to stay stopped."""


class GaveWay(Exception):
    """The trial was given back, to go on when the run has room for it again."""


def cancel(
    trial: TrialDirectory, reason: str = "cancelled"
) -> Literal["cancelled", "at the next epoch", "already done"]:
    """Stop a trial and keep it stopped; one that is running stops after its present epoch.

    Args:
        trial: The trial.
        reason: Why, for its result.

    Returns:
        What becomes of it.
    """
    found = trial.whole_result()
    if found is not None and found.final and free(trial.latest_lease()):
        return "already done"
    # The mark first: whoever holds the trial finds it, or has ended by the time that the lease can be had.
    trial.cancel(reason)
    outcome = TrialResult(trial_id=trial.name, status="CANCELLED", reason=reason, provenance=provenance())
    try:
        kept = trial.settle(Owner.here(), outcome)
    except (TrialHeld, LeaseLost):
        return "at the next epoch"
    if kept is outcome:
        return "cancelled"
    trial.drop_mark()
    return "already done"


def retry(trial: TrialDirectory) -> bool:
    """Let a cancelled or failed trial run again with the sweep, from its last checkpoint; True where it was one."""
    if not trial.path.is_dir():
        return False
    marked = trial.is_cancelled()
    found = trial.whole_result()
    if not marked and (found is None or found.final) and not trial.result_file.exists():
        return False
    trial.drop_mark()
    try:
        lease = trial.take(Owner.here())
    except TrialHeld:
        return marked  # it runs, and now goes on
    try:
        trial.drop_mark()
        found = trial.whole_result()
        again = trial.result_file.is_file() if found is None else not found.final
        if again:
            trial.forget_result(lease)
    except LeaseLost:
        return marked
    finally:
        lease.release()
    return marked or again
