"""A planner's way on somebody's own map, drawn: map or costs with the way, value and policy, how the solve went."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from datagen.expert.grid import goal_distances
from orchestrator.figures import cells as grids
from orchestrator.figures.problem import check_picture, draw_residuals, write_figure
from orchestrator.figures.style import style

if TYPE_CHECKING:
    from planners.inference import Route, RoutePlanner

SMALLEST_INCHES, LARGEST_INCHES = 2.5, 7.0
CELLS_PER_INCH = 100
"""Two dots a cell, where the map is large."""
MOST_SEARCHED = 100_000
"""Cells of the largest map with costs on which a graph search, in Python, says what the cheapest way costs."""


def write_route(planner: RoutePlanner, route: Route, out: Path, costs: NDArray[np.float64] | None = None) -> str:
    """Draw a way into the file `out`, and return in words how it ends and what it costs.

    Args:
        planner: Who has planned it.
        route: The way.
        out: The picture: a name ending in .png, .svg or .pdf.
        costs: What entering each cell costs, where that was given.
    """
    check_picture(out)
    distance = goal_distances(route.grid[None], np.array([route.goal], np.int16), route.moves)[0]
    said = _words(route, _cheapest(route, distance, costs))
    with style():
        write_figure(route_figure(planner, route, said, np.isfinite(distance), costs), out, "--out")
    return said


def _words(route: Route, cheapest: float | None) -> str:
    if cheapest == np.inf:
        return route.advice
    best = "" if cheapest is None else f" (the cheapest way: {cheapest:,.6g})"
    if route.arrives:
        return f"arrives at cost {route.cost:,.6g}{best}, by {len(route.cells) - 1:,} moves"
    return f"does not arrive: {route.outcome}{best}"


def _cheapest(route: Route, distance: NDArray[np.float32], costs: NDArray[np.float64] | None) -> float | None:
    """Return what the cheapest way costs by a graph search, None where none was made."""
    start = (int(route.cells[0, 0]), int(route.cells[0, 1]))
    if costs is None:
        return float(distance[start])
    if not np.isfinite(distance[start]):
        return np.inf
    if set(route.moves.costs) != {1.0} or costs.size > MOST_SEARCHED:
        return None
    from planners.search import SearchPlanner

    search = SearchPlanner("dijkstra", route.moves)
    return search.solve(route.grid, start=start, goal=route.goal, costs=costs).cost


def route_figure(
    planner: RoutePlanner,
    route: Route,
    said: str,
    reaches: NDArray[np.bool_],
    costs: NDArray[np.float64] | None = None,
) -> Figure:
    """Return map or costs with the way, value and policy, and the residual of each step.

    Args:
        planner: Who has planned it.
        route: The way.
        said: How it ends, in words.
        reaches: Cells [h, w] from which a way leads to the goal; others have no value to speak of.
        costs: What entering each cell costs, where that was given.
    """
    height, width = route.grid.shape
    inches = min(max(max(height, width) / CELLS_PER_INCH, SMALLEST_INCHES), LARGEST_INCHES) / max(height, width)
    wide, tall = max(width * inches, 1.8) + 0.5, max(height * inches, 1.8)
    stepwise = [2.6] if route.steps > 1 else []  # an exact solve has no steps to show
    page = 2 * wide + sum(stepwise) + 0.2
    note = fill(f"{said}: {route.advice}" if route.advice not in ("", said) else said, int(page * 16))
    figure = Figure(figsize=(page, tall + 0.9 + 0.14 * note.count("\n")), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [wide, wide, *stepwise]
    (board, values, *residuals) = figure.subplots(1, len(ratios), width_ratios=ratios)
    _board(board, route, costs)
    _values(values, route, reaches)
    for axes in residuals:
        draw_residuals(axes, route.trace.tolist(), planner.tolerance)
        axes.set_box_aspect(min(1.0, (tall - 0.4) / 2.3))
        axes.set_title("convergence", loc="left", pad=4)
    goal = np.array(route.goal, np.int16)
    path = grids.roll_out(
        (int(route.cells[0, 0]), int(route.cells[0, 1])), route.actions, route.grid, goal, route.moves
    )
    for axes in (board, values):
        grids.trail(axes, path, grids.ARRIVES if path.arrives else grids.LOST, dashed=not path.arrives)
        grids.star(axes, goal)
        for line in axes.lines:
            line.set_path_effects([withStroke(linewidth=line.get_linewidth() + 1.6, foreground="white")])
    figure.supxlabel(note, fontsize=7.5)
    return figure


def _board(axes: Axes, route: Route, costs: NDArray[np.float64] | None) -> None:
    if costs is None:
        grids.board(axes, route.grid)
    else:
        grids.heat(axes, route.grid, costs, "cost of entering a cell")
    axes.set_title("the path" if costs is None else "costs, and the path", loc="left", pad=4)
    for axis, name in ((axes.yaxis, "row"), (axes.xaxis, "column")):
        axis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_label_text(name, fontsize=6.5)
    axes.tick_params(labelsize=6, length=2)


def _values(axes: Axes, route: Route, reaches: NDArray[np.bool_]) -> None:
    value = np.where(reaches, route.values, np.nan)
    grids.heat(axes, route.grid, value, "value, high near the goal")
    axes.set_title("value and policy", loc="left", pad=4)
    away = reaches & (route.grid > 0)
    away[route.goal] = False
    chosen = (route.actions[None] == np.arange(len(route.moves.names))[:, None, None]) & away
    known = value[np.isfinite(value)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    dark = (value - low) / max(high - low, 1e-12) < 0.55
    grids.arrows(axes, chosen, route.moves, np.where(dark, "#ffffff", "#1d1f24"))
    if not grids.arrows_show(route.grid.shape):
        axes.set_xlabel("too many cells for arrows", fontsize=6.5)
