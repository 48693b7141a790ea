"""Some of a sweep's trials, as `--only` and a trial's name on the command line choose them."""

from __future__ import annotations

import functools
from collections.abc import Collection

from datagen.spec import nearest
from orchestrator.sweep.specs import PlannedTrial, Scalar, SweepError
from orchestrator.sweep.yaml_1_2 import BadYaml, parse_yaml
from orchestrator.words import counted


def select(trials: list[PlannedTrial], only: str | None, unknown: Collection[str] = ()) -> list[PlannedTrial]:
    """Return the trials that match `only`, such as `planner=vin,id-vin,k=80`, `planner=vin|id-vin` or `id=3f2a`.

    A key matches any of its values, whether they follow it or it is given several times; different keys must all match.

    Args:
        trials: To choose from.
        only: Which, None for all of them.
        unknown: Keys that match whatever the value, which is not known yet.

    Raises:
        SweepError: When a key is unknown, or a value or all of them together match no trial.
    """
    if only is None:
        return trials
    wanted = _wanted(only, {"id", *(axis for trial in trials for axis in trial.axes)})
    wanted = {key: values for key, values in wanted.items() if key not in unknown}
    for key, values in wanted.items():
        for value in values:
            if not any(_has(trial, key, value) for trial in trials):
                raise SweepError(f"--only {key}={value:.80}: no trial of the sweep matches{_hint(trials, key, value)}")
    found = [t for t in trials if all(any(_has(t, key, value) for value in values) for key, values in wanted.items())]
    if not found:
        raise SweepError(f"--only {only!r:.200}: no trial of the sweep matches all of it")
    return found


def _wanted(only: str, known: set[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    key = ""
    for part in only.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            key = name
        else:
            value = name  # a further value of the key before it
        if not key or not value:
            raise SweepError(f"--only {part!r:.80}: expected key=value, for example planner=id-vin")
        if key not in known:
            raise SweepError(f"--only: unknown key {key!r:.80}; {nearest(key, known)}")
        wanted.setdefault(key, []).extend(filter(None, (piece.strip() for piece in value.split("|"))))
    return wanted


def _has(trial: PlannedTrial, key: str, value: str) -> bool:
    if key == "id":
        return trial.trial_id.startswith(value)
    own = trial.axes.get(key)
    return str(own) == value or _same(own, value)


def _same(own: Scalar, text: str) -> bool:
    """Return whether a value is meant by a text that spells it in another way, as in a sweep: true, null, 1.0e-3."""
    value = _meant(text)
    return isinstance(value, Scalar) and own == value and isinstance(own, bool) == isinstance(value, bool)


@functools.cache
def _meant(text: str) -> object:
    """Return the value that a text spells; what is no value where it spells none."""
    try:
        return parse_yaml(text)
    except BadYaml:
        return ()


def _hint(trials: list[PlannedTrial], key: str, value: str) -> str:
    there = list(dict.fromkeys(str(trial.axes[key]) for trial in trials if key in trial.axes))
    return f"; {nearest(value, there)}" if there and len(there) <= 20 else ""


def find_trial(trials: list[PlannedTrial], prefix: str) -> PlannedTrial:
    """Return the one trial whose id starts with `prefix`.

    Raises:
        SweepError: When none or several do, or it is empty.
    """
    if not prefix:
        raise SweepError("expected a trial's id, or how it starts, got ''")
    found = {trial.trial_id: trial for trial in trials if trial.trial_id.startswith(prefix)}
    if len(found) != 1:
        count = f"{counted(len(found), 'trial')} of the sweep {'have' if found else 'has'}"
        raise SweepError(f"{count} an id that starts with {prefix!r:.80}")
    return next(iter(found.values()))
