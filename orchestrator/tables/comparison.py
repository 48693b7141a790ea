"""Planners of a sweep against each other, on the same problems."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datagen.spec import nearest
from orchestrator.sweep.specs import SweepError
from orchestrator.tables.aggregates import shared_problems, success_by_problem
from orchestrator.tables.freshness import of_one_version
from orchestrator.tables.records import TrialRecord, grouped, once, percents_of, problem_of, provenance_of
from orchestrator.tables.statistics import Difference, Estimate, mean_difference, probability_of_improvement


@dataclass(frozen=True)
class Comparison:
    """Two planners on the same problems, paired by seed, and by K where both have it.

    Attributes:
        first: Name of a planner in the sweep.
        second: Name of another.
        task: Name of the task; None for all tasks and sizes together.
        map_size: Rows of the map; None for all.
        difference: Success rate of the first minus that of the second, percentage points; None without a pair.
        better: Probability that a seed of the first beats one of the second; None without a pair.
        expected: Pairs of the sweep.
    """

    first: str
    second: str
    task: str | None
    map_size: int | None
    difference: Difference | None
    better: Estimate | None
    expected: int


def compared(runs: Sequence[TrialRecord], first: str, second: str) -> list[Comparison]:
    """Return how two planners compare on each task and size and, where there are several, on all together.

    Raises:
        SweepError: One of them is not in the sweep.
    """
    known = {str(run.axis("planner")) for run in runs}
    for name in (first, second):
        if name not in known:
            raise SweepError(f"--compare: no planner {name!r} in the sweep; {nearest(name, known)}")
    if any(run.trial.spec.system for run in runs):
        raise SweepError("--compare: compares the success of planners, and the sweep's trials are of systems")
    both = [run for run in runs if run.axis("planner") in (first, second)]
    each = [
        _comparison(members, first, second, str(task), int(str(size)))
        for (task, size), members in grouped(both, problem_of).items()
    ]
    return each if len(each) == 1 else [*each, _comparison(both, first, second, None, None)]


def compared_twins(runs: Sequence[TrialRecord]) -> list[Comparison]:
    """Return each implicit planner against its unrolled twin on each task and size, as far as there are pairs."""
    specs = {str(run.axis("planner")): run.trial.spec.planner for run in runs if run.trial.spec.system is None}
    problems = grouped(runs, problem_of)
    comparisons = [
        _comparison(members, first, second, str(task), int(str(size)))
        for first, implicit in specs.items()
        for second, unrolled in specs.items()
        if implicit.adjoint != "unrolled" and unrolled.adjoint == "unrolled"
        if implicit.core == unrolled.core and implicit.options == unrolled.options
        for (task, size), members in problems.items()
    ]
    return [comparison for comparison in comparisons if comparison.difference is not None]


def _comparison(runs: Sequence[TrialRecord], first: str, second: str, task: str | None, size: int | None) -> Comparison:
    expected = len(pairs(runs, first, second))
    both = [run for run in runs if run.axis("planner") in (first, second)]
    scores = success_by_problem(
        both, lambda run: str(run.axis("planner")), lambda axis: axis not in ("planner", "seed")
    )
    shared = shared_problems(scores) if len(scores) == 2 else []
    ours, theirs = ([scores[name][problem] for problem in shared] for name in (first, second))
    better = probability_of_improvement(ours, theirs) if shared else None
    return Comparison(first, second, task, size, paired_difference(runs, first, second), better, expected)


def paired_difference(runs: Sequence[TrialRecord], first: str, second: str) -> Difference | None:
    """Return how much better one planner is than another, seed by seed.

    Trials are paired that share task, size, seed and training data, and K where both planners have it; where they share
    no K, each side of a pair is the mean over its K. The difference of each pair is free of what the pair shares. None
    where there is no pair.

    Args:
        runs: The sweep's runs.
        first: Name of a planner in the sweep.
        second: Name of another.
    """
    both = [run for run in runs if run.axis("planner") in (first, second)]
    comparable = {id(run) for run in of_one_version([run for run in both if run.completed], provenance_of)}
    differences = []
    for pair in pairs(both, first, second):
        rates = [percents_of(run for run in side if id(run) in comparable) for side in pair]
        # Half of a side's K would make another pair than the one that the sweep asks for.
        if [len(side) for side in rates] == [len(side) for side in pair]:
            differences.append(statistics.fmean(rates[0]) - statistics.fmean(rates[1]))
    return mean_difference(differences)


def pairs(runs: Sequence[TrialRecord], first: str, second: str) -> list[tuple[list[TrialRecord], list[TrialRecord]]]:
    """Return the trials of two planners that belong together, done or not: each side is one trial, or one per K."""
    ks = [{run.axis("k") for run in runs if run.axis("planner") == name} for name in (first, second)]
    by_k = bool(ks[0] & ks[1])

    def place(run: TrialRecord) -> tuple[Any, ...]:
        rest = sorted((axis, str(value)) for axis, value in run.trial.axes.items() if axis not in ("planner", "k"))
        return (*rest, run.axis("k") if by_k else None)

    sides = [grouped((run for run in runs if run.axis("planner") == name), place) for name in (first, second)]
    both = [(once(members), once(sides[1][key])) for key, members in sides[0].items() if key in sides[1]]
    # Two spellings of a place are one pair.
    return list({tuple(run.trial.trial_id for run in (*one, *other)): (one, other) for one, other in both}.values())
