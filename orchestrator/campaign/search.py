"""Suggestions of a `search:` sweep, from the results so far, by Optuna's samplers.

A study is nothing but the suggestions in the storage and the results of their trials, so it can be taken up anywhere.
"""

from __future__ import annotations

import math
import random
import statistics
import warnings
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.storage.layout import Storage
from orchestrator.storage.results import TrialResult
from orchestrator.storage.suggestions import next_round, planned_trials, read_suggestions, write_suggestions
from orchestrator.sweep.search_space import Scalar, SearchSpec, Suggestions, rounded
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import PlannedTrial, SweepError, SweepSpec, studies
from orchestrator.sweep.suggestions import expansion, fitting, made_for, trials_of
from orchestrator.tables.optuna_study import distribution, write_journal
from orchestrator.tables.records import collect, read_whole_curves
from orchestrator.tables.studies import studies_of
from orchestrator.words import shown

_ASKED, _DRAWN = 20, 1000
"""How often the sampler is asked for a suggestion that is possible and new, and how many are then drawn at random."""


def next_suggestions(sweep: SweepSpec, storage: Storage, only: str | None = None) -> bool:
    """Make the next round of suggestions of the studies whose earlier trials have ended; True where there are new ones.

    A trial that has FAILED has ended too: its suggestion counts as a bad one, and the search goes on.

    Args:
        sweep: A sweep with a `search`.
        storage: The storage directory.
        only: The trials that count, as `--only` chooses them; studies that have none of them wait.

    Raises:
        SweepError: It chooses none.
    """
    assert sweep.search is not None
    faster = False
    while True:
        number = next_round(storage, sweep.name)
        known, _ = fitting(sweep, read_suggestions(storage, sweep.name))
        new = _round(sweep, storage, known, only)
        if new and not known:
            select(expansion(sweep).trials(new), only)  # nothing is written for a choice that matches none of the first
        kept = {made_for(sweep, study): suggestions for study, suggestions in new.items()}
        if not new or write_suggestions(storage, sweep.name, kept, number):
            return bool(new) or faster
        faster = True  # another run of the sweep, whose suggestions are as good, for the studies that it made them for


def _round(sweep: SweepSpec, storage: Storage, known: Suggestions, only: str | None) -> Suggestions:
    assert sweep.search is not None
    own = {study: expansion(sweep).trials({study: known.get(study, [])}) for study in studies(sweep)}
    every = [trial for trials in own.values() for trial in trials]
    chosen = {trial.trial_id for trial in (select(every, only) if every else [])}
    results = storage.results([trial.trial_id for trial in every])
    new: Suggestions = {}
    for study, trials in own.items():
        mine = [trial.trial_id for trial in trials if trial.trial_id in chosen]
        if trials and (not mine or any(trial_id not in results for trial_id in mine)):
            continue
        before = known.get(study, [])
        count = min(sweep.search.at_once, sweep.search.trials - len(before))
        if count > 0:
            outcomes = [
                _outcome(sweep.search, trials_of(sweep, study, suggestion), results, storage) for suggestion in before
            ]
            suggestions = _suggest(sweep, study, before, outcomes, count)
            if suggestions:
                new[study] = suggestions
    return new


def state_of_search(sweep: SweepSpec, storage: Storage) -> list[str]:
    """Return in words how far each study of a search is.

    Args:
        sweep: A sweep with a `search`.
        storage: The storage directory.
    """
    assert sweep.search is not None
    known, _ = fitting(sweep, read_suggestions(storage, sweep.name))
    lines = []
    for study in studies(sweep):
        ids = [trials_of(sweep, study, suggestion) for suggestion in known.get(study, [])]
        results = storage.results([trial_id for ran in ids for trial_id in ran])
        failed = sum(any(i in results and results[i].status == "FAILED" for i in ran) for ran in ids)
        ended = sum(all(i in results for i in ran) for ran in ids)
        words = f"search: {study}: {ended} of at most {sweep.search.trials} suggestions tried"
        words += f", {failed} of them failed" if failed else ""
        lines.append(words + _best(sweep.search, known.get(study, []), ids, results, storage))
    return lines


def _best(
    search: SearchSpec,
    suggestions: list[dict[str, Scalar]],
    ids: list[tuple[str, ...]],
    results: Mapping[str, TrialResult],
    storage: Storage,
) -> str:
    """Return in words the suggestion that is best so far, empty for none."""
    best: tuple[float, dict[str, Scalar]] | None = None
    for suggestion, ran in zip(suggestions, ids, strict=True):
        if all(i in results for i in ran):
            complete, value = _outcome(search, ran, results, storage)
            if complete and value is not None and (best is None or value > best[0]):
                best = value, suggestion
    if best is None:
        return ""
    settings = ", ".join(f"{axis}={shown(value)}" for axis, value in best[1].items())
    return f"; best {search.metric} {best[0]:.3f} with {settings}"


def _outcome(
    search: SearchSpec, trial_ids: Iterable[str], results: Mapping[str, TrialResult], storage: Storage
) -> tuple[bool, float | None]:
    """Return whether a suggestion was tried to its end, and how good it was, as far as is known."""
    values, complete = [], True
    for trial_id in trial_ids:
        if trial_id not in results:
            continue  # not among those that were chosen
        curves = read_whole_curves(storage.trial(trial_id), str, search.metric)  # what is damaged is said by tables
        if curves and math.isfinite(value := curves[-1][search.metric]):
            values.append(float(value))
        complete &= results[trial_id].status == "COMPLETED"
    return complete, statistics.fmean(values) if values else None


def _suggest(
    sweep: SweepSpec,
    study: str,
    known: list[dict[str, Scalar]],
    outcomes: list[tuple[bool, float | None]],
    count: int,
) -> list[dict[str, Scalar]]:
    """Return up to `count` new suggestions: possible ones, and none that was made before."""
    import optuna

    assert sweep.search is not None
    search = sweep.search
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: distribution(axis) for name, axis in search.space.items()}
    state_of = optuna.trial.TrialState
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # One seed per round, or every round of a young study would begin with the same suggestion; and those that are
        # made together must not be near copies of each other, which taking the others for bad ones sees to.
        sampler = _sampler(search, search.seed + len(known))
    found = optuna.create_study(direction="maximize", sampler=sampler)
    for suggestion, (complete, value) in zip(known, outcomes, strict=True):
        if complete and value is not None:
            state: dict[str, Any] = {"state": state_of.COMPLETE, "value": value}
        else:  # without a value it counts as worse than all others
            state = {"state": state_of.PRUNED, "intermediate_values": {} if value is None else {1: value}}
        found.add_trial(optuna.trial.create_trial(params=suggestion, distributions=distributions, **state))
    seen = {trials_of(sweep, study, suggestion) for suggestion in known}
    chance = random.Random(f"{search.seed} {study} {len(known)}")
    new: list[dict[str, Scalar]] = []

    def take(suggestion: dict[str, Scalar]) -> Any:
        """Take a suggestion that is possible and new; return what the sampler is to think of it, None for nothing."""
        suggestion = {name: rounded(search.space[name], value) for name, value in suggestion.items()}
        try:
            trials = trials_of(sweep, study, suggestion)
        except SweepError:
            return state_of.PRUNED
        if trials in seen:
            return state_of.FAIL
        seen.add(trials)
        new.append(suggestion)
        return None

    for _ in range(count):
        for _ in range(_ASKED):
            asked = found.ask(distributions)
            refused = take(dict(asked.params))
            if refused is None:
                break
            found.tell(asked, state=refused)
        else:
            drawn = ({name: axis.draw(chance) for name, axis in search.space.items()} for _ in range(_DRAWN))
            if all(take(suggestion) is not None for suggestion in drawn):
                break  # all that the space holds has been tried
    return new


def _sampler(search: SearchSpec, seed: int) -> Any:
    import optuna

    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    first = max(4, search.at_once)
    if search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=first, deterministic_objective=False)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=first, constant_liar=True)


def keep_journal(sweep: SweepSpec, storage: Storage) -> None:
    """Bring the file that Optuna's dashboard opens up to date with what the search has come to.

    Args:
        sweep: A sweep with a `search`.
        storage: The storage directory.
    """
    assert sweep.search is not None
    runs = collect(sweep, planned_trials(sweep, storage)[0], storage)
    write_journal(storage.sweep(sweep.name).journal, sweep.name, sweep.search, studies_of(sweep.search, runs))


class StudyStopping:
    """Says which trials of a search are not worth going on with, each beside those of its own kind alone.

    Trials are of one kind where they differ in nothing but the seed and what is searched for: never across planners,
    tasks, sizes or K. What they have reached so far is read from the storage, so that a restart forgets nothing.

    Args:
        sweep: A sweep with a `search` that stops trials.
        trials: Its trials.
        storage: The storage directory.

    Attributes:
        reason: What the result of a stopped trial says.
    """

    def __init__(self, sweep: SweepSpec, trials: Iterable[PlannedTrial], storage: Storage) -> None:
        assert sweep.search is not None
        self._search, self._kinds = sweep.search, dict[tuple[Any, ...], EarlyStopping]()
        self.reason = f"stopped early ({sweep.search.stopping})"
        for trial in trials:
            for record in read_whole_curves(storage.trial(trial.trial_id), str, sweep.search.metric):
                self.stops(trial, record)

    def stops(self, trial: PlannedTrial, record: Mapping[str, Any]) -> bool:
        """Note an epoch of a trial and return True where the trial should stop."""
        varied = {"seed", *self._search.space}
        kind = tuple(sorted((name, repr(value)) for name, value in trial.axes.items() if name not in varied))
        stopping = self._kinds.setdefault(kind, EarlyStopping(self._search.stopping))
        return stopping.stops(trial.trial_id, int(record["epoch"]), record.get(self._search.metric))


class EarlyStopping:
    """Says which of some comparable trials are not worth going on with; a paper's table never uses it.

    Args:
        kind: "asha", "hyperband", "median" or "percentile".
    """

    LEAST_OTHERS = 3
    REDUCTION = 3
    BRACKETS = 3

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
        if self._kind == "percentile":
            return sum(old > value for old in others) > len(others) // 4
        bracket = zlib.crc32(trial_id.encode()) % self.BRACKETS if self._kind == "hyperband" else 0
        if epoch not in {self.REDUCTION**power for power in range(bracket, 12)}:
            return False
        kept = max(1, (len(others) + 1) // self.REDUCTION)
        return sum(old > value for old in others) >= kept
