"""How trials end other than well: where memory ran out, and the failures that a trial could not write down itself."""

from __future__ import annotations

import traceback
from pathlib import Path

from orchestrator.leases import Owner, take
from orchestrator.provenance import provenance
from orchestrator.results import TrialResult, write_result


def memory_phase(error: BaseException) -> str:
    """Return where memory ran out, as the trainer marked it (`planners.memory.phase`); "loading" before training."""
    return str(getattr(error, "phase", "loading"))


def record_failure(directory: Path, trial_id: str, error: BaseException, campaign: str = "") -> TrialResult:
    """Write and return the result of a trial that could not write one itself: FAILED, with the traceback.

    Args:
        directory: The trial directory.
        trial_id: The trial.
        error: What ended it.
        campaign: The run of a sweep that it ran for.

    Raises:
        TrialHeld: Another process works on the trial by now.
    """
    lease = take(directory, Owner.here(campaign))
    result = TrialResult(
        trial_id=trial_id,
        status="FAILED",
        reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500],
        traceback="".join(traceback.format_exception(error)),
        provenance=provenance(),
    )
    try:
        write_result(directory, result)
    finally:
        lease.release()
    return result
