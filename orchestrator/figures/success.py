"""Charts of how well and how fast planners do: over K, over training, over map size, over distance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from orchestrator.figures.parts import (
    NothingToDraw,
    TrialRecords,
    label_below,
    nothing_tested,
    number_of,
    pens_of,
    percent_axis,
    seed_line,
    tests_on_all,
    title_of,
)
from orchestrator.figures.style import (
    GRID,
    INCHES_PER_LETTER,
    MUTED,
    handle,
    left_of,
    legend,
    panels,
)
from orchestrator.tables.freshness import of_one_version
from orchestrator.tables.records import (
    TrialRecord,
    grouped,
    once,
    percents_of,
    planner_of,
    problem_of,
    usable,
    usable_by_cell,
)
from orchestrator.tables.rows import DISTANCE_BIN_NAMES, distance_bins


def success(runs: TrialRecords, width: float) -> Figure:
    """Success rate over K by map size; mean and deviation over seeds, a dot per seed, a cross where memory ran out."""
    if not any(run.completed or run.out_of_memory for run in runs):
        raise NothingToDraw("success: no trial has ended")
    problems = grouped(runs, problem_of)
    figure, every = panels([title_of(problem, runs) for problem in problems], width, height=2.0)
    pen_of = pens_of(runs)
    for axes, members in zip(every, problems.values(), strict=True):
        ks = sorted({number_of(run, "k") for run in members})
        dodge = 0.018 * ((ks[-1] - ks[0]) or 1.0)
        lost = [name for name, group in grouped(members, planner_of).items() if any(r.out_of_memory for r in group)]
        for number, (name, group) in enumerate(grouped(members, planner_of).items()):
            pen, shift = pen_of[name], dodge * (number - (len(pen_of) - 1) / 2)
            cells = grouped(group, lambda run: number_of(run, "k"))
            shown = {k: rates for k, cell in sorted(cells.items()) if (rates := percents_of(usable(cell)))}
            for k, rates in shown.items():
                axes.plot([k + shift] * len(rates), rates, ".", color=pen.colour, alpha=0.45, markersize=3, mew=0)
            seed_line(axes, pen, [k + shift for k in shown], list(shown.values()))
            for k, cell in cells.items():
                if any(run.out_of_memory for run in cell):
                    height = -9 - 6 * lost.index(name)
                    axes.plot(k + shift, height, marker="x", color=pen.colour, markersize=4.5, mew=1.3)
        percent_axis(axes)
        axes.set_ylim(-3 - (9 + 6 * len(lost) if lost else 0), 103)
        if lost:
            axes.axhline(-4, color=MUTED, linewidth=0.5)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(x=0.1)
        label_below(axes, "planner steps K")
    # Panels share their scale, so the strip for missing dots is as deep as the deepest.
    every[0].set_ylim(min(axes.get_ylim()[0] for axes in every), 103)
    handles = [handle(pen, name) for name, pen in pen_of.items()]
    if any(run.out_of_memory for run in runs):
        handles.append(Line2D([], [], linestyle="", marker="x", color=MUTED, mew=1.3, label="out of memory"))
    legend(figure, handles, width)
    return figure


NARROWEST_RUNTIME_INCHES = 0.95


def runtime(runs: TrialRecords, width: float) -> Figure:
    """Seconds of the forward and the backward pass over K: unrolled at the left, implicit at the right (Figure 6)."""
    timed = [run for run in usable_by_cell(runs) if run.result and run.result.forward_seconds is not None]
    if not timed:
        raise NothingToDraw("runtime: no completed trial has times")
    sides = [
        (name, implicit)
        for name, implicit in (("ADP", False), ("IDP", True))
        if any(_implicit(r) == implicit for r in runs)
    ]
    problems = list(grouped(runs, problem_of))
    columns = [(*side, problem) for side in sides for problem in problems]
    wide = width >= NARROWEST_RUNTIME_INCHES * len(columns)
    side_by_side = len(columns) if wide else len(problems)
    places = list(product(("forward_seconds", "backward_seconds"), columns))
    titles = [
        "" if wide and field == "backward_seconds" else f"{side}  {title_of(problem, runs)}"
        for field, (side, _, problem) in places
    ]
    figure, every = panels(titles, width, side_by_side, height=1.6, narrowest=NARROWEST_RUNTIME_INCHES)
    pen_of = pens_of(runs)
    for axes, (field, (_, implicit, problem)) in zip(every, places, strict=True):
        members = [run for run in runs if _implicit(run) == implicit and problem_of(run) == problem]
        shown = [run for run in timed if _implicit(run) == implicit and problem_of(run) == problem]
        for name, group in grouped(shown, planner_of).items():
            cells = grouped(group, lambda run: number_of(run, "k"))
            times = {k: [getattr(run.result, field) * 1e3 for run in cell] for k, cell in sorted(cells.items())}
            seed_line(axes, pen_of[name], list(times), list(times.values()), np.inf)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({number_of(run, "k") for run in members})))
        axes.margins(x=0.12)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(which="minor", axis="y", color=GRID, linewidth=0.3)
        if left_of(axes):
            axes.set_ylabel("forward (ms)" if field == "forward_seconds" else "backward (ms)")
        name = r"$K_{\mathrm{fwd}}$" if implicit else r"$K_{\mathrm{layer}}$"
        label_below(axes, name if wide else "planner steps K")
    legend(figure, [handle(pen, name) for name, pen in pen_of.items()], width)
    return figure


def _implicit(run: TrialRecord) -> bool:
    return run.trial.spec.planner.adjoint != "unrolled"


def _by_problem_and_k(runs: TrialRecords) -> dict[str, list[TrialRecord]]:
    """Return the runs of each panel; a row per K only where some planner has several on the same maps."""
    planners = grouped(runs, lambda run: (problem_of(run), planner_of(run)))
    several = any(len({run.axis("k") for run in group}) > 1 for group in planners.values())
    keys = grouped(runs, lambda run: (number_of(run, "k") if several else 0.0, problem_of(run)))
    ordered = sorted(keys, key=lambda key: key[0])
    return {title_of(key[1], runs) + (f", K = {key[0]:g}" if several else ""): keys[key] for key in ordered}


def curves(runs: TrialRecords, width: float) -> Figure:
    """Success rate on the validation maps over epochs; mean over seeds in a band of one deviation (Figure 7)."""

    def points(run: TrialRecord) -> tuple[list[float], list[float]]:
        return (
            [float(record["epoch"]) for record in run.curves],
            [100 * record["valid_success_rate"] for record in run.curves],
        )

    return _over_training("curves", runs, width, points, "epoch", "validation success (%)")


def seconds(runs: TrialRecords, width: float) -> Figure:
    """Success rate on the validation maps over seconds of training: who is better for the same time."""

    def points(run: TrialRecord) -> tuple[list[float], list[float]]:
        taken = np.cumsum([record["train_seconds"] for record in run.curves])
        return list(map(float, taken)), [100 * record["valid_success_rate"] for record in run.curves]

    figure = _over_training("seconds", runs, width, points, "training seconds", "validation success (%)")
    for axes in figure.axes:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        spec = axes.get_subplotspec()
        room = width / (spec.get_gridspec().ncols if spec else 1)
        labels = room / (0.15 + INCHES_PER_LETTER * len(f"{high:,.0f}"))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if 2 * math.log10(high / low) <= labels else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def _over_training(
    name: str,
    runs: TrialRecords,
    width: float,
    points: Callable[[TrialRecord], tuple[list[float], list[float]]],
    x_label: str,
    y_label: str,
) -> Figure:
    drawn = {id(run): line for run in runs if any(map(math.isfinite, (line := points(run))[1]))}
    if not drawn:
        needed = "validation maps" if any(run.curves for run in runs) else "finished an epoch"
        raise NothingToDraw(f"{name}: no trial has {needed}")
    problems = {problem_of(run) for run in runs if id(run) in drawn}
    groups = _by_problem_and_k([run for run in runs if problem_of(run) in problems])
    figure, every = panels(list(groups), width, len(problems), share_x=name == "curves")
    pen_of = pens_of(runs)
    for axes, members in zip(every, groups.values(), strict=True):
        for planner, group in grouped([run for run in members if id(run) in drawn], planner_of).items():
            # A seed that was stopped or still trains must not cut short the curve of those that are done.
            pen, lines = pen_of[planner], [drawn[id(run)] for run in usable(group) or once(group)]
            length = min(len(x) for x, _ in lines)
            x = np.mean([line[0][:length] for line in lines], axis=0)
            y = np.array([line[1][:length] for line in lines])
            mean, deviation = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else np.zeros(length)
            low, high = np.clip(mean - deviation, 0, 100), np.clip(mean + deviation, 0, 100)
            axes.fill_between(x, low, high, color=pen.colour, alpha=0.16, linewidth=0)
            axes.plot(
                x,
                mean,
                color=pen.colour,
                linestyle=pen.line,
                marker=pen.marker,
                markerfacecolor=pen.face,
                markevery=max(1, length // 6),
                markersize=3.2,
            )
        percent_axis(axes, y_label)
        label_below(axes, x_label)
        if name == "curves":
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    legend(figure, [handle(pen, _with_k(planner, runs)) for planner, pen in pen_of.items()], width)
    return figure


def _with_k(planner: str, runs: TrialRecords) -> str:
    ks = sorted({number_of(run, "k") for run in runs if planner_of(run) == planner})
    return f"{planner} (K = {', '.join(f'{k:g}' for k in ks)})" if len(ks) <= 2 else planner


def generalisation(runs: TrialRecords, width: float) -> Figure:
    """Success rate on larger maps than those of the training (Figure 10)."""
    usual = usable_by_cell(runs)
    tested = [run for run in usual if any(tests_on_all(run, maps.map_size) for maps in run.maps.values())]
    if not tested:
        raise nothing_tested("generalisation", "of one size", usual)
    groups = _by_problem_and_k(tested)
    figure, every = panels([f"trained on {title}" for title in groups], width, height=2.4)
    pen_of = pens_of(runs)
    for axes, members in zip(every, groups.values(), strict=True):
        sizes = sorted({maps.map_size for run in members for maps in run.maps.values()})
        for planner, group in grouped(members, planner_of).items():
            shown = {size: rates for size in sizes if (rates := _rates(group, size))}
            seed_line(axes, pen_of[planner], list(shown), list(shown.values()))
        percent_axis(axes)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        label_below(axes, "rows of the test maps")
    names = {planner: _tested_k(group) for planner, group in grouped(tested, planner_of).items()}
    legend(figure, [handle(pen_of[planner], f"{planner} ({k})") for planner, k in names.items()], width)
    return figure


def _rates(runs: TrialRecords, size: int) -> list[float]:
    """Return a success rate in percent for each trial that was tested on all maps of a size: the mean of its sets."""
    trials = [tests for run in runs if (tests := tests_on_all(run, size))]
    used = of_one_version(trials, lambda tests: tests[0].provenance)
    return [statistics.fmean(100 * test.success_rate for test in tests) for tests in used]


def _tested_k(runs: TrialRecords) -> str:
    ks = sorted({test.k for run in runs for test in run.evaluations})
    return f"K = {ks[0]}" if len(ks) == 1 else f"K = {ks[0]} to {ks[-1]}"


def distance(runs: TrialRecords, width: float) -> Figure:
    """Share of starts that arrive, by the length of their shortest path: where a planner's horizon ends."""
    counted = [run for run in usable_by_cell(runs) if run.result and distance_bins(run.result)]
    if not counted:
        raise NothingToDraw("distance: no completed trial has counted its arrivals by distance")
    groups = _by_problem_and_k(counted)
    figure, every = panels(list(groups), width, len({problem_of(run) for run in counted}))
    pen_of = pens_of(runs)
    for axes, members in zip(every, groups.values(), strict=True):
        for planner, group in grouped(members, planner_of).items():
            bins = [distance_bins(run.result) for run in group if run.result]
            shares = {
                number: [100 * arrivals / cells for one in bins for cells, arrivals in [one[number]] if cells]
                for number in range(len(DISTANCE_BIN_NAMES))
            }
            shown = {number: values for number, values in shares.items() if values}
            seed_line(axes, pen_of[planner], list(shown), list(shown.values()))
        percent_axis(axes, "starts that arrive (%)")
        axes.set_xticks(
            range(len(DISTANCE_BIN_NAMES)), DISTANCE_BIN_NAMES, rotation=35, ha="right", rotation_mode="anchor"
        )
        label_below(axes, "steps of the shortest path")
    legend(figure, [handle(pen, _with_k(planner, runs)) for planner, pen in pen_of.items()], width)
    return figure
