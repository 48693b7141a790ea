"""What can be made again of a finished trial whose smaller files are damaged; its result stays."""

from __future__ import annotations

from pathlib import Path

from orchestrator.storage.evaluations import read_evaluation
from orchestrator.storage.leases import Lease, LeaseLost, Owner, TrialHeld
from orchestrator.storage.results import ResultError
from orchestrator.storage.trial_directory import TrialDirectory


def heal(trial: TrialDirectory) -> list[str]:
    """Write damaged curves again from the checkpoint, and remove damaged tests, which the next run makes again.

    Args:
        trial: The trial.

    Returns:
        What was done, and what could not be: a line each; none where nothing is damaged.
    """
    curves, tests = _damaged_curves(trial), _damaged_tests(trial)
    if not curves and not tests:
        return []
    try:
        lease = trial.take(Owner.here())
    except TrialHeld as held:
        return [f"{held}; its damaged files are left alone"]
    said = []
    try:
        for path in tests:
            lease.check()
            path.unlink(missing_ok=True)
            said.append(f"{path}: was damaged and is removed; idp run tests the planner again")
        if curves:
            said.append(_curves_again(trial, lease))
    except LeaseLost as lost:
        said.append(str(lost))
    finally:
        lease.release()
    return said


def _damaged_curves(trial: TrialDirectory) -> bool:
    try:
        trial.read_curves()
    except ResultError:
        return True
    return False


def _damaged_tests(trial: TrialDirectory) -> list[Path]:
    damaged = []
    for path in trial.evaluations:
        try:
            read_evaluation(path)
        except ResultError:
            damaged.append(path)
    return damaged


def _curves_again(trial: TrialDirectory, lease: Lease) -> str:
    from orchestrator.storage.checkpoints import load_checkpoint

    path = trial.curves_file
    state, _ = load_checkpoint(trial)
    records = state.get("records") if state is not None else None
    if not isinstance(records, list) or not records:
        return f"{path}: damaged, and no checkpoint has its records: take the file from a copy"
    trial.write_curves(lease, records)
    return f"{path}: was damaged and is written again from the checkpoint"
