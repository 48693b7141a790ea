"""Charts of the solvers: convergence, backward time, choice of solver, Jacobian regularisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from orchestrator.figures.parts import (
    NothingToDraw,
    TrialRecords,
    cell_namer,
    error_bar,
    label_below,
    mean_of,
    namer,
    number_of,
    pens_of,
    percent_axis,
    seed_line,
    title_of,
)
from orchestrator.figures.style import (
    INK,
    MUTED,
    Pen,
    handle,
    left_of,
    legend,
    panels,
)
from orchestrator.tables.records import TrialRecord, cell_of, grouped, percents_of, problem_of, usable_by_cell

_COLOURS, _MARKERS = ("#0072b2", "#d55e00", "#009e73", "#5c6370"), ("o", "s", "^", "D")
_BACKWARD_AXES = ("planner.solver_bwd", "planner.k_bwd")
_SOLVER_AXES = ("planner.solver", *_BACKWARD_AXES)
_PENALTY_AXES = ("training.jacobian_weight", "training.jacobian_frequency", "planner.k_bwd")


def residuals(runs: TrialRecords, width: float) -> Figure:
    """Relative residual after each step of the forward and the backward solve of the trained planners."""
    traced = [run for run in usable_by_cell(runs) if run.result and run.result.forward_trace]
    if not traced:
        raise NothingToDraw("residuals: no completed trial has recorded its residuals")
    places = [
        (problem, field, solver)
        for field, solver_of in (("forward_trace", _forward_solver), ("backward_trace", _backward_solver))
        for problem in grouped(traced, problem_of)
        for solver in grouped([run for run in traced if getattr(run.result, field)], solver_of)
    ]
    several = len({solver for _, field, solver in places if field == "forward_trace"}) > 1
    titles = [
        f"{title_of(problem, runs)}, {field.split('_')[0]} solve{f', {solver}' if several else ''}"
        for problem, field, solver in places
    ]
    columns = max(2, sum(field == "forward_trace" for _, field, _ in places))
    figure, every = panels(titles, width, columns, share_x=False)
    named = namer(runs, _SOLVER_AXES)
    pen_of = pens_of(runs, named)
    for axes, (problem, field, solver) in zip(every, places, strict=True):
        solver_of = _forward_solver if field == "forward_trace" else _backward_solver
        shown = [run for run in traced if problem_of(run) == problem and solver_of(run) == solver]
        for planner, group in grouped(shown, named).items():
            traces = [trace for run in _last_cell(group) if (trace := getattr(run.result, field))]
            length = min(map(len, traces), default=0)
            if length:
                _trace(axes, pen_of[planner], [trace[:length] for trace in traces])
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if left_of(axes):
            axes.set_ylabel("relative residual")
        axes.set_xlabel("planner step" if field == "forward_trace" else "vector-Jacobian product")
    legend(figure, [handle(pen, planner) for planner, pen in pen_of.items()], width)
    return figure


def _last_cell(runs: TrialRecords) -> list[TrialRecord]:
    """Return the runs of one cell of the sweep, all seeds: that of the largest K, the last of the solvers' axes."""
    most = max(number_of(run, "k") for run in runs)
    return list(grouped([run for run in runs if number_of(run, "k") == most], cell_of).values())[-1]


def _forward_solver(run: TrialRecord) -> str:
    return run.trial.spec.planner.solver


def _trace(axes: Axes, pen: Pen, traces: Sequence[Sequence[float | None]]) -> None:
    values = np.log10(np.maximum(np.array(traces, dtype=float), 1e-12))
    steps, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        low, high = 10 ** (mean - spread), 10 ** (mean + spread)
        axes.fill_between(steps, low, high, color=pen.colour, alpha=0.16, linewidth=0)
    axes.plot(
        steps,
        10**mean,
        color=pen.colour,
        linestyle=pen.line,
        marker=pen.marker,
        markerfacecolor=pen.face,
        markevery=max(1, len(steps) // 6),
        markersize=3.2,
    )


def backward(runs: TrialRecords, width: float) -> Figure:
    """Milliseconds of the backward pass over its iterations, for each backward solver (Figure 11)."""
    timed = [run for run in usable_by_cell(runs) if run.result and run.result.backward_seconds is not None]
    if not timed:
        raise NothingToDraw("backward: no completed trial has times")
    groups = grouped(timed, cell_namer(timed, _BACKWARD_AXES))
    figure, every = panels(list(groups), width, share_y=False)
    solvers = sorted({_backward_solver(run) for run in timed})  # in the order, and so the colours, of Figure 12
    for axes, members in zip(every, groups.values(), strict=True):
        for solver, group in grouped(members, _backward_solver).items():
            cells = grouped(group, lambda run: float(run.trial.spec.planner.k_bwd))
            times = {
                k: [run.result.backward_seconds * 1e3 for run in cell if run.result and run.result.backward_seconds]
                for k, cell in sorted(cells.items())
            }
            seed_line(axes, _solver_pen(solvers.index(solver)), list(times), list(times.values()), np.inf)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(FixedLocator(sorted({float(run.trial.spec.planner.k_bwd) for run in members})))
        if left_of(axes):
            axes.set_ylabel("backward pass (ms)")
        label_below(axes, r"backward steps $K_{\mathrm{bwd}}$")
    legend(figure, [handle(_solver_pen(i), f"backward solver {name}") for i, name in enumerate(solvers)], width)
    return figure


def _backward_solver(run: TrialRecord) -> str:
    return run.trial.spec.planner.solver_bwd


def _solver_pen(number: int) -> Pen:
    return Pen(_COLOURS[number % 4], _MARKERS[number % 4], "-" if number % 2 else (0.0, (3.2, 1.4)), bool(number % 2))


def solvers(runs: TrialRecords, width: float) -> Figure:
    """Success rate by forward solver, backward solver and backward iterations (Figure 12)."""
    done = usable_by_cell(runs)
    if not done:
        raise NothingToDraw("solvers: no trial is completed")
    named = cell_namer(done, _SOLVER_AXES)
    by_solver = grouped(done, lambda run: (_forward_solver(run), named(run)))
    forward = list(dict.fromkeys(solver for solver, _ in by_solver))
    groups = {key: by_solver[key] for key in sorted(by_solver, key=lambda key: forward.index(key[0]))}
    titles = [f"{planner}, forward solver {solver}" for solver, planner in groups]
    figure, every = panels(titles, width, len({planner for _, planner in groups}), share_x=False)
    names = sorted({_backward_solver(run) for run in done})
    hatches = ("", "////", "....", "xxxx")
    for axes, members in zip(every, groups.values(), strict=True):
        steps = sorted({run.trial.spec.planner.k_bwd for run in members})
        share = 0.8 / len(names)
        for number, name in enumerate(names):
            cells = [
                percents_of([r for r in members if _backward_solver(r) == name and r.trial.spec.planner.k_bwd == k])
                for k in steps
            ]
            places = np.arange(len(steps)) + (number - (len(names) - 1) / 2) * share
            axes.bar(
                places,
                [mean_of(rates) for rates in cells],
                0.92 * share,
                yerr=[error_bar(rates) for rates in cells],
                color=_solver_pen(number).colour,
                edgecolor="white",
                hatch=hatches[number % 4],
                linewidth=0,
                error_kw={"elinewidth": 0.8, "capsize": 1.6, "ecolor": INK},
            )
        percent_axis(axes)
        axes.set_ylim(0, 103)
        axes.set_xticks(range(len(steps)), [str(k) for k in steps])
        axes.grid(axis="x", visible=False)
        label_below(axes, r"backward steps $K_{\mathrm{bwd}}$")
    handles = [
        Patch(facecolor=_solver_pen(i).colour, edgecolor="white", hatch=hatches[i % 4], linewidth=0,
                          label=f"backward solver {name}")
        for i, name in enumerate(names)
    ]  # fmt: skip
    legend(figure, handles, width)
    return figure


def jacobian(runs: TrialRecords, width: float) -> Figure:
    """Success rate over backward iterations by the frequency (columns) and weight (rows) of the Jacobian penalty."""
    done = usable_by_cell(runs)
    if not done:
        raise NothingToDraw("jacobian: no trial is completed")
    without = [run for run in done if not _penalty(run)[1]]
    weights = sorted({_penalty(run)[0] for run in done} - {0.0})
    frequencies = sorted({_penalty(run)[1] for run in done} - {0.0})
    places = list(product(weights, frequencies))
    titles = [f"weight {weight:g}, {100 * frequency:.0f} % of steps" for weight, frequency in places]
    figure, every = panels(titles or ["no penalty"], width, max(1, len(frequencies)))
    named = cell_namer(done, _PENALTY_AXES)
    plain, penalised = grouped(without, named), grouped([run for run in done if _penalty(run)[1]], named)
    plain_pens = {name: Pen(MUTED, _MARKERS[i % 4], (0.0, (3.2, 1.4)), False) for i, name in enumerate(plain)}
    pen_of = {name: Pen(_COLOURS[i % 4], _MARKERS[i % 4]) for i, name in enumerate(penalised)}

    def over_steps(group: TrialRecords) -> dict[float, list[float]]:
        cells = grouped(group, lambda run: float(run.trial.spec.planner.k_bwd))
        return {k: percents_of(cell) for k, cell in sorted(cells.items())}

    for axes, place in zip(every, places or [(0.0, 0.0)], strict=True):
        lines = [(plain_pens[name], over_steps(group)) for name, group in plain.items()]
        for name, group in penalised.items():
            lines.append((pen_of[name], over_steps([run for run in group if _penalty(run) == place])))
        for pen, line in lines:
            seed_line(axes, pen, list(line), list(line.values()))
        percent_axis(axes)
        axes.xaxis.set_major_locator(FixedLocator(sorted({k for _, line in lines for k in line})))
        label_below(axes, r"backward steps $K_{\mathrm{bwd}}$")
    handles = [
        handle(pen, f"{side}: {name}" if len(pens) > 1 else side)
        for side, pens in (("no penalty", plain_pens), ("with Jacobian penalty", pen_of))
        for name, pen in pens.items()
    ]
    legend(figure, handles, width)
    return figure


def _penalty(run: TrialRecord) -> tuple[float, float]:
    training = run.trial.spec.training
    frequency = training.jacobian_frequency if training.jacobian_weight else 0.0
    return (training.jacobian_weight, frequency) if frequency else (0.0, 0.0)
