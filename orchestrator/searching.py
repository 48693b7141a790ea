"""Suggestions of a `search:` sweep, from the results so far; the only file that knows Optuna.

A study is nothing but the suggestions in the storage and the results of their trials, so it can be taken up anywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.results import TrialResult, list_results, read_curves, trial_directory
from orchestrator.search_space import (
    Scalar,
    SearchAxis,
    SearchSpec,
    Suggestions,
    read_suggestions,
    rounds,
    write_suggestions,
)
from orchestrator.specs import PlannedTrial, SweepSpec, expand, studies


def next_suggestions(sweep: SweepSpec, storage: Path) -> bool:
    """Make the next round of suggestions where all earlier ones have ended; True where there are new ones to run.

    Args:
        sweep: A sweep with a `search`.
        storage: The storage directory.
    """
    assert sweep.search is not None
    number = rounds(storage, sweep.name)
    before = read_suggestions(storage, sweep.name)
    trials = expand(sweep, before)
    results = list_results(storage, [trial.trial_id for trial in trials])
    ended = {trial_id for trial_id, result in results.items() if result.final or result.status == "CANCELLED"}
    if any(trial.trial_id not in ended for trial in trials):
        return False
    new: Suggestions = {}
    for study in studies(sweep):
        known = before.get(study, [])
        count = min(sweep.search.at_once, sweep.search.trials - len(known))
        if count > 0:
            own = [expand(sweep, {study: [suggestion]}) for suggestion in known]
            outcomes = [_outcome(sweep.search, tried, results, storage) for tried in own]
            new[study] = _suggest(sweep.search, known, outcomes, count)
    if not new:
        return False
    write_suggestions(storage, sweep.name, new, number)
    return True


def _outcome(
    search: SearchSpec, trials: list[PlannedTrial], results: Mapping[str, TrialResult], storage: Path
) -> tuple[bool, float | None]:
    """Return whether a suggestion was tried to its end, and how good it was, as far as is known."""
    values, complete = [], True
    for trial in trials:
        curves = read_curves(trial_directory(storage, trial.trial_id))
        value = curves[-1].get(search.metric) if curves else None
        if value is not None and value == value:
            values.append(float(value))
        complete &= results[trial.trial_id].status == "COMPLETED"
    return complete, statistics.fmean(values) if values else None


def _suggest(
    search: SearchSpec, known: list[dict[str, Scalar]], outcomes: list[tuple[bool, float | None]], count: int
) -> list[dict[str, Scalar]]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _distribution(axis) for name, axis in search.space.items()}
    # One seed per round, or every round of a young study would begin with the same suggestion.
    sampler = optuna.samplers.TPESampler(seed=search.seed + len(known), n_startup_trials=max(4, search.at_once))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for suggestion, (complete, value) in zip(known, outcomes, strict=True):
        params = {name: suggestion[name] for name in distributions}
        if complete and value is not None:
            state: dict[str, Any] = {"state": optuna.trial.TrialState.COMPLETE, "value": value}
        elif value is not None:
            state = {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": {1: value}}
        else:
            state = {"state": optuna.trial.TrialState.FAIL}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, **state))
    return [dict(study.ask(distributions).params) for _ in range(count)]


def _distribution(axis: SearchAxis) -> Any:
    import optuna

    if axis.choices is not None:
        return optuna.distributions.CategoricalDistribution(axis.choices)
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return optuna.distributions.IntDistribution(axis.low, axis.high, log=axis.log)
    assert axis.low is not None and axis.high is not None
    return optuna.distributions.FloatDistribution(float(axis.low), float(axis.high), log=axis.log)


class EarlyStopping:
    """Says which trials of a search are not worth going on with; a paper's table never uses it.

    Args:
        kind: "asha" or "median".
    """

    LEAST_OTHERS = 3
    REDUCTION = 3

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._values: dict[int, dict[str, float]] = {}

    def stops(self, trial_id: str, epoch: int, value: float | None) -> bool:
        """Note a trial's value after an epoch and return True where it should stop."""
        if value is None or value != value:
            return False
        others = [old for name, old in self._values.get(epoch, {}).items() if name != trial_id]
        self._values.setdefault(epoch, {})[trial_id] = value
        if len(others) < self.LEAST_OTHERS:
            return False
        if self._kind == "median":
            return value < statistics.median(others)
        if epoch not in {self.REDUCTION**power for power in range(12)}:
            return False
        kept = max(1, (len(others) + 1) // self.REDUCTION)
        return sum(old > value for old in others) >= kept
