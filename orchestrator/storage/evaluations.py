"""Trained planners on other test maps than their own: what a sweep asks for, and what is there of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from datagen.tasks.registry import DatasetSpec, Split, dataset_id
from orchestrator.storage.code import code_hash
from orchestrator.storage.files import parsed, read_stored, sealed, unsealed
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import (
    Amount,
    Count,
    Fraction,
    ResultError,
    Seconds,
    check_arrivals,
    is_trial_id,
    write_bytes,
    write_json,
)
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import PlannedTrial, SweepSpec, further_tests
from planners.registry import Measure

REMEDY = "idp run makes it again"


class Bins(BaseModel):
    """Starts by the bin of `planners.training.rollout.ENDS` that they fall into, as far as any does.

    Attributes:
        starts: How many.
        arrivals: How many of them arrive.
        right: How many take an optimal action.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    starts: list[Count] = Field(max_length=64)
    arrivals: list[Count] = Field(max_length=64)
    right: list[Count] = Field(max_length=64)

    @model_validator(mode="after")
    def _all_are_of_the_starts(self) -> Self:
        check_arrivals(self.starts, self.arrivals)
        check_arrivals(self.starts, self.right)
        return self


class EvaluationResult(BaseModel):
    """How a trained planner does on a dataset, `evaluations/DATASET_ID-SPLIT-kK.json` in its trial directory.

    Attributes:
        trial_id: The trial that trained it.
        dataset_id: What it was tested on.
        split: Which part of that.
        map_size: Rows of the maps.
        maps: How many.
        k: Most forward steps.
        success_rate: Share of reachable starts that arrive, averaged over maps, 0..1.
        optimality: Share that arrive in the fewest steps, 0..1.
        spl: Mean of success x optimal / taken, 0..1.
        accuracy: Share of cells whose action is one of the optimal ones, 0..1.
        exact: Share of maps whose whole way from the problem's start, or else the farthest cell, is a shortest one.
        success_deviation: Sample standard deviation of the success rates of the maps.
        searched: Success of a graph search in the planner's place, on the maps that its mapper drew, 0..1.
        cells_by_distance: Cells per bin of `planners.training.rollout.DISTANCE_BINS`.
        arrivals_by_distance: How many of them arrive.
        measured: What else was asked for; see `planners.training.measures`, for the fields below too.
        lengths: Starts by the cost of their shortest path.
        detours: Starts by the way round that an adjacent wall would save.
        path_independence: Mean cosine of the fixed points from two starts; None where no second one is free.
        residual_auroc: How well the residual tells wrong plans from right ones; None where all are right, or all wrong.
        cost_ratio: Cost of the way from the one start over the least, mean over maps; None where none arrives.
        cost_rank: Rank correlation of the costs that a mapper recovers with those of the cells; None without either.
        seconds: Wall time.
        provenance: What produced the numbers.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    trial_id: str
    dataset_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    split: Split
    map_size: Count
    maps: Count
    k: int = Field(ge=0, lt=10**9)
    success_rate: Fraction
    optimality: Fraction
    spl: Fraction
    accuracy: Fraction
    exact: Fraction | None = None
    searched: Fraction | None = None
    success_deviation: Amount | None = None
    cells_by_distance: list[Count] = Field([], max_length=64)
    arrivals_by_distance: list[Count] = Field([], max_length=64)
    measured: list[Measure] = Field([], max_length=64)
    lengths: Bins | None = None
    detours: Bins | None = None
    path_independence: float | None = Field(None, ge=-1.0 - 1e-6, le=1.0 + 1e-6)
    residual_auroc: Fraction | None = None
    cost_ratio: float | None = Field(None, ge=1.0 - 1e-5, allow_inf_nan=False)
    cost_rank: float | None = Field(None, ge=-1.0 - 1e-6, le=1.0 + 1e-6)
    seconds: Seconds
    provenance: Provenance = Provenance()

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_written(cls, data: Any) -> Any:
        return unsealed(data)

    @model_validator(mode="after")
    def _arrivals_are_of_the_cells(self) -> Self:
        check_arrivals(self.cells_by_distance, self.arrivals_by_distance)
        return self


@dataclass(frozen=True)
class PlannedEvaluation:
    """A trained planner and the further test maps that the sweep asks for.

    Attributes:
        trial: The trial.
        data: The maps.
        dataset_id: Their name.
        k: Most forward steps.
        measure: What to measure beside success.
    """

    trial: PlannedTrial
    data: DatasetSpec
    dataset_id: str
    k: int
    measure: tuple[Measure, ...] = ()

    def path(self, storage: Storage) -> Path:
        """Return where its result is or will be."""
        return storage.trial(self.trial.trial_id).evaluation(self.dataset_id, "test", self.k)


def planned_evaluations(sweep: SweepSpec, trials: Iterable[PlannedTrial]) -> list[PlannedEvaluation]:
    """Return every trial with every set of the sweep's `test_on`, each with its number of forward steps."""
    planned = []
    sets: dict[int, tuple[DatasetSpec, list[tuple[DatasetSpec, str]]]] = {}  # by what thousands of trials share
    for trial in trials:
        steps_per_row = sweep.planners[str(trial.axes["planner"])].test_steps_per_row
        trained_on = trial.spec.data
        if id(trained_on) not in sets:
            maps = [further_tests(sweep, trained_on, number) for number in range(len(sweep.test_on))]
            sets[id(trained_on)] = trained_on, [(data, dataset_id(data)) for data in maps]
        for data, name in sets[id(trained_on)][1]:
            own = trial.spec.planner.k_fwd
            k = own if steps_per_row is None else math.ceil(steps_per_row * data.map_size)
            planned.append(PlannedEvaluation(trial, data, name, k, tuple(sweep.measure)))
    return planned


def keep_test_steps(sweep: SweepSpec, trials: Iterable[PlannedTrial], storage: Storage) -> None:
    """Leave with the planners that are trained how many steps per row the sweep gives them, for whoever uses one.

    That is no part of a trial's identity, and so not in its spec.
    """
    for trial in trials:
        rule = sweep.planners[str(trial.axes["planner"])].test_steps_per_row
        directory = storage.trial(trial.trial_id)
        if rule is not None and directory.checkpoint.exists():
            content = (json.dumps(sealed({"steps_per_row": rule})) + "\n").encode()
            path = directory.test_steps
            if not path.is_file() or path.read_bytes() != content:
                write_bytes(path, content)


def read_evaluation(path: Path) -> EvaluationResult | None:
    """Return the evaluation in a file, None where there is none.

    Raises:
        ResultError: The file is not the evaluation that its name promises; names it.
    """
    try:
        found = parsed(EvaluationResult, read_stored(path))
    except FileNotFoundError:
        return None
    except ResultError:
        raise
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path}: damaged: {error}; {REMEDY}") from error
    trial = TrialDirectory(path.parents[1])
    own = found.trial_id == trial.name or not is_trial_id(trial.name)
    if not own or trial.evaluation(found.dataset_id, found.split, found.k) != path:
        raise ResultError(f"{path}: damaged: holds another evaluation; {REMEDY}")
    return found


def write_evaluation(trial: TrialDirectory, found: EvaluationResult) -> None:
    """Write an evaluation into the directory of its trial."""
    path = trial.evaluation(found.dataset_id, found.split, found.k)
    write_json(path, sealed(found.model_dump(mode="json")))


def known_evaluation(path: Path) -> EvaluationResult | None:
    """Return the evaluation in a file, None where there is none that is whole: it is made again."""
    try:
        return read_evaluation(path)
    except ResultError:
        return None


def missing_evaluations(planned: Iterable[PlannedEvaluation], storage: Storage) -> list[PlannedEvaluation]:
    """Return those that can be done (their planner is trained) and are not, each file once."""
    found: dict[Path, PlannedEvaluation] = {}
    for evaluation in planned:
        path = evaluation.path(storage)
        if storage.trial(evaluation.trial.trial_id).trained:
            done = known_evaluation(path)
            fresh = done is not None and done.provenance.made_by(code_hash())
            if done is None or not fresh or not set(evaluation.measure) <= set(done.measured):
                found[path] = evaluation
    return list(found.values())
