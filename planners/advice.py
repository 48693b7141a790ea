"""Why a route does not arrive, or can't be trusted, and what to try: in words, from what the planner left behind."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from datagen.problem import Moves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planners.inference import Cell, Route

FLAT = 1e-4
"""Difference from cell to cell, relative to the largest value, below which the goal no longer shows in the values."""


def entered(cell: Cell, action: int, free: NDArray[np.uint8], moves: Moves) -> tuple[Cell, str]:
    """Return where an action leads from a cell, and what is there: "free", "wall", or "edge" for a move off the map."""
    height, width = free.shape
    row, column = cell[0] + moves.offsets[action][0], cell[1] + moves.offsets[action][1]
    if moves.wrap:
        row, column = row % height, column % width
    if not (0 <= row < height and 0 <= column < width):
        return (row, column), "edge"
    return (row, column), "free" if free[row, column] else "wall"


def outcome(route: Route) -> str:
    """Return how a route ends: "arrives", "bumps", "leaves the map", or "cycles"."""
    if route.arrives:
        return "arrives"
    last = (int(route.cells[-1, 0]), int(route.cells[-1, 1]))
    there = entered(last, int(route.actions[last]), route.grid, route.moves)[1]
    return {"free": "cycles", "wall": "bumps", "edge": "leaves the map"}[there]


def advice(route: Route) -> str:
    """Return what is wrong with a route and what to try; nothing where it arrives by values that have converged."""
    start = (int(route.cells[0, 0]), int(route.cells[0, 1]))
    if not math.isfinite(route.residual) or not np.isfinite(route.values).all():
        return "the forward iteration diverged: its values mean nothing; train again"
    if route.arrives:
        return "" if route.converged or route.all_steps else f"{_unconverged(route)}: {_more(route, 0)}"
    distance = moves_between(start, route.goal, route.grid, route.moves)
    if distance is None:
        return f"no way leads from {start} to {route.goal}"
    if route.all_steps and route.steps >= distance:
        return (
            f"the policy {_fails(route)}; the planner was trained unrolled, and more than its {route.steps} steps may "
            "make it worse: one with the adjoint implicit takes any number"
        )
    if not route.converged:
        return f"{_unconverged(route)}, and the goal is {distance} moves away: {_more(route, distance)}"
    if _flat(route):
        left = (
            "" if route.discount is None else f" (a discount of {route.discount} leaves {route.discount**distance:.1g})"
        )
        return (
            f"the value has converged, but the goal is {distance} moves away and too little of its pull is left{left}: "
            "more steps change nothing; go by way of nearer goals, or train on larger maps"
        )
    return (
        f"the value has converged, and the policy {_fails(route)} nevertheless: more steps change nothing; "
        "train longer, or on maps more like this one"
    )


def _fails(route: Route) -> str:
    return f"{outcome(route)} at {(int(route.cells[-1, 0]), int(route.cells[-1, 1]))}"


def _unconverged(route: Route) -> str:
    return f"the value has not converged in {route.steps} steps (residual {route.residual:.1e})"


def _more(route: Route, distance: int) -> str:
    return f"try k={max(2 * route.steps, 2 * distance)}"


def moves_between(start: Cell, goal: Cell, free: NDArray[np.uint8], moves: Moves) -> int | None:
    """Return the fewest moves from start to goal, None where there is no way."""
    seen, front, count = {start}, deque([start]), 0
    while front:
        for _ in range(len(front)):
            cell = front.popleft()
            if cell == goal:
                return count
            for action in range(len(moves.offsets)):
                to, there = entered(cell, action, free, moves)
                if there == "free" and to not in seen:
                    seen.add(to)
                    front.append(to)
        count += 1
    return None


def _flat(route: Route) -> bool:
    """Return whether values hardly differ between the cells that the route ends among."""
    around = {(int(row), int(column)) for row, column in route.cells[-4:]}
    for cell in list(around):
        for action in range(len(route.moves.offsets)):
            to, there = entered(cell, action, route.grid, route.moves)
            around |= {to} if there == "free" else set()
    near = route.values[tuple(np.array(sorted(around)).T)]
    largest = float(np.abs(route.values[route.grid > 0]).max())
    return float(near.max() - near.min()) <= FLAT * largest
