"""Plans again where only some of a map has changed: what the change can't alter is kept, the rest is settled anew.

The costs of arriving, D, are those of cheapest ways, each cell's found from one neighbour, its parent. Where costs or
moves change, the cells whose ways lead through what became dearer lose their D; they and the neighbours of what became
cheaper are settled as Dijkstra's algorithm settles all. Sums are rounded in the order of the way, so that the least
over all ways, and every bit of D, is that of a plan from nothing.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from datagen.problem import FOUR
from planners.compiled.layout import compiled
from planners.compiled.reachability.kernel import cheapest
from planners.compiled.solvers import BestFirst
from planners.cores import encoded
from planners.cores.patterns import LookedUp
from planners.cores.reachability import Reachability, ReachabilityStep
from planners.edge import enclosed
from planners.inference import (
    Cell,
    Route,
    RoutePlanner,
    checked_cell,
    checked_costs,
    checked_grid,
    followed,
    without_least,
)
from planners.trial_files import PlannerError

_LARGEST_SHARE = 0.25
"""Of the cells; where more have changed, a plan from nothing takes less time."""


@dataclass(eq=False)
class _Plan:
    """A plan and what it was made of, maps flat.

    Attributes:
        goal: Place of the goal.
        shape: Rows and columns.
        moves: What a move to each neighbour costs in each pattern, [patterns, T]; the cell itself is the first.
        pattern: int16 [n].
        costs: float64 [n], of entering.
        arriving: D, float64 [n], inf where there is no way.
        parent: int8 [n], the neighbour that the way leads to; 0 for none.
    """

    goal: int
    shape: tuple[int, ...]
    moves: NDArray[np.float64]
    pattern: NDArray[np.int16]
    costs: NDArray[np.float64]
    arriving: NDArray[np.float64]
    parent: NDArray[np.int8]


class Replanner:
    """The `solve` of a planner with core `reachability` and costs, which takes up its last plan where it can.

    Routes, values and actions are those of the planner itself, to the bit. Whatever has no costs of cells, or is of
    another planner, is handed to it.

    Args:
        planner: `load_planner("reachability")`, say.
    """

    def __init__(self, planner: RoutePlanner) -> None:
        if not isinstance(planner, RoutePlanner):
            raise PlannerError(f"planner: expected one from load_planner, got {type(planner).__name__}")
        self.planner = planner
        self.settled = 0
        """How many cells the last plan has settled."""
        self._last: _Plan | None = None

    def solve(self, grid: ArrayLike, *, start: Cell, goal: Cell, costs: ArrayLike | None = None) -> Route:
        """Return the route, as `RoutePlanner.solve` does.

        Raises:
            PlannerError: As that raises.
        """
        if costs is None or not self._repairs():
            return self.planner.solve(grid, start=start, goal=goal, costs=costs)
        free = checked_grid(grid)
        goal, start = (checked_cell(name, cell, free) for name, cell in (("goal", goal), ("start", start)))
        paid = checked_costs(costs, free)
        step = self._step(free, goal, without_least(paid))
        if not isinstance(step.given, LookedUp):
            return self.planner.solve(grid, start=start, goal=goal, costs=costs)
        height, width = step.goal.shape[2:]
        offsets = np.array(step.neighbours)
        leads = np.stack([offsets // 3 - 1, offsets % 3 - 1], 1)
        plan = self._last = self._planned(step, leads)
        floor, least = float(step.floor), float(2 * step.floor)
        values, actions = np.empty((height, width)), np.empty((height, width), np.int64)
        _read(plan.arriving, plan.pattern, plan.moves, plan.costs, leads, (floor, least), values, actions)
        ring = (height - free.shape[0]) // 2
        inner = slice(ring, height - ring), slice(ring, width - ring)
        taken = np.ascontiguousarray(actions[inner])
        cells, _ = followed(taken, free, goal, start, self.planner.moves)
        return Route(
            cells=cells,
            arrives=tuple(cells[-1]) == goal,
            cost=float(paid[*cells[1:].T].sum()),
            actions=taken,
            values=values[inner].astype(np.float32),
            residual=0.0,
            steps=1,
            converged=True,
            trace=np.zeros(1, np.float32),
            grid=free,
            goal=goal,
            moves=self.planner.moves,
            all_steps=self.planner.all_steps,
            discount=getattr(self.planner.planner.core, "discount", None),
        )

    def _repairs(self) -> bool:
        planner = self.planner.planner
        core = planner.core
        return (
            isinstance(core, Reachability)
            and core.sharp
            and not core.wrap
            and not planner.channels
            and isinstance(planner.solver, BestFirst)
            and planner.kernel != "reference"
            and self.planner.moves.offsets == FOUR.offsets
        )

    @torch.no_grad()
    def _step(self, free: NDArray[np.uint8], goal: Cell, costs: NDArray[np.float64]) -> ReachabilityStep:
        """Return what is iterated on the map, in the ring that `plan_walled` puts round it where its edge is open."""
        planner = self.planner.planner
        x = torch.zeros(1, 2, *free.shape)
        x[0, 0], x[0, 1, goal[0], goal[1]] = torch.from_numpy(free), 1.0
        paid = torch.from_numpy(costs)[None, None]
        if bool(enclosed(planner, x[:, :1], None, self.planner.moves).any()):
            x, paid = functional.pad(x, (1, 1, 1, 1)), functional.pad(paid, (1, 1, 1, 1))
        step = encoded(planner.core, x.to(next(planner.parameters())), paid)
        assert isinstance(step, ReachabilityStep)
        return step

    def _planned(self, step: ReachabilityStep, leads: NDArray[np.int64]) -> _Plan:
        """Return the plan, made of the last one where that has the same goal and moves."""
        given, last, self._last = step.given, self._last, None  # a repair that is interrupted leaves no plan
        assert isinstance(given, LookedUp) and step.costs is not None
        moves = cheapest(given.table.T.contiguous().numpy(), step.taps.argmax(1).numpy(), len(leads))[0]
        pattern = given.pattern[0].numpy().ravel()
        costs = step.costs[0, 0].double().numpy().ravel()
        goal = int(step.goal[0, 0].argmax())
        shape = tuple(step.goal.shape[2:])
        if last is not None and last.shape == shape and last.goal == goal:
            changed = np.flatnonzero((last.pattern != pattern) | (last.costs != costs))
            if len(changed) <= _LARGEST_SHARE * len(pattern) and np.array_equal(last.moves, moves):
                plan = _Plan(goal, shape, moves, pattern, costs, last.arriving, last.parent)
                self.settled = _repair(plan.arriving, plan.parent, pattern, moves, costs, leads, shape, changed)
                return plan
        arriving, parent = np.full(len(pattern), np.inf), np.zeros(len(pattern), np.int8)
        plan = _Plan(goal, shape, moves, pattern, costs, arriving, parent)
        plan.arriving[goal] = 0.0
        self.settled = _settle(plan.arriving, plan.parent, pattern, moves, costs, leads, shape, np.array([goal]))
        return plan


@compiled
def _neighbour(cell: int, row: int, column: int, shape: Any) -> int:
    """Return the place of the cell so many rows and columns away, -1 beyond the edge."""
    y, x = cell // shape[1] + row, cell % shape[1] + column
    return y * shape[1] + x if 0 <= y < shape[0] and 0 <= x < shape[1] else -1


@compiled
def _settle(
    arriving: Any, parent: Any, pattern: Any, moves: Any, costs: Any, leads: Any, shape: Any, begun: Any
) -> int:
    """Settle what can be reached at less cost from the cells `begun`; return how many cells were."""
    heap = [(0.0, np.int64(0)) for _ in range(0)]
    for cell in begun:
        heapq.heappush(heap, (arriving[cell], np.int64(cell)))
    settled = 0
    while len(heap) > 0:
        reached, cell = heapq.heappop(heap)
        if reached > arriving[cell]:
            continue
        settled += 1
        entered = reached + costs[cell]
        for t in range(1, len(leads)):
            other = _neighbour(cell, -leads[t, 0], -leads[t, 1], shape)
            if other < 0:
                continue
            total = entered + moves[pattern[other], t]
            if total < arriving[other]:
                arriving[other], parent[other] = total, t
                heapq.heappush(heap, (total, np.int64(other)))
    return settled


@compiled
def _repair(
    arriving: Any, parent: Any, pattern: Any, moves: Any, costs: Any, leads: Any, shape: Any, changed: Any
) -> int:
    """Make a plan that of the present patterns and costs, which differ at the cells `changed`; return as `_settle`."""
    lost = [np.int64(0) for _ in range(0)]
    near = [np.int64(0) for _ in range(0)]
    for cell in changed:
        near.append(cell)
        for t in range(1, len(leads)):
            other = _neighbour(cell, -leads[t, 0], -leads[t, 1], shape)
            if other >= 0:
                near.append(other)
    for cell in near:
        t = parent[cell]
        if t > 0:
            to = _neighbour(cell, leads[t, 0], leads[t, 1], shape)
            if arriving[to] + costs[to] + moves[pattern[cell], t] > arriving[cell]:
                arriving[cell], parent[cell] = np.inf, 0
                lost.append(cell)
    done = 0
    while done < len(lost):  # and all whose ways lead there
        cell = lost[done]
        done += 1
        for t in range(1, len(leads)):
            other = _neighbour(cell, -leads[t, 0], -leads[t, 1], shape)
            if other >= 0 and parent[other] == t:
                arriving[other], parent[other] = np.inf, 0
                lost.append(other)
    near.extend(lost)
    begun = [np.int64(0) for _ in range(0)]
    for cell in near:
        for t in range(1, len(leads)):
            to = _neighbour(cell, leads[t, 0], leads[t, 1], shape)
            if to < 0:
                continue
            total = arriving[to] + costs[to] + moves[pattern[cell], t]
            if total < arriving[cell]:
                arriving[cell], parent[cell] = total, t
                begun.append(cell)
    if len(begun) == 0:
        return 0
    return _settle(arriving, parent, pattern, moves, costs, leads, shape, np.array(begun))


@compiled
def _read(
    arriving: Any, pattern: Any, moves: Any, costs: Any, leads: Any, least: Any, values: Any, actions: Any
) -> None:
    """Write log v and the first of the best actions, as `ReachabilityStep.policy` ranks them where costs are given.

    Args:
        arriving: As in `_Plan`.
        pattern: The same.
        moves: The same.
        costs: The same.
        leads: Rows and columns to the neighbours, [T, 2].
        least: Value of what has no way, and of what lies beyond the edge.
        values: float64 [h, w], written.
        actions: int64 [h, w], written.
    """
    floor, outside = least
    shape = values.shape
    value, action = values.reshape(-1), actions.reshape(-1)
    for cell in range(len(value)):
        value[cell] = max(floor, -arriving[cell])
    for cell in range(len(value)):
        best = -np.inf
        for t in range(1, len(leads)):
            to = _neighbour(cell, leads[t, 0], leads[t, 1], shape)
            near = outside if to < 0 else max(outside, value[to] - costs[to])
            q = max(floor, near - moves[pattern[cell], t])
            if q > best:
                best, action[cell] = q, t - 1
