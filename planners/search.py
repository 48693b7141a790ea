"""Searches behind the same `solve` as trained planners, to compare with; and a learned value as their heuristic."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datagen.problem import FOUR, Moves
from planners.advice import entered
from planners.cores.reachability import Reachability
from planners.inference import Cell, Route, RoutePlanner, checked_cell, checked_costs, checked_grid
from planners.trial_files import PlannerError

Algorithm = Literal["a_star", "breadth_first", "dijkstra", "fast_marching"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


@dataclass(frozen=True, eq=False)
class FoundRoute(Route):
    """What a search finds. Actions (else -1) and values (else NaN) are those of cells on the way; fast marching has
    values of all cells that its wave comes to. `steps` is how many cells were expanded."""

    @property
    def outcome(self) -> str:
        """How it ends: "arrives", or "no way"."""
        return "arrives" if self.arrives else "no way"

    @property
    def advice(self) -> str:
        """Why it does not arrive; empty where it does."""
        start = (int(self.cells[0, 0]), int(self.cells[0, 1]))
        return "" if self.arrives else f"no way leads from {start} to {self.goal}"


@dataclass(frozen=True)
class SearchPlanner:
    """A graph search with the `solve` of a trained planner.

    Attributes:
        algorithm: "a_star", with the distance of a map without walls as heuristic (Manhattan, octile, either round the
            torus) unless `solve` is given another; "dijkstra", the same without one; "breadth_first", for moves that
            cost the same; "fast_marching", down the travel time of a wave from the goal, which takes straight lines
            for shortest and needs scikit-fmm.
        moves: What the actions do.
        weight: Factor on A*'s heuristic; above 1, ways cost at most so many times the cheapest and fewer cells are
            expanded.
    """

    algorithm: Algorithm = "a_star"
    moves: Moves = FOUR
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise PlannerError(f"algorithm: expected {', '.join(ALGORITHMS)}, got {self.algorithm!r:.40}")
        if not isinstance(self.moves, Moves):
            raise PlannerError(f"moves: expected datagen.problem.Moves, as FOUR, got {self.moves!r:.40}")
        if self.moves.links:
            raise PlannerError("moves: a search is for grids, and these are of a graph")
        if not isinstance(self.weight, (int, float)) or not 0 <= self.weight < math.inf:
            raise PlannerError(f"weight: expected a number from 0 on, got {self.weight!r:.40}")
        if self.weight != 1 and self.algorithm != "a_star":
            raise PlannerError(f"weight: is the heuristic's, and {self.algorithm} has none")

    def solve(
        self,
        grid: ArrayLike,
        *,
        start: Cell,
        goal: Cell,
        costs: ArrayLike | None = None,
        heuristic: ArrayLike | None = None,
    ) -> FoundRoute:
        """Return a cheapest way; the edge of the map is a wall, except on the torus.

        Args:
            grid: [h, w], as `RoutePlanner.solve` takes it.
            start: Row and column, a free cell.
            goal: Row and column, a free cell.
            costs: [h, w], what entering each free cell costs; that times the move's own cost is paid.
            heuristic: [h, w], for A*: an estimate of what the way from each cell to the goal costs. Ways are cheapest
                where it is nowhere too much.

        Raises:
            PlannerError: As `RoutePlanner.solve`, or the algorithm can't take what was given.
        """
        free = checked_grid(grid)
        goal, start = (checked_cell(name, cell, free) for name, cell in (("goal", goal), ("start", start)))
        paid = free.astype(np.float64) if costs is None else checked_costs(costs, free)
        if heuristic is not None and self.algorithm != "a_star":
            raise PlannerError(f"heuristic: {self.algorithm} takes none")
        if self.algorithm == "fast_marching":
            return self._marched(free, paid, start, goal)
        if self.algorithm == "breadth_first" and (costs is not None or len(set(self.moves.costs)) > 1):
            raise PlannerError("costs: breadth_first is for moves that cost the same; dijkstra takes costs")
        ahead = np.zeros(free.shape)
        if self.algorithm == "a_star":
            ahead = self.weight * self._ahead(heuristic, free, paid, goal)
        came, expanded = _searched(free, paid, start, goal, self.moves, ahead)
        return self._route(_way(came, start, goal), came, paid, free, start, goal, expanded)

    def _ahead(
        self, given: ArrayLike | None, free: NDArray[np.uint8], paid: NDArray[np.float64], goal: Cell
    ) -> NDArray[np.float64]:
        if given is None:
            return float(paid[free == 1].min()) * without_walls(free.shape, goal, self.moves)
        expected = f"heuristic: expected numbers {list(free.shape)}, got"
        try:
            array = np.ma.filled(np.ma.asarray(given).astype(np.float64), np.nan)
        except (TypeError, ValueError, RuntimeError) as error:  # text, ragged lists, tensors that need a gradient
            raise PlannerError(
                f"{expected} a {type(given).__name__} that is none: {str(error).splitlines()[0]}"
            ) from None
        if array.shape != free.shape or np.isnan(array[free == 1]).any():
            raise PlannerError(f"{expected} {list(array.shape)} or NaN")
        return array

    def _route(
        self,
        way: list[Cell],
        came: dict[Cell, tuple[Cell, int]],
        paid: NDArray[np.float64],
        free: NDArray[np.uint8],
        start: Cell,
        goal: Cell,
        expanded: int,
    ) -> FoundRoute:
        actions, values = np.full(free.shape, -1, np.int64), np.full(free.shape, np.nan, np.float32)
        cost = 0.0
        values[goal] = 0
        for cell in reversed(way[1:]):
            before, action = came[cell]
            cost += self.moves.costs[action] * float(paid[cell])
            actions[before], values[before] = action, -cost
        return FoundRoute(
            cells=np.array(way or [start], np.int64),
            arrives=bool(way),
            cost=cost,
            actions=actions,
            values=values,
            residual=0.0,
            steps=expanded,
            converged=True,
            trace=np.zeros(0, np.float32),
            grid=free,
            goal=goal,
            moves=self.moves,
        )

    def _marched(self, free: NDArray[np.uint8], paid: NDArray[np.float64], start: Cell, goal: Cell) -> FoundRoute:
        """Return the way down the travel time from the goal; where no cell beside is sooner, round as it may be."""
        try:
            travel_time = import_module("skfmm").travel_time
        except ImportError:
            raise PlannerError("fast_marching needs scikit-fmm: pip install 'idp[search]'") from None
        front: Any = np.ma.MaskedArray(np.ones(free.shape), free == 0)
        front[goal] = 0.0
        unit = float(paid.max()) or 1.0
        speed = 1 / np.maximum(paid / unit, 1e-9)  # of no cost is of no time, and nothing marches
        # Of an axis of one cell that is periodic, scikit-fmm reads outside its arrays. Only its first order is upwind.
        periodic = [self.moves.wrap and size > 1 for size in free.shape]
        time = np.ma.filled(travel_time(front, speed, periodic=periodic, order=1), np.inf)
        # By the time ahead alone this goes down; of costs that hardly count beside others it has flat parts.
        came, _ = _searched(free, np.zeros(free.shape), start, goal, self.moves, time)
        reached = np.isfinite(time)
        route = self._route(_way(came, start, goal), came, paid, free, start, goal, int(reached.sum()))
        return replace(route, values=np.where(reached, -unit * time, np.nan).astype(np.float32))


def _searched(
    free: NDArray[np.uint8],
    paid: NDArray[np.float64],
    start: Cell,
    goal: Cell,
    moves: Moves,
    ahead: NDArray[np.float64],
) -> tuple[dict[Cell, tuple[Cell, int]], int]:
    """Return from where each cell was reached and by which action, and how many cells were expanded.

    Of equal estimates the cell that is farther from the start comes first. A cell that is reached at less cost later,
    as by a heuristic that is not consistent, is expanded again.
    """
    reached: dict[Cell, float] = {start: 0.0}
    came: dict[Cell, tuple[Cell, int]] = {}
    front = [(float(ahead[start]), 0.0, start)]
    expanded = 0
    while front:
        _, behind, cell = heapq.heappop(front)
        if -behind > reached[cell]:
            continue
        expanded += 1
        if cell == goal:
            break
        for action, cost in enumerate(moves.costs):
            to, there = entered(cell, action, free, moves)
            if there != "free":
                continue
            total = reached[cell] + cost * float(paid[to])
            if total < reached.get(to, np.inf):
                reached[to], came[to] = total, (cell, action)
                heapq.heappush(front, (total + float(ahead[to]), -total, to))
    return came, expanded


def _way(came: dict[Cell, tuple[Cell, int]], start: Cell, goal: Cell) -> list[Cell]:
    """Return the cells from start to goal; none where the search did not get there."""
    way = [goal]
    while way[-1] != start:
        if way[-1] not in came:
            return []
        way.append(came[way[-1]][0])
    return way[::-1]


def without_walls(shape: tuple[int, ...], goal: Cell, moves: Moves) -> NDArray[np.float64]:
    """Return what ways to the goal would cost on a map without obstacles, [h, w], or 0 for moves of another kind.

    Manhattan distance for the four straight moves, octile distance for them and the four diagonal ones.
    """
    straight = {(-1, 0), (0, -1), (1, 0), (0, 1)}
    diagonal = {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    if set(moves.offsets) not in (straight, straight | diagonal):
        return np.zeros(shape)
    away = [np.abs(np.arange(size) - at) for size, at in zip(shape, goal, strict=True)]
    if moves.wrap:
        away = [np.minimum(part, size - part) for part, size in zip(away, shape, strict=True)]
    rows, columns = away[0][:, None], away[1][None, :]
    costs = dict(zip(moves.offsets, moves.costs, strict=True))
    step = min(costs[offset] for offset in straight)
    if len(costs) == len(straight):
        return step * (rows + columns).astype(np.float64)
    slant = min(2 * step, *(costs[offset] for offset in diagonal))
    both, rest = np.minimum(rows, columns), np.abs(rows - columns)
    return both * slant + rest * min(step, slant)


def learned_heuristic(
    planner: RoutePlanner, grid: ArrayLike, *, goal: Cell, costs: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return what a planner's value says that the way from each cell to the goal costs, [h, w].

    Args:
        planner: One with core `reachability`, whose value is the logarithm of a product over the moves of a way.
        grid: As `RoutePlanner.solve` takes it.
        goal: The same.
        costs: The same.

    Raises:
        PlannerError: The planner's values are no such logarithms.
    """
    core = planner.planner.core
    if not isinstance(core, Reachability):
        raise PlannerError("heuristic: values of a planner with core 'reachability' tell costs of ways, others do not")
    values = planner.solve(grid, start=goal, goal=goal, costs=costs).values.astype(np.float64)
    # Without costs, whole steps: what float32 leaves of them must not decide between equal ways.
    return -values if costs is not None else np.round(values / np.log(core.discount), 2)
