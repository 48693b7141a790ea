"""How trials end other than well: where memory ran out, and what others than the trial's own process write down."""

from __future__ import annotations

import traceback
from pathlib import Path

from orchestrator.leases import Owner, take
from orchestrator.provenance import code_hash, provenance
from orchestrator.results import ResultError, TrialResult, read_result, write_result

STAYS = "the result of before stays"
"""What is said where a failure is told and not kept: a final result is never replaced by none."""


def memory_phase(error: BaseException) -> str:
    """Return where memory ran out, as the trainer marked it (`planners.memory.phase`); "loading" before training."""
    return str(getattr(error, "phase", "loading"))


def settle(directory: Path, owner: Owner, outcome: TrialResult) -> TrialResult:
    """Write how a trial has ended unless it has a final result, looking and writing under one lease.

    Args:
        directory: The trial directory.
        owner: This process.
        outcome: CANCELLED or FAILED.

    Returns:
        What the directory holds then: the outcome, or the final result that was there.

    Raises:
        TrialHeld: Another process works on the trial.
        LeaseLost: Another process took it over meanwhile; nothing was written.
    """
    lease = take(directory, owner)
    try:
        found = whole_result(directory)
        if found is not None and found.final:
            return found
        lease.renew()
        write_result(directory, outcome)
        return outcome
    finally:
        lease.release()


def whole_result(directory: Path) -> TrialResult | None:
    """Return a trial's result; None where there is none, or a damaged one, which is made again."""
    try:
        return read_result(directory)
    except ResultError:
        return None


def record_failure(directory: Path, trial_id: str, error: BaseException, campaign: str = "") -> TrialResult:
    """Write and return the result of a trial that could not write one itself: FAILED, with the traceback.

    Where the trial has a final result, that stays: a fresh one is returned, and beside a stale one the failure.

    Args:
        directory: The trial directory.
        trial_id: The trial.
        error: What ended it.
        campaign: The run of a sweep that it ran for.

    Raises:
        TrialHeld: Another process works on the trial by now.
        LeaseLost: Another process took it over meanwhile.
    """
    result = TrialResult(
        trial_id=trial_id,
        status="FAILED",
        reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500],
        traceback="".join(traceback.format_exception(error)),
        provenance=provenance(),
    )
    kept = settle(directory, Owner.here(campaign), result)
    if kept is result or kept.provenance.made_by(code_hash()):
        return kept
    return result.model_copy(update={"reason": f"{result.reason}; {STAYS}"})
