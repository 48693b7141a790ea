"""What a sweep will do, cost and leave, from what is in the storage; starts nothing and needs no torch and no Ray."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from datagen.storage import dataset as parquet
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import DatasetSpec, dataset_id
from orchestrator.campaign.estimates import effort, expectation
from orchestrator.storage.code import code_hash
from orchestrator.storage.evaluations import missing_evaluations, planned_evaluations
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import PlannedTrial, Scalar, SweepSpec

State = Literal["done", "missing", "stale", "failed", "cancelled"]
STATES: tuple[State, ...] = ("done", "missing", "stale", "failed", "cancelled")
Rerun = Literal["stale", "shared"]
RERUNS: tuple[Rerun, ...] = ("stale", "shared")
RERUN_HELP = "also train again what other code has produced (stale), or what shared its device (shared)"
TRIAL_BYTES = 200_000
"""Disk of a small trial's directory, where no earlier trial says better."""


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset of a sweep.

    Attributes:
        dataset_id: Its folder's name.
        present: True where it is complete.
        needed: True where it is not there, and a trial that is to run, or would be trained again, or a test needs it.
        bytes: Its size where present, else the most it can take.
        problems: Train, valid and test problems together.
        spec: What it is made from.
    """

    dataset_id: str
    present: bool
    needed: bool
    bytes: int
    problems: int
    spec: DatasetSpec


@dataclass(frozen=True)
class Plan:
    """A sweep against its storage.

    Attributes:
        sweep: The sweep.
        trials: Its trials (the selected ones).
        results: What there is, by trial id.
        states: By trial id: "done" (COMPLETED or OUT_OF_MEMORY by the present code), "stale" (by other code),
            "failed", "cancelled", "missing".
        datasets: What the trials need.
        work: Expected work by trial id, in seconds where those are known, else in steps x cells.
        in_seconds: Whether they are known.
        seconds_from: Where the expectation comes from, in words.
        guessed: Ids of the trials that are like nothing that ever ran.
        trial_bytes: Expected disk of one trial.
    """

    sweep: SweepSpec
    trials: list[PlannedTrial]
    results: dict[str, TrialResult]
    states: dict[str, State]
    datasets: list[PlannedDataset]
    work: dict[str, float]
    in_seconds: bool
    seconds_from: str
    guessed: frozenset[str]
    trial_bytes: int

    def counts(self) -> dict[str, int]:
        """Return how many trials are in each state."""
        return {state: self.count(state) for state in STATES}

    def count(self, *states: State) -> int:
        """Return how many trials of the sweep are in one of the states."""
        return sum(self.states[trial.trial_id] in states for trial in self.trials)

    def to_run(self, rerun: Rerun | None = None) -> list[PlannedTrial]:
        """Return the trials that `run` trains, those with most work first, so that the tail is short.

        Args:
            rerun: Also those that are done, but by other code ("stale") or on a device that they shared ("shared").
        """
        found = {t.trial_id: t for t in self.trials if self.states[t.trial_id] in ("missing", "failed")}
        for trial in self.trials:
            if (rerun == "stale" and self.states[trial.trial_id] == "stale") or (
                rerun == "shared" and self._shared(trial.trial_id)
            ):
                found[trial.trial_id] = trial
        return sorted(found.values(), key=lambda trial: -self.work[trial.trial_id])

    def seconds(self, rerun: Rerun | None = None) -> float | None:
        """Return the expected process time of what `to_run` returns; None where nothing is known."""
        todo = self.to_run(rerun)
        return sum(self.work[trial.trial_id] for trial in todo) if self.in_seconds or not todo else None

    def at_least(self, rerun: Rerun | None = None) -> bool:
        """Return True where some of that is like nothing that ever ran, so that it may take much longer."""
        return self.in_seconds and any(trial.trial_id in self.guessed for trial in self.to_run(rerun))

    def _shared(self, trial_id: str) -> bool:
        return self.states[trial_id] in ("done", "stale") and not self.results[trial_id].provenance.exclusive


def make_plan(sweep: SweepSpec, trials: list[PlannedTrial], storage: Storage) -> Plan:
    """Return the plan of `trials`, a selection of the sweep's.

    Args:
        sweep: The sweep.
        trials: The trials to look at.
        storage: The storage directory; it need not exist.
    """
    results = storage.results(dict.fromkeys(trial.trial_id for trial in trials))
    states = {trial.trial_id: _state(results.get(trial.trial_id)) for trial in trials}
    specs = {trial.trial_id: trial.spec for trial in trials}
    expected = expectation(storage, specs, results)
    expect = expected.seconds
    work = {trial_id: expect(spec) if expect else effort(spec) for trial_id, spec in specs.items()}
    return Plan(
        sweep=sweep,
        trials=trials,
        results=results,
        states=states,
        datasets=_datasets(sweep, trials, states, storage),
        work=work,
        in_seconds=expect is not None,
        seconds_from=expected.words,
        guessed=frozenset(trial_id for trial_id, spec in specs.items() if expected.guessed(spec)),
        trial_bytes=_trial_bytes(storage, list(results)),
    )


def _state(result: TrialResult | None) -> State:
    if result is None:
        return "missing"
    if result.status == "CANCELLED":
        return "cancelled"
    if not result.final:
        return "failed"
    return "done" if result.provenance.made_by(code_hash()) else "stale"


def _datasets(
    sweep: SweepSpec, trials: list[PlannedTrial], states: Mapping[str, State], storage: Storage
) -> list[PlannedDataset]:
    """Return what the trials are trained on, and what the trained planners are tested on besides."""
    tests = planned_evaluations(sweep, trials)
    every = _distinct([*(trial.spec.data for trial in trials), *(test.data for test in tests)])
    found = {name: _dataset(spec, storage) for name, spec in every.items()}
    if all(dataset.present for dataset in found.values()):
        return list(found.values())
    # Results without their planners, as from an archive, need nothing more.
    open_ones = {trial_id for trial_id, state in states.items() if state in ("missing", "failed", "stale")}
    to_test = [test for test in tests if test.trial.trial_id in open_ones]
    to_test += missing_evaluations([test for test in tests if test.trial.trial_id not in open_ones], storage)
    to_train = (trial.spec.data for trial in trials if trial.trial_id in open_ones)
    needed = _distinct([*to_train, *(test.data for test in to_test)])
    return [replace(one, needed=not one.present and name in needed) for name, one in found.items()]


def _distinct(specs: Iterable[DatasetSpec]) -> dict[str, DatasetSpec]:
    each = {id(spec): spec for spec in specs}  # thousands of trials share a few
    return {dataset_id(spec): spec for spec in each.values()}


def _dataset(spec: DatasetSpec, storage: Storage) -> PlannedDataset:
    root = storage.datasets
    problems = spec.train + spec.valid + spec.test
    try:
        present = parquet.is_complete(spec, root, verify=False)
    except DatasetError:
        present = False  # a damaged manifest; `run` makes the set again
    if present:
        size = sum(record.bytes for record in parquet.load_manifest(parquet.directory_of(spec, root)).shards)
    else:
        size = problems * parquet.bytes_per_problem(spec)
    return PlannedDataset(dataset_id(spec), present, False, size, problems, spec)


def _trial_bytes(storage: Storage, trial_ids: list[str]) -> int:
    sizes = []
    for trial_id in trial_ids[:50]:
        directory = storage.trial(trial_id).path
        if directory.is_dir():  # a file of that name has no result, but the reason why
            sizes.append(sum(path.stat().st_size for path in directory.iterdir() if path.is_file()))
    return round(statistics.mean(sizes)) if sizes else TRIAL_BYTES


def by_cell(plan: Plan) -> list[tuple[dict[str, Scalar], list[Scalar], Counter[str]]]:
    """Return planner, task and K of each cell, its seeds, and how many of its trials are in which state."""
    cells: dict[tuple[tuple[str, Scalar], ...], tuple[dict[str, Scalar], list[Scalar], Counter[str]]] = {}
    for trial in plan.trials:
        cell = cells.setdefault(tuple(trial.cell.items()), (trial.cell, [], Counter()))
        cell[1].append(trial.axes["seed"])
        cell[2][plan.states[trial.trial_id]] += 1
    return list(cells.values())
