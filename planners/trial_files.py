"""What a trial leaves for whoever uses its planner, read and checked: damage is told, and never planned with.

Importing this needs no torch; reading a checkpoint does.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datagen.errors import UserError
from datagen.problem import Moves

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT_FILE = "checkpoint.pt"
SPEC_FILE = "spec.json"
STEPS_FILE = "test_steps.json"
"""Beside the spec: the forward steps per row with which the sweep tests the planner (`test_steps_per_row`)."""

MOST_STEPS_PER_ROW = 1000


class PlannerError(UserError):
    """A planner that can't be loaded, or a map it can't plan on; the message says what was expected."""


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise PlannerError(f"{path}: expected a file")
        return path.read_bytes()
    except NotADirectoryError:
        raise PlannerError(f"{path.parent}: expected the directory of a trial, got a file") from None
    except PermissionError as error:
        raise PlannerError(f"{path}: {error.strerror}") from error
    except MemoryError:
        raise PlannerError(f"{path}: {path.stat().st_size:,} bytes, more than there is memory for") from None


def whole_file(path: Path) -> bytes:
    """Return the content of a file of weights.

    Raises:
        FileNotFoundError: There is none.
        PlannerError: It is empty, a pointer to another, or can't be read; names it.
    """
    content = _content(path)
    if not content:
        raise PlannerError(f"{path}: is empty; take it from where it was copied from")
    if content.startswith(b"version https://git-lfs"):
        raise PlannerError(f"{path}: is a pointer of Git LFS and not the file itself; `git lfs pull` brings that")
    return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds.

    Raises:
        FileNotFoundError: There is none.
        PlannerError: It is damaged, or none; names it.
    """
    import torch

    content = whole_file(path)
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


def agreed_spec(spec: dict[str, Any], state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the spec with which a checkpoint was made: its own where it has one, which its check sums cover.

    Args:
        spec: What `spec.json` says.
        state: What the checkpoint holds.
        path: The checkpoint.

    Raises:
        PlannerError: `spec.json` says something else: one of the two belongs to another trial, or is damaged.
    """
    own = state.get("spec", spec)
    if not isinstance(own, dict):
        raise PlannerError(f"{path}: spec: expected an object, got a {type(own).__name__}")
    try:
        checksum_of(own)
    except (TypeError, ValueError, RecursionError) as error:
        raise PlannerError(f"{path}: spec: holds what no JSON does ({error!s:.120})") from None
    if field := _difference(spec, own):
        raise PlannerError(f"{path}: was made by another trial than spec.json beside it describes: {field} differs")
    return own


def _difference(spec: Any, own: Any) -> str:
    """Return the first field that both have and that differs, "" where there is none."""
    if not isinstance(spec, dict) or not isinstance(own, dict):
        return "" if spec == own else "its value"
    for name in spec.keys() & own.keys():
        if spec[name] != own[name]:
            inner = _difference(spec[name], own[name])
            if inner:
                return name if inner == "its value" else f"{name}.{inner}"
    return ""


def trainer_of(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the trainer's state in a checkpoint, with what a planner is made of.

    Raises:
        PlannerError: There is none, or of another version; names the file.
    """
    trainer = state.get("trainer")
    for name in ("planner", "moves"):
        if not isinstance(trainer, dict) or not isinstance(trainer.get(name), dict):
            raise PlannerError(f"{path}: trainer.{name}: it has none; the checkpoint is of another version")
    assert isinstance(trainer, dict)
    return trainer


def moves_of(trainer: dict[str, Any], path: Path) -> Moves:
    """Return what the actions of the planner in a checkpoint do.

    Raises:
        PlannerError: They make no sense; names the file.
    """
    try:
        return Moves(**trainer["moves"])
    except (TypeError, ValueError) as error:
        raise PlannerError(f"{path}: trainer.moves: not of this version ({error!s:.300})") from error


def tested_weights(trainer: dict[str, Any], path: Path, tested_checkpoint: str) -> dict[str, Tensor]:
    """Return the weights of the last epoch, or of the best one where that is what is tested.

    Raises:
        PlannerError: They are no weights; names the file.
    """
    if tested_checkpoint not in ("last", "best"):
        raise PlannerError(
            f"{path.parent / 'spec.json'}: training.tested_checkpoint: {tested_checkpoint!r:.40} is not of this version"
        )
    best = trainer.get("best") if tested_checkpoint == "best" else None
    weights = best.get("planner") if isinstance(best, dict) else trainer["planner"]
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise PlannerError(f"{path}: trainer.planner: expected tensors by name")
    return weights


def give_weights(planner: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a planner its weights, which must be its own by name, shape and type, and finite.

    Raises:
        PlannerError: They are another planner's, or no numbers; names the file.
    """
    import torch

    own = planner.state_dict()
    for name, tensor in weights.items():
        if name not in own:
            continue  # told below, with all others
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != own[name].dtype:
            found = getattr(tensor, "dtype", type(tensor).__name__)
            raise PlannerError(f"{path}: {name}: expected {own[name].dtype}, got {found}")
        if tensor.layout != own[name].layout:
            raise PlannerError(f"{path}: {name}: expected a tensor with all its numbers, got one of {tensor.layout}")
        if tensor.shape == own[name].shape and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PlannerError(f"{path}: {name}: weights that are not finite plan nothing; train again")
    try:
        planner.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise PlannerError(f"{path}: made by other code, its weights do not fit the planner: {reason:.300}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError: There is none.
        PlannerError: It is not JSON, or no object; names it.
    """
    text = _content(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlannerError(f"{path}: is not JSON ({type(error).__name__}: {error!s:.120})") from error
    if not isinstance(content, dict):
        raise PlannerError(f"{path}: expected an object, got {content!r:.80}")
    return content


def checksum_of(content: Any) -> str:
    """Return the sha256 of what a JSON value means, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum before the rest."""
    return {"checksum": checksum_of(content), **content}


def unsealed(content: Any) -> Any:
    """Return a JSON object without its checksum, where it has one; that must be right.

    Raises:
        ValueError: It is no longer the object that was written.
    """
    if not isinstance(content, Mapping) or "checksum" not in content:
        return content
    rest = {name: value for name, value in content.items() if name != "checksum"}
    if content["checksum"] != checksum_of(rest):
        raise ValueError("its checksum does not fit its content: altered since it was written")
    return rest


def read_steps_per_row(directory: Path) -> float | None:
    """Return the forward steps per row with which the trial's sweep tests it, None where it has no such rule.

    Raises:
        PlannerError: The file holds none, or was altered; names it.
    """
    path = directory / STEPS_FILE
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    try:
        rule = unsealed(content).get("steps_per_row")
        if "checksum" not in content:
            raise ValueError("has no checksum")
    except ValueError as error:
        raise PlannerError(f"{path}: damaged: {error}; remove it, and the sweep's next run writes it again") from None
    if isinstance(rule, bool) or not isinstance(rule, int | float) or not 0 < rule <= MOST_STEPS_PER_ROW:
        raise PlannerError(
            f"{path}: steps_per_row: expected a positive number, at most {MOST_STEPS_PER_ROW}, got {rule!r:.80}"
        )
    return float(rule)


def trained_steps_per_row(k_fwd: int, map_size: Any, *, unrolled: bool) -> float | None:
    """Return the forward steps per row with which a planner was trained; None where more would be another planner.

    Args:
        k_fwd: Forward steps in training.
        map_size: Rows of the maps in training; None where the spec does not say.
        unrolled: Whether it was trained for exactly that number of steps, and not for the fixed point.
    """
    known = isinstance(map_size, int) and not isinstance(map_size, bool) and map_size > 0
    return k_fwd / map_size if known and not unrolled else None


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
