"""The trials of a sweep with all that they left behind: what figures and reports are made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from datagen.spec import nearest
from datagen.tasks.registry import DatasetSpec
from orchestrator.errors import SweepError
from orchestrator.storage.evaluations import EvaluationResult, planned_evaluations, read_evaluation
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import ResultError, TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import PlannedTrial, Scalar, SweepSpec
from orchestrator.sweep.systems import METRIC
from orchestrator.tables.freshness import is_present, of_one_version, version

K = TypeVar("K", bound=Hashable)
CURVES = ("epoch", "train_seconds", "valid_success_rate")
"""What pictures need of an epoch; of a system's, its metrics instead of the last."""
SEARCHED = ("valid_optimality", "valid_spl")
"""What a search may make largest besides, where an epoch has it."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a sweep and what it left behind.

    Attributes:
        trial: The trial and its place in the sweep.
        result: Its result, None where there is none yet.
        curves: `CURVES` of each of its epochs, or what a system has of them and its metrics, also of a trial that runs.
        evaluations: What it does on the sweep's `test_on` maps, as far as that is known.
        damaged: What could not be read of it, a line per file.
        maps: What those maps are, by their dataset's id.
    """

    trial: PlannedTrial
    result: TrialResult | None
    curves: list[dict[str, Any]]
    evaluations: list[EvaluationResult]
    damaged: tuple[str, ...] = ()
    maps: dict[str, DatasetSpec] = field(default_factory=dict)

    def axis(self, name: str) -> Scalar:
        """Return the trial's place on an axis of the sweep, None where it has none."""
        return self.trial.axes.get(name)

    @property
    def completed(self) -> bool:
        """True where the trial has numbers."""
        return self.result is not None and self.result.status == "COMPLETED"

    @property
    def out_of_memory(self) -> bool:
        """True where memory ran out."""
        return self.result is not None and self.result.status == "OUT_OF_MEMORY"


def collect(
    sweep: SweepSpec, trials: Sequence[PlannedTrial], storage: Storage, *, curves: bool = True
) -> list[TrialRecord]:
    """Return the runs of the trials, read from the storage; a trial that the sweep lists twice in one place is one.

    What is damaged costs its trial alone, and is told in `TrialRecord.damaged`.

    Args:
        sweep: The sweep.
        trials: Its trials, or some of them.
        storage: The storage directory.
        curves: Whether to read the per-epoch records, which tables do not need.
    """
    places = {(trial.trial_id, tuple(trial.axes.items())): trial for trial in reversed(trials)}
    distinct = list(places.values())[::-1]
    results = storage.results(dict.fromkeys(trial.trial_id for trial in distinct))
    evaluations: dict[int, list[Path]] = {}
    maps: dict[int, dict[str, DatasetSpec]] = {}
    for evaluation in planned_evaluations(sweep, distinct):
        evaluations.setdefault(id(evaluation.trial), []).append(evaluation.path(storage))
        maps.setdefault(id(evaluation.trial), {})[evaluation.dataset_id] = evaluation.data
    metric = None if sweep.search is None else sweep.search.metric
    read = [
        _read(trial, results.get(trial.trial_id), storage, evaluations.get(id(trial), []), metric, curves=curves)
        for trial in distinct
    ]
    return [replace(run, maps=maps.get(id(run.trial), {})) for run in read]


def _read(
    trial: PlannedTrial,
    result: TrialResult | None,
    storage: Storage,
    evaluations: Sequence[Path],
    metric: str | None,
    *,
    curves: bool,
) -> TrialRecord:
    damaged: list[str] = []
    tests = []
    for path in evaluations:
        try:
            test = read_evaluation(path)
        except ResultError as error:
            damaged.append(str(error))
            continue
        if test is not None and (result is None or _is_of(test, result)):
            tests.append(test)
    records = read_whole_curves(storage.trial(trial.trial_id), damaged.append, metric) if curves else []
    kept = (*CURVES, *SEARCHED)
    drawn = [
        {name: value for name, value in record.items() if name in kept or name.startswith(METRIC)} for record in records
    ]
    return TrialRecord(trial, result, drawn, tests, tuple(damaged))


def _is_of(test: EvaluationResult, result: TrialResult) -> bool:
    """Return False for a test of the weights that a trial had before other code trained it again."""
    return version(test.provenance) == version(result.provenance) or is_present(test.provenance)


def read_whole_curves(
    trial: TrialDirectory, say: Callable[[str], object], metric: str | None = None
) -> list[dict[str, Any]]:
    """Return a trial's per-epoch records, none where they are damaged, which `say` is told.

    Args:
        trial: Its directory.
        say: Is told the file, and what is wrong with it.
        metric: What a search makes largest, which each epoch must have, too; None without one.
    """
    try:
        records = trial.read_curves()
        for record in records:
            of_system = [name for name in record if name.startswith(METRIC)]
            there = [name for name in of_system if record[name] is not None]
            for name in (*(CURVES[:2] if of_system else CURVES), *there, *([metric] if metric else ())):
                if not isinstance(record.get(name), (int, float)):
                    raise ResultError(f"{trial.curves_file}: {name}: expected a number in each epoch")
    except ResultError as error:
        say(str(error))
        return []
    return records


def grouped(runs: Iterable[TrialRecord], key: Callable[[TrialRecord], K]) -> dict[K, list[TrialRecord]]:
    """Return the runs by key, keys and runs in the order of the sweep."""
    groups: dict[K, list[TrialRecord]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def once(runs: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return each trial once: a sweep may list one twice, and the second is no further seed."""
    return list({run.trial.trial_id: run for run in reversed(list(runs))}.values())[::-1]


def usable(runs: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the completed runs, each trial once, that may be averaged: those `of_one_version`."""
    return once(of_one_version([run for run in runs if run.completed], provenance_of))


def provenance_of(run: TrialRecord) -> Provenance:
    """Return what produced the run's result."""
    return run.result.provenance if run.result else Provenance()


def percents_of(runs: Iterable[TrialRecord]) -> list[float]:
    """Return the test success rates there are, in percent."""
    rates = (run.result.test_success_rate for run in runs if run.result is not None)
    return [100 * rate for rate in rates if rate is not None]


def problem_of(run: TrialRecord) -> tuple[Scalar, Scalar]:
    """Return what the run plans on: task and map size."""
    return run.axis("task"), run.axis("map_size")


def cell_of(run: TrialRecord) -> tuple[tuple[str, Scalar], ...]:
    """Return the run's place in the sweep but for the seed: what one row of a table averages."""
    return tuple(run.trial.cell.items())


def best_on_validation(runs: Sequence[TrialRecord], axis: str) -> list[TrialRecord]:
    """Return, of cells that differ on one axis alone, the runs of the one with the best mean validation success.

    Where none of them has such a number, all stay: nothing is chosen.

    Args:
        runs: The sweep's runs.
        axis: An axis of the sweep, or the last part of its name.

    Raises:
        SweepError: The sweep has no such axis, or no number to choose by; systems have none.
    """
    if any(run.trial.spec.system for run in runs):
        raise SweepError("--best: chooses planners by their success on validation maps; systems have none")
    axes = list(dict.fromkeys(name for run in runs for name in run.trial.cell if name != "planner"))
    named = [name for name in axes if axis in (name, name.rpartition(".")[2])]
    if len(named) != 1:
        raise SweepError(f"--best: no single axis {axis!r:.80} of the sweep; {nearest(axis, axes)}")

    def place(run: TrialRecord) -> tuple[tuple[str, Scalar], ...]:
        return tuple((name, value) for name, value in run.trial.cell.items() if name != named[0])

    def rates(cell: Iterable[TrialRecord]) -> list[float]:
        results = [run.result for run in usable(cell)]
        return [r.valid_success_rate for r in results if r is not None and r.valid_success_rate is not None]

    if not any(rates([run]) for run in runs):
        raise SweepError(f"--best: no number to choose {named[0]} by: no trial with validation maps has ended")
    chosen: list[TrialRecord] = []
    for alike in grouped(runs, place).values():
        cells = [cell for cell in grouped(alike, cell_of).values() if rates(cell)]
        chosen += max(cells, key=lambda cell: fmean(rates(cell))) if cells else alike
    return chosen


def planner_of(run: TrialRecord, but: Collection[str] = ()) -> str:
    """Return the planner's name with its place on further axes of the sweep, so that no two of them are averaged.

    Args:
        run: The run.
        but: Axes that are told elsewhere.
    """
    further = [
        f"{axis.rpartition('.')[2]}={value}"
        for axis, value in run.trial.axes.items()
        if axis not in ("planner", "task", "map_size", "k", "seed", *but)
    ]
    return " ".join([str(run.axis("planner")), *further])


def usable_by_cell(runs: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the runs that the tables use: in each cell those that are `usable`, whatever code other cells are of."""
    return [run for cell in grouped(runs, cell_of).values() for run in usable(cell)]
