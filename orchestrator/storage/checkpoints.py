"""Checkpoints of a trial: written after each epoch, read again even where the last one is damaged."""

from __future__ import annotations

import os
from io import BytesIO
from typing import Any

import torch

from orchestrator.storage.code import code_hash, parts_of
from orchestrator.storage.leases import Lease
from orchestrator.storage.results import write_bytes
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec, trial_id
from planners.trial_files import PlannerError, read_checkpoint


def save_checkpoint(trial: TrialDirectory, state: dict[str, Any], lease: Lease) -> None:
    """Write the checkpoint and keep the one before it, but not the tests of its weights.

    Args:
        trial: The trial.
        state: Tensors and plain data.
        lease: The lease of this process.

    Raises:
        LeaseLost: Another process took the trial over meanwhile; nothing was written.
    """
    content = BytesIO()
    torch.save(state, content)
    latest, previous = trial.checkpoint, trial.previous_checkpoint

    def keep_previous() -> None:
        lease.check()
        if latest.exists():
            previous.unlink(missing_ok=True)
            os.link(latest, previous)

    write_bytes(latest, content.getvalue(), check=keep_previous)
    for test in trial.evaluations:
        test.unlink(missing_ok=True)


def code_of(spec: TrialSpec) -> str:
    """Return what tells one version of the code behind a trial from another: ours, and its plug-ins'."""
    return " ".join(
        [
            *parts_of(spec.data, None if spec.system else spec.planner, spec.plugins).values(),
            *map(code_hash, spec.plugins),
        ]
    )


def is_of(state: dict[str, Any], spec: TrialSpec) -> bool:
    """Return whether a checkpoint is the trial's; those of 0.1.0 do not say, and are of other code anyway."""
    try:
        return trial_id(TrialSpec.model_validate(state["spec"])) == trial_id(spec)
    except (KeyError, ValueError):
        return False


def load_checkpoint(trial: TrialDirectory) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the latest checkpoint that is whole, None where there is none, and what was found wrong with later ones.

    Args:
        trial: The trial.
    """
    wrong: list[str] = []
    for path in (trial.checkpoint, trial.previous_checkpoint):
        if not path.exists():
            continue
        try:
            return read_checkpoint(path), wrong
        except (PlannerError, FileNotFoundError) as error:
            wrong.append(f"{path.name} is damaged: {error}"[:300])
    return None, wrong
