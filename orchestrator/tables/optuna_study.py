"""A study as Optuna's own: for its importances, its samplers, and the file that its dashboard opens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.sweep.search_space import SearchAxis, SearchSpec
from orchestrator.tables.studies import Study, Tried

_TRIAL_IDS = "idp.trial_ids"


def distribution(axis: SearchAxis) -> Any:
    """Return an axis as Optuna's distribution."""
    import optuna

    if axis.choices is not None:
        return optuna.distributions.CategoricalDistribution(axis.choices)
    assert axis.low is not None and axis.high is not None
    if axis.whole:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return optuna.distributions.FloatDistribution(float(axis.low), float(axis.high), log=axis.log)


def _trial(search: SearchSpec, one: Tried) -> Any:
    import optuna

    states = optuna.trial.TrialState
    complete = one.state == "complete" and one.value is not None
    steps = {epoch: value for epoch, value in enumerate(one.reached, start=1) if math.isfinite(value)}
    # Its own word for what failed would have the dashboard leave it out; for us it is a bad suggestion.
    state = states.COMPLETE if complete else states.PRUNED if one.state == "stopped" else states.FAIL
    return optuna.trial.create_trial(
        state=state,
        value=one.value if complete else None,
        params=one.settings,
        distributions={name: distribution(axis) for name, axis in search.space.items()},
        intermediate_values=steps,
        user_attrs={_TRIAL_IDS: list(one.trials)},
    )


def importances(search: SearchSpec, study: Study) -> dict[str, float]:
    """Return how much of the metric's variance each setting explains (fANOVA), largest first; none of too few."""
    import optuna

    ended = [one for one in study.tried if one.state == "complete" and one.value is not None]
    if len(ended) < 4 or len({one.value for one in ended}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = optuna.create_study(direction="maximize")
    found.add_trials([_trial(search, one) for one in ended])
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(found, evaluator=evaluator))


def write_journal(path: Path, sweep: str, search: SearchSpec, studies: Iterable[Study]) -> None:
    """Bring the file that optuna-dashboard opens up to date with the suggestions that have ended.

    What it has stays as it is, so that a dashboard may be looking; where that is no longer so, it is made anew.

    Args:
        path: The file, in Optuna's journal format.
        sweep: Name of the sweep.
        search: The search.
        studies: Its studies.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = {}
    for study in studies:
        ended = [_trial(search, one) for one in study.tried if one.state != "running"]
        wanted[f"{sweep} {study.name}"] = ended
    for again in (False, True):
        if again:
            path.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
        known = optuna.get_all_study_names(storage)
        fits = True
        for name, trials in wanted.items():
            if name in known:  # making it again would leave a line in the file
                study = optuna.load_study(storage=storage, study_name=name)
            else:
                study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
            there = study.get_trials(deepcopy=False)
            if [_content(trial) for trial in there] != [_content(trial) for trial in trials[: len(there)]]:
                fits = False
                break
            if len(there) < len(trials):
                study.add_trials(trials[len(there) :])
        if fits:
            return


def _content(trial: Any) -> tuple[Any, ...]:
    return trial.state, trial.values, trial.params, trial.distributions, trial.intermediate_values
