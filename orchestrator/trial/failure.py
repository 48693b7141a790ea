"""How trials end other than well: where memory ran out, and what others than the trial's own process write down."""

from __future__ import annotations

import re
import statistics
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from datagen.tasks.registry import dataset_id
from orchestrator.storage.code import code_hash
from orchestrator.storage.files import read_stored
from orchestrator.storage.leases import Owner
from orchestrator.storage.provenance import Provenance, provenance
from orchestrator.storage.results import ResultError, TrialResult
from orchestrator.storage.trial_directory import TrialDirectory

if TYPE_CHECKING:
    from planners.training.records import EpochRecord
    from planners.training.rollout import Evaluation

STAYS = "the result of before stays"
"""What is said where a failure is told and not kept: a final result is never replaced by none."""

DIVERGED_BELOW = 0.2
"""A trial whose test success rate is lower counts as diverged (Table 1's italics)."""

_STALLED = re.compile(r"^Timeout \((.+?)(?:\.\d+)?\)!$", re.MULTILINE)


def numbers(records: list[EpochRecord], evaluation: Evaluation) -> dict[str, Any]:
    """Return the result's numbers: the last epoch's, the times' medians over epochs, and the test's."""
    last = asdict(records[-1]) if records else {}
    kept = (
        "valid_success_rate",
        "train_loss",
        "forward_steps",
        "forward_residual",
        "backward_residual",
        "not_finite",
        "kernel",
    )
    return {
        **{name: last[name] for name in kept if name in last},
        "epochs": len(records),
        "test_success_rate": evaluation.success_rate,
        "test_optimality": evaluation.optimality,
        "test_spl": evaluation.spl,
        "test_accuracy": evaluation.accuracy,
        "test_exact": evaluation.exact,
        "test_searched": evaluation.searched,
        "test_success_deviation": evaluation.success_deviation,
        "test_cells_by_distance": list(evaluation.cells_by_distance),
        "test_arrivals_by_distance": list(evaluation.arrivals_by_distance),
        "trial_diverged": evaluation.success_rate < DIVERGED_BELOW,
        "forward_diverged": any(record.forward_diverged for record in records),
        "forward_seconds": _median(records, "forward_seconds"),
        "backward_seconds": _median(records, "backward_seconds"),
        "peak_bytes": max((record.peak_bytes for record in records), default=0),
        "train_seconds": sum(record.train_seconds for record in records),
    }


def _median(records: list[EpochRecord], name: str) -> float | None:
    values = [value for record in records if (value := getattr(record, name)) == value]
    return statistics.median(values) if values else None


def memory_phase(error: BaseException) -> str:
    """Return where memory ran out, as the trainer marked it (`memory.phase`); "loading" before training."""
    return str(getattr(error, "phase", "loading"))


def record_failure(trial: TrialDirectory, error: BaseException, campaign: str = "") -> TrialResult:
    """Write and return the result of a trial that could not write one itself: FAILED, with the traceback.

    Where the trial has a final result, that stays: a fresh one is returned, and beside a stale one the failure.

    Args:
        trial: The trial.
        error: What ended it.
        campaign: The run of a sweep that it ran for.

    Raises:
        TrialHeld: Another process works on the trial by now.
        LeaseLost: Another process took it over meanwhile.
    """
    result = TrialResult(
        trial_id=trial.name,
        status="FAILED",
        reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500],
        traceback="".join(traceback.format_exception(error)),
        provenance=_provenance(trial),
    )
    kept = trial.settle(Owner.here(campaign), result)
    if kept is result or kept.provenance.made_by(code_hash()):
        return kept
    return result.model_copy(update={"reason": f"{result.reason}; {STAYS}"})


def _provenance(trial: TrialDirectory) -> Provenance:
    """Return what ran the trial, its plug-ins included: a failure of other code passes for one of before."""
    try:
        spec = trial.read_spec()
    except ResultError:  # it died before it had written one
        return provenance()
    return provenance(dataset_id(spec.data), plugins=spec.plugins)


def stalled(trial: TrialDirectory) -> str:
    """Return in words that the latest process of a trial was ended for want of progress; empty where it was not.

    Args:
        trial: The trial.
    """
    try:
        log = read_stored(trial.log).decode(errors="replace")
    except (OSError, ResultError):
        return ""
    found = _STALLED.findall(log.rpartition(" started on ")[2])
    return f"no progress for {found[-1]} h ({trial.log.name} says where it stood)" if found else ""
