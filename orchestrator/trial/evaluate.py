"""Testing a trained planner on any dataset, its own or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from datagen.storage import dataset as parquet
from datagen.tasks.registry import TASKS, Split
from orchestrator.errors import ResultError
from orchestrator.storage.code import parts_of
from orchestrator.storage.evaluations import EvaluationResult, known_evaluation, write_evaluation
from orchestrator.storage.provenance import provenance
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.plugins import used_by
from orchestrator.trial.device import use_processor
from planners.registry import Measure

MOST_STEPS = 1_000_000
"""More forward steps than any map needs; every one of them is recorded, so memory bounds them."""

MOST_THREADS = 1024
"""As for `execution.threads`; torch itself starts any number, and dies of it."""


def check_option(option: str, number: int | None, most: int) -> None:
    """Raise ResultError where an option's number, None where it is not given, is not between 1 and `most`."""
    if number is not None and not 1 <= number <= most:
        raise ResultError(f"{option} {number}: expected {'at least 1' if number < 1 else f'at most {most:,}'}")


def evaluate_trial(
    trial: TrialDirectory,
    dataset: Path,
    split: Split = "test",
    k: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    measures: Iterable[Measure] = (),
) -> EvaluationResult:
    """Test a trained planner on a dataset, its own or any other; whoever asks keeps the result (`keep_evaluation`).

    Args:
        trial: The trial.
        dataset: The folder of a finished dataset, generated or imported, of any map size.
        split: Which part of the dataset.
        k: Most forward steps; None is the planner's own number for maps of this size (`Trained.steps`).
        threads: Threads of this process; None is the trial's own number.
        progress: Called with the number of maps done so far.
        measures: What to measure beside success; what an earlier test of the same has measured is measured again.

    Raises:
        ResultError: There is no trained planner, or it cannot plan on this dataset.
        DatasetError: The dataset is missing or altered.
    """
    check_option("--k", k, MOST_STEPS)
    check_option("--threads", threads, MOST_THREADS)

    from orchestrator.trial.trained import load_trained
    from planners.training.evaluation import evaluate

    trained = load_trained(trial.path)
    manifest = parquet.load_manifest(dataset)
    task = TASKS[manifest.spec.task]
    if task.moves != trained.moves:
        raise ResultError(
            f"{trial}: trained for the moves of {trained.spec.data.task!r}, not those of {manifest.spec.task!r}"
        )
    if task.mapper != trained.spec.planner.mapper:
        raise ResultError(
            f"{trial}: the planner's mapper is {trained.spec.planner.mapper!r}, but {manifest.spec.task!r} needs "
            f"{task.mapper!r}"
        )
    problems = parquet.read_split(dataset, split)
    if not len(problems):
        raise ResultError(f"{dataset}: its {split} split is empty")
    use_processor(threads or trained.spec.execution.threads)
    steps = k or trained.steps(problems.map.shape[1])
    before = known_evaluation(trial.evaluation(manifest.dataset_id, split, steps))
    wanted = sorted({*measures, *(before.measured if before else ())})
    plugins = used_by(manifest.spec, trained.spec.planner)
    started = time.perf_counter()
    found = evaluate(trained.planner, problems, moves=task.moves, k_fwd=steps, progress=progress, measures=wanted)
    return EvaluationResult(
        trial_id=trial.path.resolve().name,
        dataset_id=manifest.dataset_id,
        split=split,
        map_size=problems.map.shape[1],
        maps=found.maps,
        k=steps,
        success_rate=found.success_rate,
        optimality=found.optimality,
        spl=found.spl,
        accuracy=found.accuracy,
        exact=found.exact,
        searched=found.searched,
        success_deviation=found.success_deviation,
        cells_by_distance=list(found.cells_by_distance),
        arrivals_by_distance=list(found.arrivals_by_distance),
        measured=wanted,
        **asdict(found.measured),
        seconds=time.perf_counter() - started,
        provenance=provenance(
            manifest.dataset_id,
            plugins=plugins,
            parts=parts_of(manifest.spec, trained.spec.planner, plugins, wanted),
        ),
    )


def keep_evaluation(trial: TrialDirectory, found: EvaluationResult) -> None:
    """Leave the result of a test in the directory of its trial.

    Raises:
        ResultError: The trial has not ended, so that the tested weights are not those that it will have; or it is none.
        OSError: There is no room, or nothing may be written there.
    """
    if trial.whole_result() is None:
        raise ResultError(f"{trial}: has no result, so that no test is kept beside it")
    write_evaluation(trial, found)
