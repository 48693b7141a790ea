"""A sweep and its results by name, for a notebook or a program of one's own, and for the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage, default_storage
from orchestrator.storage.results import ResultError
from orchestrator.storage.suggestions import planned_trials
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import PlannedTrial, SweepError, SweepSpec
from orchestrator.sweep.suggestions import check_only
from orchestrator.sweep.systems import METRIC
from orchestrator.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from planners.inference import RoutePlanner


@dataclass(frozen=True)
class OpenSweep:
    """A sweep beside its storage.

    Attributes:
        spec: The sweep.
        trials: Its trials, those that a search has suggested so far included; the selected ones.
        storage: The storage directory; it need not exist.
        left_out: In words, what suggestions of its search are left out.
    """

    spec: SweepSpec
    trials: list[PlannedTrial]
    storage: Storage
    left_out: list[str]


def open_sweep(
    sweep: str | Path,
    storage: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
    only: str | None = None,
) -> OpenSweep:
    """Return a sweep and its trials.

    Args:
        sweep: The sweep's file.
        storage: The storage directory; `IDP_STORAGE` or ./idp-storage by default.
        profile: One of the sweep's profiles.
        overrides: Settings `path=value`, as for `--set`.
        only: Which trials, as for `--only`; None for all of them.

    Raises:
        SweepError: The sweep is not one, the storage can't be one, or no trial is selected.
    """
    folder = Storage.given(default_storage() if storage is None else storage)
    spec = load_sweep(sweep, profile, overrides)
    trials, left_out = planned_trials(spec, folder)
    if trials or spec.search is None:
        trials = select(trials, only)
    else:  # a search that has not begun has no trials yet
        check_only(spec, only)
    return OpenSweep(spec, trials, folder, left_out)


def read_results(
    sweep: str | Path,
    storage: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
) -> pa.Table:
    """Return a sweep's trials as a table, one row per trial, for a notebook; `.to_pandas()` makes a data frame.

    The columns are the trial's axes (planner, task, map_size, k, seed, ...), `status` ("MISSING" where there is no
    result), `stale` (True where other code than the present made it), then the fields of `TrialResult`, those of the
    provenance as `provenance_NAME`.

    Args:
        sweep: The sweep's file.
        storage: The storage directory; `IDP_STORAGE` or ./idp-storage by default.
        profile: One of the sweep's profiles.
        overrides: Settings `path=value`, as for `--set`.

    Raises:
        SweepError: The sweep is not one, or the storage can't be one.
    """
    import pyarrow as pa

    opened = open_sweep(sweep, storage, profile, overrides)
    results = opened.storage.results([trial.trial_id for trial in opened.trials])
    rows = []
    for trial in opened.trials:
        result = results.get(trial.trial_id)
        row: dict[str, Any] = {**trial.axes, "trial_id": trial.trial_id, "status": "MISSING", "stale": False}
        if result is not None:
            content = result.model_dump(exclude={"provenance"})
            origin = {f"provenance_{name}": value for name, value in result.provenance.model_dump().items()}
            # A mapping would become a column per key of any row, whether the row has it or not.
            origin["provenance_versions"] = json.dumps(result.provenance.versions)
            origin["provenance_plugins"] = json.dumps(result.provenance.plugins)
            content |= {f"{METRIC}{name}": value for name, value in content.pop("metrics").items()}
            row |= {**content, **origin, "stale": result.final and not result.provenance.made_by(code_hash())}
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def load_planner(
    sweep: str | Path,
    *,
    planner: str | None = None,
    seed: int | None = None,
    only: str | None = None,
    storage: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    overrides: Iterable[str] = (),
) -> RoutePlanner:
    """Return the planner that one trial of a sweep has trained, to solve maps with.

    Args:
        sweep: The sweep's file.
        planner: Its planner's name; may be left out where the sweep has one.
        seed: Its seed; likewise.
        only: What else tells it from the sweep's other trials, as for `--only`: "k=80,task=navigation".
        storage: The storage directory; `IDP_STORAGE` or ./idp-storage by default.
        profile: One of the sweep's profiles.
        overrides: Settings `path=value`, as for `--set`.

    Raises:
        SweepError: No trial, or more than one, is meant; says by what those differ.
        ResultError: It has not been trained yet.
        PlannerError: What it has left is damaged.
    """
    from planners.inference import load_planner as load

    axes = {"planner": planner, "seed": seed}
    wanted = [f"{axis}={value}" for axis, value in axes.items() if value is not None]
    opened = open_sweep(sweep, storage, profile, overrides, ",".join([*wanted, *([only] if only else [])]) or None)
    trials = opened.trials
    if len(trials) != 1:
        raise SweepError(f"{sweep}: expected one trial, got {counted(len(trials), 'trial')}{_told_apart(trials)}")
    directory = opened.storage.trial(trials[0].trial_id)
    if not directory.path.is_dir():
        raise ResultError(f"{directory}: this trial of {sweep} has not been trained; `idp run {sweep}` does")
    return load(directory.path)


def _told_apart(trials: list[PlannedTrial]) -> str:
    """Return, in words, by which axes trials differ."""
    values: dict[str, dict[str, None]] = {}
    for trial in trials:
        for axis, value in trial.axes.items():
            values.setdefault(axis, {})[str(value)] = None
    several = [f"{axis} ({', '.join(found):.80})" for axis, found in values.items() if len(found) > 1]
    return f"; say which {', '.join(several)}" if several else ""
