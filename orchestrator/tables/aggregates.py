"""Planners over all tasks, sizes, K and seeds of a sweep together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.sweep.specs import Scalar
from orchestrator.tables.freshness import of_one_version
from orchestrator.tables.records import TrialRecord, grouped, once, percents_of, planner_of, provenance_of
from orchestrator.tables.statistics import Estimate, interquartile_mean, probability_of_improvement

Problem = tuple[tuple[str, Scalar], ...]
"""The place of a trial on all axes but planner and seed: what planners are compared on."""


@dataclass(frozen=True)
class Aggregate:
    """A planner over the problems that every planner of the sweep has results of.

    Attributes:
        planner: Its name.
        interquartile_mean: Of its success rates, percent.
        problems: How many problems.
        better_than_first: Probability that it beats the first planner of the sweep; None for that one.
    """

    planner: str
    interquartile_mean: Estimate
    problems: int
    better_than_first: Estimate | None


def aggregates(runs: Sequence[TrialRecord]) -> list[Aggregate]:
    """Return the planners in the order of the sweep; none where fewer than two of them share two problems."""
    # Further axes tell planners apart, see `planner_of`.
    scores = success_by_problem(runs, planner_of, lambda axis: axis in ("task", "map_size", "k"))
    shared = shared_problems(scores)
    if len(scores) < 2 or len(shared) < 2:
        return []
    each = {planner: [found[problem] for problem in shared] for planner, found in scores.items()}
    first = next(iter(each))
    return [
        Aggregate(
            planner,
            interquartile_mean(found),
            len(shared),
            None if planner == first else probability_of_improvement(found, each[first]),
        )
        for planner, found in each.items()
    ]


def success_by_problem(
    runs: Sequence[TrialRecord], planner: Callable[[TrialRecord], str], axes: Callable[[str], bool]
) -> dict[str, dict[Problem, list[float]]]:
    """Return each planner's success rates in percent, by problem; problems without a result are left out.

    One number is made of all of them: those of other code than the rest count as no result.

    Args:
        runs: The sweep's runs.
        planner: The name of a run's planner.
        axes: Whether an axis is part of the problem.
    """

    def place(run: TrialRecord) -> tuple[str, Problem]:
        return planner(run), tuple((axis, value) for axis, value in run.trial.axes.items() if axes(axis))

    found: dict[str, dict[Problem, list[float]]] = {}
    comparable = of_one_version([run for run in runs if run.completed], provenance_of)
    for (name, problem), members in grouped(comparable, place).items():
        if rates := percents_of(once(members)):
            found.setdefault(name, {})[problem] = rates
    return found


def shared_problems(scores: Mapping[str, Mapping[Problem, list[float]]]) -> list[Problem]:
    """Return the problems that all planners have results of, in the first one's order."""
    every = list(scores.values())
    return [problem for problem in (every[0] if every else {}) if all(problem in found for found in every)]
