"""The trials of a sweep with all that they left behind: what figures and reports are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.evaluation import EvaluationResult, planned_evaluations, read_evaluation
from orchestrator.provenance import code_hash
from orchestrator.results import TrialResult, list_results, read_curves, trial_directory
from orchestrator.specs import PlannedTrial, Scalar, SweepSpec

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Run:
    """A trial of a sweep and what it left behind.

    Attributes:
        trial: The trial and its place in the sweep.
        result: Its result, None where there is none yet.
        curves: Its per-epoch records, also of a trial that still runs.
        evaluations: What it does on the sweep's `test_on` maps, as far as that is known.
    """

    trial: PlannedTrial
    result: TrialResult | None
    curves: list[dict[str, Any]]
    evaluations: list[EvaluationResult]

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


def collect(sweep: SweepSpec, trials: Sequence[PlannedTrial], storage: Path, *, curves: bool = True) -> list[Run]:
    """Return the runs of the trials, read from the storage.

    Args:
        sweep: The sweep.
        trials: Its trials, or some of them.
        storage: The storage directory.
        curves: Whether to read the per-epoch records, which tables do not need.
    """
    results = list_results(storage, dict.fromkeys(trial.trial_id for trial in trials))
    evaluations: dict[int, list[EvaluationResult]] = {}
    for planned in planned_evaluations(sweep, trials):
        found = read_evaluation(planned.path(storage))
        if found is not None:
            evaluations.setdefault(id(planned.trial), []).append(found)
    return [
        Run(
            trial,
            results.get(trial.trial_id),
            read_curves(trial_directory(storage, trial.trial_id)) if curves else [],
            evaluations.get(id(trial), []),
        )
        for trial in trials
    ]


def grouped(runs: Iterable[Run], key: Callable[[Run], K]) -> dict[K, list[Run]]:
    """Return the runs by key, keys and runs in the order of the sweep."""
    groups: dict[K, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def usable(runs: Iterable[Run], code: str | None = None) -> list[Run]:
    """Return the completed runs of the present code, or, where there is none, of the one version with most runs.

    The rule of the tables: numbers of different code are never averaged.
    """
    completed = [run for run in runs if run.completed]

    def version(run: Run) -> str:
        return run.result.provenance.code if run.result else ""

    wanted = code or code_hash()
    if any(version(run) == wanted for run in completed):
        return [run for run in completed if version(run) == wanted]
    if not completed:
        return []
    commonest = Counter(version(run) for run in completed).most_common(1)[0][0]
    return [run for run in completed if version(run) == commonest]


def cell_of(run: Run) -> tuple[tuple[str, Scalar], ...]:
    """Return the run's place in the sweep but for the seed: what one row of a table averages."""
    return tuple((name, value) for name, value in run.trial.axes.items() if name != "seed")


def usable_by_cell(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that the tables use: in each cell those that are `usable`, whatever code other cells are of."""
    return [run for cell in grouped(runs, cell_of).values() for run in usable(cell)]
