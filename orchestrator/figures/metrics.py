"""Charts of systems: the metrics of their tests by method or along a swept number, and those of their epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.figures.parts import NothingToDraw, TrialRecords, label_below, namer, number_of, pens_of, seed_line
from orchestrator.figures.style import Pen, handle, legend, panels
from orchestrator.sweep.systems import METRIC, SYSTEMS, Metric
from orchestrator.tables.records import TrialRecord, grouped, once, usable, usable_by_cell
from orchestrator.tables.table import headings

_TELL_APART = ("planner", "task", "seed")
WIDE_SPAN = 50.0
"""Positive numbers that are further apart than this factor are drawn on a logarithmic scale."""


def metrics(runs: TrialRecords, width: float) -> Figure:
    """Each metric of the tests: over the first number that the sweep varies, else by method; a dot per seed."""
    done = usable_by_cell(runs)
    found = {name: metric for name, metric in _known(runs).items() if any(_tested(run, name) for run in done)}
    if not found:
        raise NothingToDraw("metrics: no trial is done")
    axis = _swept(runs)
    named = _namer(runs, {axis} if axis else set())
    pen_of = pens_of(runs, named)
    figure, every = panels([metric.meaning for metric in found.values()], width, share_y=False, share_x=False)
    for axes, (name, metric) in zip(every, found.items(), strict=True):
        drawn: list[float] = []
        for place, (label, group) in enumerate(grouped(done, named).items()):
            cells = grouped(group, lambda run: number_of(run, axis)) if axis else {float(place): group}
            values = {x: _tested_values(cell, name, metric) for x, cell in sorted(cells.items())}
            values = {x: each for x, each in values.items() if each}
            for x, each in values.items():
                axes.plot([x] * len(each), each, ".", color=pen_of[label].colour, alpha=0.45, markersize=3, mew=0)
                drawn += each
            seed_line(axes, pen_of[label], list(values), list(values.values()), np.inf, -np.inf)
        _scale(axes, drawn)
        axes.set_ylabel(metric.label(name))
        axes.margins(x=0.15)
        if axis is None:
            axes.set_xticks([])
            continue
        numbers = {number_of(run, axis) for run in runs}
        if min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE_SPAN:
            axes.set_xscale("log")
        label_below(axes, headings([axis])[0].replace("_", " "))
    legend(figure, [handle(pen, label) for label, pen in pen_of.items()], width)
    return figure


def epochs(runs: TrialRecords, width: float) -> Figure:
    """Each metric of the epochs, mean over seeds in a band of one deviation."""
    numbers = [(name, value) for run in runs for record in run.curves for name, value in record.items()]
    names = {name for name, value in numbers if name.startswith(METRIC) and value is not None and math.isfinite(value)}
    found = {name: metric for name, metric in _known(runs).items() if METRIC + name in names}
    if not found:
        raise NothingToDraw("epochs: no trial has a number of an epoch")
    named = _namer(runs, set())
    pen_of = pens_of(runs, named)
    figure, every = panels([metric.meaning for metric in found.values()], width, share_y=False)
    for axes, (name, metric) in zip(every, found.items(), strict=True):
        drawn: list[float] = []
        for label, group in grouped([run for run in runs if run.curves], named).items():
            drawn += _band(axes, pen_of[label], usable(group) or once(group), METRIC + name, metric.scale)
        _scale(axes, drawn)
        axes.set_ylabel(metric.label(name))
        label_below(axes, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    legend(figure, [handle(pen, label) for label, pen in pen_of.items()], width)
    return figure


def _band(axes: Axes, pen: Pen, runs: Sequence[TrialRecord], column: str, scale: float) -> list[float]:
    """Draw the mean of a column of curves over the epochs that all runs have, and return what was drawn."""
    lines = [[(record["epoch"], record[column]) for record in run.curves if column in record] for run in runs]
    length = min(map(len, lines))
    if not length:
        return []
    x = [epoch for epoch, _ in lines[0][:length]]
    y = scale * np.array([[np.nan if value is None else value for _, value in line[:length]] for line in lines])
    mean, deviation = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else np.zeros(length)
    axes.fill_between(x, mean - deviation, mean + deviation, color=pen.colour, alpha=0.16, linewidth=0)
    axes.plot(x, mean, color=pen.colour, linestyle=pen.line, marker=pen.marker, markevery=max(1, length // 6),
              markersize=3.2)  # fmt: skip
    return [float(value) for value in mean if np.isfinite(value)]


def _namer(runs: TrialRecords, shown: set[str]) -> Callable[[TrialRecord], str]:
    """Return what names a run by its place in the sweep, its task included where there are several."""
    name, several = namer(runs, shown), len({run.axis("task") for run in runs}) > 1
    return lambda run: f"{name(run)}, {run.axis('task')}" if several else name(run)


def _known(runs: TrialRecords) -> dict[str, Metric]:
    known: dict[str, Metric] = {}
    for run in runs:
        if run.trial.spec.system is not None:
            known |= SYSTEMS[run.trial.spec.system.name].metrics
    return known


def _tested(run: TrialRecord, name: str) -> bool:
    return run.result is not None and run.result.metrics.get(name) is not None


def _tested_values(runs: Sequence[TrialRecord], name: str, metric: Metric) -> list[float]:
    values = [run.result.metrics.get(name) for run in once(runs) if run.result is not None]
    return [metric.scale * value for value in values if value is not None]


def _swept(runs: TrialRecords) -> str | None:
    """Return the first axis of the sweep, beside what tells rows apart, along which a number varies."""
    for axis in dict.fromkeys(axis for run in runs for axis in run.trial.axes):
        values = {run.axis(axis) for run in runs}
        numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if axis not in _TELL_APART and len(values) > 1 and len(numbers) == len(values):
            return axis
    return None


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) >= WIDE_SPAN:
        axes.set_yscale("log")
