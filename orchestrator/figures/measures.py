"""Charts of the axes that the field looks at: how far, how long a way round, and at what cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from datagen.tasks.registry import TASKS
from orchestrator.figures.parts import (
    NothingToDraw,
    TrialRecords,
    label_below,
    namer,
    nothing_tested,
    pens_of,
    percent_axis,
    seed_line,
    tests_on_all,
    title_of,
)
from orchestrator.figures.published import MAZE_UNIQUE, Published
from orchestrator.figures.style import INK, MUTED, handle, legend, panels
from orchestrator.storage.evaluations import Bins, EvaluationResult
from orchestrator.tables.freshness import of_one_version
from orchestrator.tables.generalisation import merged
from orchestrator.tables.measures import bin_names
from orchestrator.tables.records import TrialRecord, grouped, problem_of, usable_by_cell
from orchestrator.tables.summary import count_parameters
from planners.specs import PlannerSpec

_APART = 1.5  # times, between the markers of planners with equally many parameters or operations


def lengths(runs: TrialRecords, width: float) -> Figure:
    """Share of starts that arrive, by the length of their shortest path to the longest of all further maps."""
    return _binned("lengths", lambda test: test.lengths, 1, "steps of the shortest path", runs, width)


def detours(runs: TrialRecords, width: float) -> Figure:
    """Share of starts that arrive, by the way round that an adjacent wall would save, on all further maps."""
    return _binned("detours", lambda test: test.detours, 0, "way round (steps)", runs, width)


def _binned(
    name: str, of: Callable[[EvaluationResult], Bins | None], first: int, label: str, runs: TrialRecords, width: float
) -> Figure:
    whole = {id(run): tests_on_all(run) for run in runs if all(name in test.measured for test in run.evaluations)}
    tested = [run for run in usable_by_cell(runs) if any(of(test) is not None for test in whole.get(id(run), []))]
    if not tested:
        raise nothing_tested(name, f"with `measure: [{name}]`", usable_by_cell(runs))
    problems = grouped(tested, problem_of)
    figure, every = panels([f"trained on {title_of(problem, runs)}" for problem in problems], width, height=2.4)
    name_of, most = namer(runs, ()), 0
    pen_of = pens_of(runs, name_of)
    for axes, members in zip(every, problems.values(), strict=True):
        for planner, group in grouped(members, name_of).items():
            used = of_one_version([whole[id(run)] for run in group], lambda tests: tests[0].provenance)
            bins = [merged([found for test in tests if (found := of(test)) is not None]) for tests in used]
            counted = [one for one in bins if one is not None]
            shares = [
                [100 * one.arrivals[at] / one.starts[at] for one in counted if at < len(one.starts) and one.starts[at]]
                for at in range(max(len(one.starts) for one in counted))
            ]
            most = max(most, len(shares))
            shown = [at for at in range(first, len(shares)) if shares[at]]
            seed_line(axes, pen_of[planner], shown, [shares[at] for at in shown])
        percent_axis(axes, "starts that arrive (%)")
        label_below(axes, label)
    names = bin_names(most)
    for axes in every:
        axes.set_xticks(range(first, most), names[first:], rotation=35, ha="right", rotation_mode="anchor")
    legend(figure, [handle(pen_of[name], name) for name in grouped(tested, name_of)], width)
    return figure


@dataclass(frozen=True)
class _Point:
    """A planner in the chart of costs: parameters, operations of a plan, and one percentage per seed."""

    parameters: float
    operations: float
    percents: list[float]


def cost(runs: TrialRecords, width: float) -> Figure:
    """Exact ways against parameters and against operations per plan, published planners' numbers beside ours.

    On Maze-Unique's kind of maze where the sweep tests there; else on the trials' own test maps, without theirs.
    """
    done = [run for run in usable_by_cell(runs) if run.result and run.result.test_exact is not None]
    there = {id(run): test for run in done for test in run.evaluations if _is_maze_unique(run, test)}
    chosen = [run for run in done if id(run) in there] or done
    if not chosen:
        raise NothingToDraw("cost: no completed trial has exact ways")
    figure, (by_parameters, by_operations) = panels(
        ["parameters", "operations per plan, at most"], width, height=2.6, share_x=False
    )
    name_of = namer(runs, ())
    pen_of = {name: replace(pen, line="") for name, pen in pens_of(runs, name_of).items()}
    points = {name: _point(group, there) for name, group in grouped(chosen, name_of).items()}
    for axes, field in ((by_parameters, "parameters"), (by_operations, "operations")):
        for xs in _side_by_side({name: getattr(point, field) for name, point in points.items()}):
            for name, x in xs.items():
                seed_line(axes, pen_of[name], [x], [points[name].percents])
    if there:
        for axes, field in ((by_parameters, "parameters"), (by_operations, "operations")):
            _mark(axes, [(getattr(planner, field), planner) for planner in MAZE_UNIQUE])
    for axes in (by_parameters, by_operations):
        percent_axis(axes, f"whole paths right (%){', Maze-Unique 30x30' if there else ''}")
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.25)
    legend(figure, [handle(pen_of[name], name) for name in points], width)
    return figure


def _side_by_side(amounts: Mapping[str, float]) -> list[dict[str, float]]:
    """Return the abscissas of planners, those of one amount side by side around it on a logarithmic axis."""
    alike = [[name for name in amounts if amounts[name] == amount] for amount in dict.fromkeys(amounts.values())]
    return [
        {name: amounts[name] * _APART ** (place - (len(names) - 1) / 2) for place, name in enumerate(names)}
        for names in alike
    ]


def _is_maze_unique(run: TrialRecord, test: EvaluationResult) -> bool:
    maps = run.maps.get(test.dataset_id)
    return maps is not None and maps.task == "maze_unique" and maps.map_size == 30


def _point(group: Sequence[TrialRecord], there: dict[int, EvaluationResult]) -> _Point:
    spec = group[0].trial.spec
    test = there.get(id(group[0]))
    size, k = (test.map_size, test.k) if test else (spec.data.map_size, spec.planner.k_fwd)
    actions = len(TASKS[spec.data.task].moves.names)
    exact = [there[id(run)].exact if test else (run.result.test_exact if run.result else None) for run in group]
    percents = [100 * share for share in exact if share is not None]
    operations = _operations(spec.planner.model_copy(update={"k_fwd": 1}), actions, size, k)
    return _Point(count_parameters(spec.planner, actions), operations, percents)


@functools.cache
def _operations(planner: PlannerSpec, actions: int, size: int, k: int) -> int:
    from planners.operations import operations
    from planners.planner import build_planner

    return operations(build_planner(planner, actions=actions, kernel="reference"), size, k)


def _mark(axes: Axes, published: Sequence[tuple[float | None, Published]]) -> None:
    """Draw those whose amount was published, the largest labelled from below so that no two labels meet."""
    shown = sorted(
        ((amount, planner) for amount, planner in published if amount is not None), key=lambda point: point[0]
    )
    for place, (x, planner) in enumerate(shown):
        error = None if planner.deviation is None else [planner.deviation]
        axes.errorbar([x], [planner.exact], error, color=MUTED, marker="+", elinewidth=0.8, capsize=1.6, linestyle="")
        right = place == len(shown) - 1
        axes.annotate(
            planner.name,
            (x, planner.exact),
            xytext=(5, -6) if right else (-5, -2),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=6,
            color=INK,
        )
