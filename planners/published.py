"""Weights that come with this package, by name: trial directories with what a planner is made of and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planners import trial_files

WEIGHTS = Path(__file__).parent / "weights"


def folder_of(given: str | Path) -> Path:
    """Return the directory of a trial that is named by itself, or by a name of `WEIGHTS` where there is no such one."""
    folder = Path(given)
    published = WEIGHTS / folder
    return published if not folder.exists() and len(folder.parts) == 1 and published.is_dir() else folder


def publish(trial: Path, folder: Path) -> None:
    """Write what planning needs of a finished trial to a folder; its model card is for people to write.

    Raises:
        PlannerError: The trial is damaged, or none.
        FileNotFoundError: It has no checkpoint.
    """
    import torch

    spec: dict[str, Any] = trial_files.read_json(trial / "spec.json")
    checkpoint = trial / "checkpoint.pt"
    trainer = trial_files.trainer_of(trial_files.read_checkpoint(checkpoint), checkpoint)
    tested = spec.get("training", {}).get("tested_checkpoint", "last")
    weights = {name: part.clone() for name, part in trial_files.tested_weights(trainer, checkpoint, tested).items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec, indent=2) + "\n")
    torch.save({"spec": spec, "trainer": {"planner": weights, "moves": trainer["moves"]}}, folder / "checkpoint.pt")
