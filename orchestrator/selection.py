"""Some of a sweep's trials, as `--only` and a trial's name on the command line choose them."""

from __future__ import annotations

from datagen.spec import nearest
from orchestrator.specs import PlannedTrial, SweepError


def select(trials: list[PlannedTrial], only: str | None) -> list[PlannedTrial]:
    """Return the trials that match `only`, such as `planner=id-vin,k=80` or `id=3f2a`.

    A key that is given several times matches any of its values; different keys must all match.

    Raises:
        SweepError: When a key is unknown or nothing matches.
    """
    if only is None:
        return trials
    wanted: dict[str, set[str]] = {}
    known = {"id", *(axis for trial in trials for axis in trial.axes)}
    for part in only.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise SweepError(f"--only {part!r}: expected key=value, for example planner=id-vin")
        if key not in known:
            raise SweepError(f"--only: unknown key {key!r}; {nearest(key, known)}")
        wanted.setdefault(key, set()).add(value)
    found = [trial for trial in trials if _matches(trial, wanted)]
    if not found:
        raise SweepError(f"--only {only!r}: no trial of the sweep matches")
    return found


def _matches(trial: PlannedTrial, wanted: dict[str, set[str]]) -> bool:
    return all(
        any(trial.trial_id.startswith(value) for value in values) if key == "id" else str(trial.axes.get(key)) in values
        for key, values in wanted.items()
    )


def find_trial(trials: list[PlannedTrial], prefix: str) -> PlannedTrial:
    """Return the one trial whose id starts with `prefix`.

    Raises:
        SweepError: When none or several do.
    """
    found = {trial.trial_id: trial for trial in trials if trial.trial_id.startswith(prefix)}
    if len(found) != 1 or not prefix:
        count = "no trial" if not found else f"{len(found)} trials"
        raise SweepError(f"{count} of the sweep have an id starting with {prefix!r}")
    return next(iter(found.values()))
