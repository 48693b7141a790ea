"""The suggestions that a `search:` sweep has made so far, and the trials that it stands for with them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
from pathlib import Path
from typing import Any

from orchestrator.errors import SweepError
from orchestrator.storage.files import ResultError, read_stored
from orchestrator.storage.layout import Storage
from orchestrator.sweep.search_space import Suggestions
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.sweep.suggestions import expansion, fitting

_STUDY = re.compile(r"\d+/.+")
_ROUND = re.compile(r"round-(\d+)\.json")
_WITHOUT = "without the file the search goes on and makes others in its place"


def planned_trials(sweep: SweepSpec, storage: Storage) -> tuple[list[PlannedTrial], list[str]]:
    """Return the trials that a sweep stands for by now, and in words what suggestions of its search are left out.

    Args:
        sweep: The sweep.
        storage: The storage directory, where the suggestions of a search are.

    Raises:
        SweepError: A trial is impossible, or a file of suggestions is damaged.
    """
    if sweep.search is None:
        return expansion(sweep).trials(), []
    usable, left_out = fitting(sweep, read_suggestions(storage, sweep.name))
    return expansion(sweep).trials(usable), left_out


def read_suggestions(storage: Storage, sweep: str) -> Suggestions:
    """Return what has been suggested so far, whether it fits the sweep's present space or not.

    Raises:
        SweepError: A file is damaged; names it.
    """
    found: Suggestions = {}
    for path in _rounds(storage, sweep):
        try:
            content = _content(read_stored(path))
        except FileNotFoundError:
            continue  # taken away since the folder was read
        except ResultError as error:
            raise SweepError(f"{error}; {_WITHOUT}") from None
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a round of suggestions, or damaged"
            raise SweepError(f"{path}: {reason}; {_WITHOUT}") from None
        for study, suggestions in content.items():
            found.setdefault(study, []).extend(suggestions)
    return found


def _content(written: bytes) -> Suggestions:
    """Return the suggestions in a file; raise ValueError where they are not what was written."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no value of an axis")

    document = json.loads(written, parse_constant=refuse)
    if isinstance(document, dict) and "sha256" in document:
        if document.keys() != {"suggestions", "sha256"} or document["sha256"] != _sum(document["suggestions"]):
            raise ValueError("the sum does not fit")
        document = document["suggestions"]
    if not isinstance(document, dict):
        raise ValueError("not a mapping of studies")
    for study, suggestions in document.items():
        if not _STUDY.fullmatch(study) or not isinstance(suggestions, list):
            raise ValueError("not a study")
        for suggestion in suggestions:
            if not isinstance(suggestion, dict) or not all(map(_is_scalar, suggestion.values())):
                raise ValueError("not a suggestion")
    return document


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _sum(suggestions: Any) -> str:
    return hashlib.sha256(json.dumps(suggestions, sort_keys=True).encode()).hexdigest()


def write_suggestions(storage: Storage, sweep: str, suggestions: Suggestions, number: int) -> bool:
    """Write the suggestions of a round; False where another run of the sweep was faster, whose suggestions count.

    Args:
        storage: The storage directory.
        sweep: Name of the sweep.
        suggestions: The new ones.
        number: Number of the round, from 0.
    """
    folder = storage.sweep(sweep).search
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".round.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"suggestions": suggestions, "sha256": _sum(suggestions)}, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, folder / f"round-{number:06d}.json")
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def next_round(storage: Storage, sweep: str) -> int:
    """Return the number of the next round of suggestions."""
    rounds = _rounds(storage, sweep)
    return int(_ROUND.fullmatch(rounds[-1].name)[1]) + 1 if rounds else 0  # type: ignore[index]


def _rounds(storage: Storage, sweep: str) -> list[Path]:
    folder = storage.sweep(sweep).search
    return sorted((p for p in folder.glob("round-*.json") if _ROUND.fullmatch(p.name)), key=lambda p: (len(p.name), p))
