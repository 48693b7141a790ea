"""What a trial leaves for whoever uses its planner, read and checked: damage is told, and never planned with."""

from __future__ import annotations

import json
import math
import stat
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datagen.problem import Moves

STEPS_FILE = "test_steps.json"
"""Beside the spec: the forward steps per row of the map with which the sweep tests the planner (`test_steps_per_row`)."""


class PlannerError(ValueError):
    """A planner that can't be loaded, or a map it can't plan on; the message says what was expected."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds.

    Raises:
        FileNotFoundError: There is none.
        PlannerError: It is damaged, or none; names it.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
        raise PlannerError(f"{path}: expected a file")
    content = path.read_bytes()
    if not content:
        raise PlannerError(f"{path}: is empty; take it from where it was copied from")
    if content.startswith(b"version https://git-lfs"):
        raise PlannerError(f"{path}: is a pointer of Git LFS and not the checkpoint itself; `git lfs pull` brings that")
    try:
        _check_sums(content)
        state = torch.load(BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file makes the readers raise almost anything
        # The first line alone: torch's next ones advise to load whatever it is without checks.
        reason = (str(error).splitlines() or [""])[0]
        raise PlannerError(f"{path}: is damaged, or no checkpoint ({type(error).__name__}: {reason:.120})") from error
    if not isinstance(state, dict):
        raise PlannerError(f"{path}: expected the state of a trial, got a {type(state).__name__}")
    return state


def _check_sums(content: bytes) -> None:
    """Raise where a byte of the archive is not as it was written: torch takes a flipped bit for a weight."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(content):
            raise ValueError("its members are not stored as torch stores them")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"checksum of {damaged} is wrong")


def read_trainer(path: Path) -> dict[str, Any]:
    """Return the trainer's state in a checkpoint, with what a planner is made of.

    Raises:
        FileNotFoundError: There is no checkpoint.
        PlannerError: It is damaged or of another version; names it.
    """
    trainer = read_checkpoint(path).get("trainer")
    for name in ("planner", "moves"):
        if not isinstance(trainer, dict) or not isinstance(trainer.get(name), dict):
            raise PlannerError(f"{path}: trainer.{name}: it has none; the checkpoint is of another version")
    assert isinstance(trainer, dict)
    return trainer


def read_moves(trainer: dict[str, Any], path: Path) -> Moves:
    """Return what the actions of the planner in a checkpoint do.

    Raises:
        PlannerError: They make no sense; names the file.
    """
    try:
        moves = Moves(**trainer["moves"])
        counts = {len(moves.names), len(moves.offsets), len(moves.costs)}
        steps = [(int(row), int(column)) for row, column in moves.offsets]
    except (TypeError, ValueError) as error:
        raise PlannerError(f"{path}: trainer.moves: not of this version ({error})") from error
    if len(counts) != 1 or not steps:
        raise PlannerError(f"{path}: trainer.moves: expected a name, an offset and a cost for each action")
    return moves


def tested_weights(trainer: dict[str, Any], path: Path, tested_checkpoint: str) -> dict[str, Tensor]:
    """Return the weights of the last epoch, or of the best one where that is what is tested.

    Raises:
        PlannerError: They are no weights, or not finite; names the file.
    """
    best = trainer.get("best") if tested_checkpoint == "best" else None
    weights = best.get("planner") if isinstance(best, dict) else trainer["planner"]
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise PlannerError(f"{path}: trainer.planner: expected tensors by name")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PlannerError(f"{path}: {name}: weights that are not finite plan nothing; train again")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError: There is none.
        PlannerError: It is not JSON, or no object; names it.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PlannerError(f"{path}: is not JSON ({type(error).__name__}: {str(error):.120})") from error
    if not isinstance(content, dict):
        raise PlannerError(f"{path}: expected an object, got {content!r:.80}")
    return content


def read_steps_per_row(directory: Path) -> float | None:
    """Return the forward steps per row with which the trial's sweep tests it, None where it has no such rule.

    Raises:
        PlannerError: The file holds none; names it.
    """
    path = directory / STEPS_FILE
    try:
        rule = read_json(path).get("steps_per_row")
    except FileNotFoundError:
        return None
    if isinstance(rule, bool) or not isinstance(rule, int | float) or not 0 < rule < math.inf:
        raise PlannerError(f"{path}: steps_per_row: expected a positive number, got {rule!r:.80}")
    return float(rule)


def most_steps(own: int, steps_per_row: float | None, rows: int) -> int:
    """Return the most forward steps on a map of so many rows: those of training, and more on larger maps.

    Args:
        own: Forward steps in training.
        steps_per_row: Steps per row of the map; None keeps `own` on every map.
        rows: Rows or columns of the map, whichever are more.
    """
    if steps_per_row is None:
        return own
    return max(own, math.ceil(round(steps_per_row * rows, 6)))  # 60 / 15 * 15 is 60 steps, and not one more
