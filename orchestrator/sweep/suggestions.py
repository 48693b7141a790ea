"""Which suggestions of a `search:` sweep can be used, and whether its space holds any."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from datagen.spec import first_problem
from orchestrator.sweep.grid import field_of
from orchestrator.sweep.search_space import Scalar, SearchAxis, SearchSpec, Suggestions
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import Expansion, PlannedTrial, SweepError, SweepSpec, TrialSpec, studies

_PROBES = 64
"""So many draws tell whether a space holds anything possible."""


_latest: list[Expansion] = []


def expansion(sweep: SweepSpec) -> Expansion:
    """Return what makes the trials of a sweep, one and the same for as long as no other sweep is asked for.

    A sweep is expanded by whoever checks it, plans it, goes on with it or tells of it.
    """
    if not _latest or _latest[0].sweep is not sweep:
        _latest[:] = [Expansion(sweep)]
    return _latest[0]


def made_for(sweep: SweepSpec, study: str) -> str:
    """Return the name under which a study's suggestions are kept, "0/vin@1a2b3c".

    It tells apart what sweeps of one name (profiles, `--set`, two files) search on: maps, planner, training and what is
    judged. Another space or more seeds go on with the same suggestions.
    """
    assert sweep.search is not None
    number, _, name = study.partition("/")
    own = {field: value for field, value in sweep.tasks[int(number)].items() if field != "grid"}
    entry = sweep.planners[name]
    training = [sweep.training | entry.training, sweep.budget.model_dump(mode="json")]
    asked = json.dumps([sweep.data | own, entry.planner, training, sweep.search.metric], sort_keys=True)
    return f"{study}@{hashlib.sha256(asked.encode()).hexdigest()[:6]}"


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
        # Version 0.1.0 did not say what its suggestions were made for.
        for suggestion in [*suggestions.get(study, []), *suggestions.get(made_for(sweep, study), [])]:
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
    """Raise SweepError where a study has no validation maps, or a choice or all of its space makes no possible trial.

    A range may hold values that are impossible, such as the even ones of a kernel's size: they are never suggested. But
    its ends are within the bounds of its field.

    Args:
        sweep: A sweep with a `search`.
    """
    assert sweep.search is not None
    space, chance = sweep.search.space, random.Random(0)
    for study in studies(sweep):
        for name, axis in space.items():
            for value in axis.choices or [None]:
                fixed = {} if axis.choices is None else {name: value}
                trials = _some(sweep, study, fixed, chance)
                if axis.choices is None:
                    _check_ends(name, axis, trials[0].spec)
                if any(trial.spec.data.valid == 0 for trial in trials):
                    metric = sweep.search.metric
                    raise SweepError(f"search.metric {metric!r} needs validation maps, but data.valid is 0 for {study}")


def _check_ends(name: str, axis: SearchAxis, spec: TrialSpec) -> None:
    """Raise SweepError where an end of a range is beyond the bounds of its field."""
    section, _, field = field_of(name).partition(".")
    part: Any = getattr(spec, section) if section else spec
    known = type(part if field in type(part).model_fields else part.options).model_fields[field]
    bounded: Any = Annotated[known.annotation, *known.metadata]
    for end in ("low", "high"):
        try:
            TypeAdapter(bounded).validate_python(getattr(axis, end))
        except ValidationError as error:
            raise SweepError(f"search.space.{name}.{end}: {first_problem(error)}") from None


def check_only(sweep: SweepSpec, only: str | None) -> None:
    """Raise SweepError where `only` chooses no trial of a search, whatever its first suggestions turn out to be.

    Args:
        sweep: A sweep with a `search`.
        only: Which trials, as for `--only`; None for all of them.
    """
    assert sweep.search is not None
    trials = [trial for study in studies(sweep) for trial in _some(sweep, study, {}, random.Random(0))]
    searched = {field_of(axis) for axis in sweep.search.space}
    select(trials, only, {"id", *(axis for trial in trials for axis in trial.axes if field_of(axis) in searched)})


def _some(sweep: SweepSpec, study: str, fixed: dict[str, Scalar], chance: random.Random) -> list[PlannedTrial]:
    """Return the trials of a possible suggestion; raise SweepError where there is none."""
    assert sweep.search is not None
    first: SweepError | None = None
    for number in range(_PROBES):
        drawn = {
            name: axis.draw(chance) if number else (axis.choices[0] if axis.choices is not None else axis.low)
            for name, axis in sweep.search.space.items()
        }
        try:
            return expansion(sweep).trials({study: [drawn | fixed]})
        except SweepError as error:
            first = first or error
    what = f"{_words(fixed)} is impossible" if fixed else "nothing in it is possible"
    raise SweepError(f"search.space: {what} for {study}: {first}")
