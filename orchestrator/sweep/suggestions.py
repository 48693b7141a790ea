"""The suggestions that a `search:` sweep has made so far, in the storage, and those of them that it can use."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import uuid
from pathlib import Path
from typing import Any

from orchestrator.sweep.search_space import Scalar, SearchSpec, Suggestions
from orchestrator.sweep.specs import Expansion, PlannedTrial, SweepError, SweepSpec, expand, studies

_PROBES = 64
"""So many draws tell whether a space holds anything possible."""

_STUDY = re.compile(r"\d+/.+")
_ROUND = re.compile(r"round-(\d+)\.json")


def planned_trials(sweep: SweepSpec, storage: Path) -> tuple[list[PlannedTrial], list[str]]:
    """Return the trials that a sweep stands for by now, and in words what suggestions of its search are left out.

    Args:
        sweep: The sweep.
        storage: The storage directory, where the suggestions of a search are.

    Raises:
        SweepError: A trial is impossible, or a file of suggestions is damaged.
    """
    if sweep.search is None:
        return expand(sweep), []
    usable, left_out = fitting(sweep, read_suggestions(storage, sweep.name))
    return expansion(sweep).trials(usable), left_out


_latest: list[Expansion] = []


def expansion(sweep: SweepSpec) -> Expansion:
    """Return what makes the trials of a search, one and the same for as long as no other sweep is asked for.

    A search of 2,000 suggestions is expanded by whoever plans, goes on with or tells of it.
    """
    if not _latest or _latest[0].sweep is not sweep:
        _latest[:] = [Expansion(sweep)]
    return _latest[0]


def fitting(sweep: SweepSpec, suggestions: Suggestions) -> tuple[Suggestions, list[str]]:
    """Return the suggestions that are in the sweep's present space, each once, and in words which are left out.

    A space may have been edited since they were made: a choice removed, an axis added, a range narrowed.

    Args:
        sweep: A sweep with a `search`.
        suggestions: What has been suggested so far.
    """
    assert sweep.search is not None
    usable: Suggestions = {}
    words = []
    for study in studies(sweep):
        seen: set[tuple[str, ...]] = set()
        reasons = []
        for suggestion in suggestions.get(study, []):
            try:
                spelled = _in_space(sweep.search, suggestion)
                trials = trials_of(sweep, study, spelled)
            except SweepError as error:
                reasons.append(f"{_words(suggestion)}: {error}")
                continue
            if trials in seen:
                reasons.append(f"{_words(suggestion)}: made before")
                continue
            seen.add(trials)
            usable.setdefault(study, []).append(spelled)
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            words.append(f"search: suggestions of {study} are left out: {reasons[0]}{more}")
    return usable, words


def _words(suggestion: dict[str, Scalar]) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in suggestion.items())[:200]


def _in_space(search: SearchSpec, suggestion: dict[str, Scalar]) -> dict[str, Scalar]:
    """Return a suggestion as the present space spells it; raise SweepError where it is not in there."""
    if suggestion.keys() != search.space.keys():
        raise SweepError(f"the space has the axes {', '.join(search.space)}")
    spelled = {}
    for name, axis in search.space.items():
        inside, value = axis.matching(suggestion[name])
        if not inside:
            raise SweepError(f"{name} is not in the space")
        spelled[name] = value
    return spelled


def trials_of(sweep: SweepSpec, study: str, suggestion: dict[str, Scalar]) -> tuple[str, ...]:
    """Return the ids of the trials that a suggestion stands for; raise SweepError where one is impossible."""
    return tuple(trial.trial_id for trial in expansion(sweep).trials({study: [suggestion]}))


def check_space(sweep: SweepSpec) -> None:
    """Raise SweepError where a study's space has a choice, or nothing at all, that makes a possible trial.

    A range may hold values that are impossible, such as the even ones of a kernel's size: they are never suggested.

    Args:
        sweep: A sweep with a `search`.
    """
    assert sweep.search is not None
    space, chance = sweep.search.space, random.Random(0)
    for study in studies(sweep):
        for name, axis in space.items():
            for value in axis.choices or [None]:
                fixed = {} if axis.choices is None else {name: value}
                _check_some(sweep, study, fixed, chance)


def _check_some(sweep: SweepSpec, study: str, fixed: dict[str, Scalar], chance: random.Random) -> None:
    assert sweep.search is not None
    first: SweepError | None = None
    for number in range(_PROBES):
        drawn = {
            name: axis.draw(chance) if number else (axis.choices[0] if axis.choices is not None else axis.low)
            for name, axis in sweep.search.space.items()
        }
        try:
            trials_of(sweep, study, drawn | fixed)
            return
        except SweepError as error:
            first = first or error
    what = f"{_words(fixed)} is impossible" if fixed else "nothing in it is possible"
    raise SweepError(f"search.space: {what} for {study}: {first}")


def read_suggestions(storage: Path, sweep: str) -> Suggestions:
    """Return what has been suggested so far, whether it fits the sweep's present space or not.

    Raises:
        SweepError: A file is damaged; names it.
    """
    found: Suggestions = {}
    for path in _rounds(storage, sweep):
        try:
            content = _content(path.read_bytes())
        except FileNotFoundError:
            continue  # taken away since the folder was read
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a round of suggestions, or damaged"
            raise SweepError(
                f"{path}: {reason}; without the file the search goes on and makes others in its place"
            ) from None
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


def write_suggestions(storage: Path, sweep: str, suggestions: Suggestions, number: int) -> bool:
    """Write the suggestions of a round; False where another run of the sweep was faster, whose suggestions count.

    Args:
        storage: The storage directory.
        sweep: Name of the sweep.
        suggestions: The new ones.
        number: Number of the round, from 0.
    """
    folder = storage / "sweeps" / sweep / "search"
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


def next_round(storage: Path, sweep: str) -> int:
    """Return the number of the next round of suggestions."""
    rounds = _rounds(storage, sweep)
    return int(_ROUND.fullmatch(rounds[-1].name)[1]) + 1 if rounds else 0  # type: ignore[index]


def _rounds(storage: Path, sweep: str) -> list[Path]:
    folder = storage / "sweeps" / sweep / "search"
    return sorted((p for p in folder.glob("round-*.json") if _ROUND.fullmatch(p.name)), key=lambda p: (len(p.name), p))
