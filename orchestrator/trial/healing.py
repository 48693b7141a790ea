"""What can be made again of a finished trial whose smaller files are damaged; its result stays."""

from __future__ import annotations

from pathlib import Path

from orchestrator.storage.evaluations import FOLDER, read_evaluation
from orchestrator.storage.leases import LeaseLost, Owner, TrialHeld, take
from orchestrator.storage.results import ResultError, read_curves, trial_directory, write_curves


def heal(storage: Path, trial_id: str) -> list[str]:
    """Write damaged curves again from the checkpoint, and remove damaged tests, which the next run makes again.

    Args:
        storage: The storage directory.
        trial_id: The trial.

    Returns:
        What was done, and what could not be: a line each; none where nothing is damaged.
    """
    directory = trial_directory(storage, trial_id)
    curves, tests = _damaged_curves(directory), _damaged_tests(directory)
    if not curves and not tests:
        return []
    try:
        lease = take(directory, Owner.here())
    except TrialHeld as held:
        return [f"{held}; its damaged files are left alone"]
    said = []
    try:
        for path in tests:
            lease.check()
            path.unlink(missing_ok=True)
            said.append(f"{path}: was damaged and is removed; idp run tests the planner again")
        if curves:
            said.append(_curves_again(directory))
    except LeaseLost as lost:
        said.append(str(lost))
    finally:
        lease.release()
    return said


def _damaged_curves(directory: Path) -> bool:
    try:
        read_curves(directory)
    except ResultError:
        return True
    return False


def _damaged_tests(directory: Path) -> list[Path]:
    damaged = []
    for path in sorted((directory / FOLDER).glob("*.json")):
        try:
            read_evaluation(path)
        except ResultError:
            damaged.append(path)
    return damaged


def _curves_again(directory: Path) -> str:
    from orchestrator.storage.checkpoints import load_checkpoint

    path = directory / "curves.parquet"
    state, _ = load_checkpoint(directory)
    records = state.get("records") if state is not None else None
    if not isinstance(records, list) or not records:
        return f"{path}: damaged, and no checkpoint has its records: take the file from a copy"
    write_curves(directory, records)
    return f"{path}: was damaged and is written again from the checkpoint"
