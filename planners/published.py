"""A planner to hand on: a folder with `spec.json`, `model.safetensors` and a card; those of this package have names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planners import trial_files
from planners.trial_files import PlannerError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
MODEL_FILE = "model.safetensors"
CARD_FILE = "README.md"

_FORMAT = 1
_FIELDS = {"format", "spec", "moves", "epoch", "weights"}
_LONGEST_HEADER = 10**7


def folder_of(given: str | Path) -> Path:
    """Return the folder of a planner that is named by itself, or by a name of `WEIGHTS` where there is no such one.

    Raises:
        PlannerError: It is no name of a folder.
    """
    if not isinstance(given, str | Path):
        raise PlannerError(f"directory: expected the name of a folder or of published weights, got {given!r:.80}")
    folder = Path(given)
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # told by the file that is looked for there
    except (OSError, ValueError) as error:  # longer than names can be; with NUL a ValueError
        reason = getattr(error, "strerror", None) or error
        raise PlannerError(f"directory: {str(given)!r:.80}: {reason}") from None
    published = WEIGHTS / folder
    return published if not folder.exists() and len(folder.parts) == 1 and published.is_dir() else folder


def read_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return a trained planner's file, and what it holds as a checkpoint holds it.

    Args:
        folder: A trial's directory, or one that was made of it to hand on.

    Raises:
        FileNotFoundError: It has neither a checkpoint nor a model.
        PlannerError: That is damaged, or none; names it.
    """
    checkpoint, model = folder / trial_files.CHECKPOINT_FILE, folder / MODEL_FILE
    if model.exists() and not checkpoint.exists():
        return model, read_model(model)
    return checkpoint, trial_files.read_checkpoint(checkpoint)


def model_bytes(spec: Mapping[str, Any], moves: Mapping[str, Any], weights: Mapping[str, Tensor], epoch: int) -> bytes:
    """Return a `model.safetensors`: the same bytes for the same planner.

    Args:
        spec: The whole spec of the trial.
        moves: What the planner's actions do, as in a checkpoint.
        weights: Its tensors by name.
        epoch: Epochs that it was trained for.
    """
    import safetensors.torch

    own = {name: weights[name].detach().cpu().clone().contiguous() for name in sorted(weights)}
    about = {"format": _FORMAT, "spec": spec, "moves": moves, "epoch": epoch, "weights": _digest(own)}
    # One entry alone: the library writes several in an order that differs from process to process.
    text = json.dumps(trial_files.sealed(about), sort_keys=True, separators=(",", ":"))
    return safetensors.torch.save(own, {"idp": text})


def read_model(path: Path) -> dict[str, Any]:
    """Return what a `model.safetensors` holds, as a checkpoint holds it; nothing in it is run.

    Raises:
        FileNotFoundError: There is none.
        PlannerError: It is damaged, or not one of ours; names it.
    """
    import safetensors.torch

    content = trial_files.whole_file(path)
    try:
        length = int.from_bytes(content[:8], "little")
        if not 0 < length <= min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("its header is not as long as it says")
        weights = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + length])
        about = trial_files.unsealed(json.loads(header.get("__metadata__", {}).get("idp", "null")))
        if not isinstance(about, dict) or about.get("format") != _FORMAT or set(about) != _FIELDS:
            raise ValueError(f"expected the fields {', '.join(sorted(_FIELDS))}, format {_FORMAT}")
        if about["weights"] != _digest(weights):
            raise ValueError("its weights are not those that were written")
    except Exception as error:  # a damaged file makes the readers raise almost anything
        reason = (str(error).splitlines() or [""])[0]
        raise PlannerError(f"{path}: is damaged, or no model of idp ({type(error).__name__}: {reason:.120})") from error
    trainer = {"planner": weights, "moves": _tuples(about["moves"]), "epoch": about["epoch"]}
    return {"spec": about["spec"], "trainer": trainer}


def _tuples(content: Any) -> Any:
    """Return what JSON has made lists of as it was."""
    if isinstance(content, dict):
        return {name: _tuples(part) for name, part in content.items()}
    return tuple(map(_tuples, content)) if isinstance(content, list) else content


def _digest(weights: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
