"""What all charts share: reading runs, naming panels, the line of a mean over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from orchestrator.figures.style import (
    Pen,
    left_of,
    lowest,
    pens,
)
from orchestrator.storage.evaluations import EvaluationResult
from orchestrator.storage.results import ResultError
from orchestrator.sweep.specs import Scalar
from orchestrator.tables.freshness import is_present, of_one_version
from orchestrator.tables.records import TrialRecord, grouped, planner_of, problem_of

TrialRecords = Sequence[TrialRecord]


Place = tuple[Scalar, ...]


TASK_NAMES = {
    "navigation": "navigation",
    "mazes": "mazes",
    "manipulation": "manipulation",
    "workspace_manipulation": "workspace",
    "visual_navigation": "visual nav.",
}


class NothingToDraw(ResultError):
    """No trial has left what the figure shows; the message says what is missing."""


def mean_of(values: Iterable[float | None]) -> float:
    """Return the mean of the numbers there are, nan for none."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else float("nan")


def error_bar(values: Iterable[float | None]) -> float:
    """Return the sample standard deviation of the values that are there, 0 for fewer than two."""
    numbers = [value for value in values if value is not None]
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def pens_of(runs: TrialRecords, name: Callable[[TrialRecord], str] | None = None) -> dict[str, Pen]:
    """Return a pen for each planner, named as `planner_of` does or otherwise."""
    specs = {(name or planner_of)(run): run.trial.spec.planner for run in runs}
    return pens([(planner, spec.core, spec.adjoint) for planner, spec in specs.items()])


def namer(runs: TrialRecords, shown: Collection[str]) -> Callable[[TrialRecord], str]:
    """Return what names a run by its planner and its place on those axes of the planner's that vary.

    Args:
        runs: The runs of the figure.
        shown: Axes that the figure shows itself, in panels or along a scale.
    """
    fixed = {
        planner: {axis for axis in members[0].trial.axes if len({run.axis(axis) for run in members}) == 1}
        for planner, members in grouped(runs, lambda run: run.axis("planner")).items()
    }
    return lambda run: planner_of(run, {*shown, *fixed[run.axis("planner")]})


def cell_namer(runs: TrialRecords, shown: Collection[str]) -> Callable[[TrialRecord], str]:
    """Return what names a run as `namer` does, and by its problem and K where the runs have several."""
    name = namer(runs, shown)
    problems, ks = ({of(run) for run in runs} for of in (problem_of, lambda run: run.axis("k")))

    def named(run: TrialRecord) -> str:
        problem = [title_of(problem_of(run), runs)] if len(problems) > 1 else []
        return ", ".join([name(run), *problem, *([f"K = {run.axis('k')}"] if len(ks) > 1 else [])])

    return named


def tests_on_all(run: TrialRecord, size: int | None = None) -> list[EvaluationResult]:
    """Return a run's tests on all maps that were asked for, none while one set is missing: means over others differ.

    Args:
        run: The run.
        size: Rows of the maps; None for those of every size.
    """
    asked = {name for name, maps in run.maps.items() if size in (None, maps.map_size)}
    tests = of_one_version([test for test in run.evaluations if test.dataset_id in asked], lambda test: test.provenance)
    return tests if len(tests) == len(asked) else []


def nothing_tested(name: str, which: str, runs: TrialRecords) -> NothingToDraw:
    """Return what to raise where no run has been tested on all maps, or not by one code."""
    words = f"{name}: no trained planner has been tested on all `test_on` maps {which}"
    if all(is_present(test.provenance) for run in runs for test in run.evaluations):
        return NothingToDraw(f"{words} yet")
    return NothingToDraw(f"{words} by one code: some tests are of other code, and idp run makes them again")


def number_of(run: TrialRecord, axis: str) -> float:
    """Return the place on an axis as a number."""
    value = run.axis(axis)
    return float(value) if isinstance(value, int | float) else float("nan")


def title_of(problem: Place, runs: TrialRecords) -> str:
    """Return the title of a panel: the task, where there are several or it is not navigation, and the size."""
    task, size = problem
    shown = f"{size}x{size}"
    several = len({run.axis("task") for run in runs}) > 1
    return f"{TASK_NAMES.get(str(task), str(task))} {shown}" if several or task != "navigation" else shown


def percent_axis(axes: Axes, label: str = "success rate (%)") -> None:
    """Scale the vertical axis to percents."""
    axes.set_ylim(-3, 103)
    axes.yaxis.set_major_locator(FixedLocator([0, 20, 40, 60, 80, 100]))
    if left_of(axes):
        axes.set_ylabel(label)


def label_below(axes: Axes, label: str) -> None:
    """Label the horizontal axis where no panel is below."""
    if lowest(axes):
        axes.set_xlabel(label)


def seed_line(
    axes: Axes,
    pen: Pen,
    xs: Sequence[float],
    values: Sequence[Sequence[float]],
    ceiling: float = 100.0,
    floor: float = 0.0,
) -> None:
    """Draw the mean over seeds with a bar of one standard deviation."""
    if not len(xs):
        return
    means, deviations = np.array([mean_of(v) for v in values]), np.array([error_bar(v) for v in values])
    # A bar that leaves the range of the quantity says nothing that its end at the range does not.
    low = np.minimum(deviations, means - floor)
    high = np.minimum(deviations, ceiling - means)
    axes.errorbar(
        xs,
        means,
        yerr=[np.maximum(low, 0).tolist(), np.maximum(high, 0).tolist()],
        color=pen.colour,
        linestyle=pen.line,
        marker=pen.marker,
        markerfacecolor=pen.face,
        elinewidth=0.8,
        capsize=1.6,
        capthick=0.8,
    )
