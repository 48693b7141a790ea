"""A trained planner in a notebook: from its trial directory to a route on one's own map; needs no Ray and no MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from datagen.plugins import named_in_environment, require
from datagen.problem import FOUR, Moves
from planners.planner import Planner, build_planner
from planners.registry import OPTIONS, load_parts

Cell = tuple[int, int]


class PlannerError(ValueError):
    """A planner that can't be loaded, or a map it can't plan on; the message says what was expected."""


@dataclass(frozen=True)
class Route:
    """What a planner makes of one map, goal and start.

    Attributes:
        cells: int64 [n, 2], rows and columns from the start, the start first; as far as the policy gets.
        arrives: Whether the last cell is the goal. A policy that bumps or comes to a cell twice never arrives.
        cost: Sum of the moves' costs along the cells.
        actions: int64 [h, w], the action that the planner takes in each cell.
        values: float32 [h, w], the planner's value of each cell; of several channels their norm.
        residual: Relative residual of the fixed point; small where the planner has made up its mind.
        steps: Applications of the step that the solve took.
        converged: Whether the residual is within the planner's tolerance.
        trace: float32 [steps], the residual after each step.
        grid: uint8 [h, w], the map, 1 = free.
        goal: Row and column.
    """

    cells: NDArray[np.int64]
    arrives: bool
    cost: float
    actions: NDArray[np.int64]
    values: NDArray[np.float32]
    residual: float
    steps: int
    converged: bool
    trace: NDArray[np.float32]
    grid: NDArray[np.uint8]
    goal: Cell


@dataclass(frozen=True)
class RoutePlanner:
    """A planner for maps as numpy arrays, one at a time and of any size.

    Attributes:
        planner: The planner itself, for batches of tensors.
        moves: What its actions do.
        tolerance: Relative residual at which a plan counts as converged, and a solve ends.
        all_steps: Take all steps nevertheless, as an unrolled planner does in training.
    """

    planner: Planner
    moves: Moves = FOUR
    tolerance: float = 1e-4
    all_steps: bool = False

    def solve(self, grid: ArrayLike, goal: Cell, start: Cell, *, k: int | None = None) -> Route:
        """Plan on a map and follow the plan from the start.

        Args:
            grid: [h, w], 1 or True where a cell is free, 0 or False where there is an obstacle.
            goal: Row and column, a free cell.
            start: Row and column, a free cell.
            k: Most forward steps; None is as many as the planner was trained with. Values move a cell or so a step,
                so a larger map needs more.

        Returns:
            The route, with values, residual and steps.

        Raises:
            PlannerError: The map is not one of zeros and ones, or goal or start is no free cell of it; or the planner
                needs more than a map.
        """
        if self.planner.channels:
            raise PlannerError(
                f"solve: this planner reads {self.planner.channels} channels beside map and goal; "
                "give them to `planner.planner.plan(map, goal, observation)`"
            )
        free = _checked(grid, goal=goal, start=start)
        tensor = next(self.planner.parameters())
        x = torch.zeros(1, 2, *free.shape)
        x[0, 0], x[0, 1, goal[0], goal[1]] = torch.from_numpy(free), 1.0
        recording = self.planner.recording(tolerance=0.0 if self.all_steps else self.tolerance)
        with torch.no_grad():
            plan = recording.plan(*x.to(tensor).split(1, dim=1), k_fwd=k)
        found, actions = plan.solution, plan.logits[0].argmax(0).cpu().numpy()
        assert found.trace is not None, "the solver was told to record"
        cells, cost = _follow(actions, free, goal, start, self.moves)
        steps = int(found.steps[0])
        return Route(
            cells=cells,
            arrives=tuple(cells[-1]) == tuple(goal),
            cost=cost,
            actions=actions,
            values=_values(found.value[0]),
            residual=float(found.residual[0]),
            steps=steps,
            converged=bool(found.residual[0] <= self.tolerance),
            trace=found.trace[:steps, 0].float().cpu().numpy(),
            grid=free,
            goal=(int(goal[0]), int(goal[1])),
        )


def load_planner(directory: str | Path, plugins: Iterable[str] = ()) -> RoutePlanner:
    """Return the planner that a trial has trained.

    Args:
        directory: The trial directory; of its files `spec.json` and `checkpoint.pt` are enough.
        plugins: Modules to import for its parts, beside those in IDP_PLUGINS; its files have none imported.

    Raises:
        PlannerError: A file is missing or not of this version; names it.
        PluginError: A plug-in can't be imported, or the planner's parts come from one that is not named.
    """
    folder = Path(directory)
    load_parts([*named_in_environment(), *plugins])
    try:
        spec = json.loads((folder / "spec.json").read_bytes())
        trainer: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["trainer"]
    except FileNotFoundError as error:
        raise PlannerError(
            f"{error.filename}: no such file: {folder} is not the directory of a trained trial"
        ) from None
    require(spec.get("plugins", ()))
    moves = Moves(**trainer["moves"])
    best = trainer.get("best") if spec.get("training", {}).get("tested_checkpoint") == "best" else None
    try:
        planner_spec = _as_built(spec["planner"])
        planner = build_planner(planner_spec, actions=len(moves.names))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PlannerError(f"{folder / 'spec.json'}: planner: not of this version ({reason})") from error
    try:
        planner.load_state_dict(best["planner"] if best else trainer["planner"])
    except RuntimeError as error:
        raise PlannerError(f"{folder / 'checkpoint.pt'}: its weights do not fit the planner: {error}") from error
    planner.eval()
    return RoutePlanner(planner, moves, planner_spec.tolerance, all_steps=planner_spec.adjoint == "unrolled")


def _as_built(planner: Mapping[str, Any]) -> Any:
    """Return a planner as `build_planner` reads it: the trial has validated it, so pydantic need not be here."""
    parts: dict[str, Any] = dict(planner)
    for field, (registry, options) in OPTIONS.items():
        entry = registry.get(planner[field])
        if entry is None:
            raise ValueError(f"{field}: unknown name {planner[field]!r}; known: {', '.join(registry)}")
        own = SimpleNamespace if isinstance(entry.options, str) else entry.options
        parts[options] = own(**planner[options])
    return SimpleNamespace(**parts)


def plot(route: Route, axes: Any = None) -> Any:
    """Draw a route over the map and the planner's values.

    Args:
        route: From `RoutePlanner.solve`.
        axes: Matplotlib's; None makes a figure. This is all that matplotlib is needed for.

    Returns:
        The axes.
    """
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots(figsize=(4, 4), layout="constrained")[1]
    axes.imshow(route.grid, cmap="gray", vmin=-0.6, vmax=1)
    axes.imshow(np.ma.masked_where(route.grid == 0, route.values), cmap="viridis")
    rows, columns = route.cells.T
    axes.plot(columns, rows, color="#d55e00", linewidth=2, linestyle="-" if route.arrives else "--")
    axes.plot(columns[0], rows[0], "o", color="white", markeredgecolor="#d55e00", markersize=7)
    axes.plot(route.goal[1], route.goal[0], "*", color="#f0e442", markeredgecolor="black", markersize=13)
    outcome = f"arrives at cost {route.cost:.4g}" if route.arrives else "does not arrive"
    axes.set_title(f"{outcome}; {route.steps} steps, residual {route.residual:.1e}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _checked(grid: ArrayLike, **cells: Cell) -> NDArray[np.uint8]:
    array = np.asarray(grid)
    if array.ndim != 2 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise PlannerError(
            f"grid: expected an array [h, w] of 1 (free) and 0 (obstacle), got {array.dtype} {list(array.shape)}"
        )
    for name, cell in cells.items():
        if len(cell) != 2 or not all(0 <= cell[axis] < array.shape[axis] for axis in (0, 1)):
            raise PlannerError(f"{name}: expected row and column of a cell of the {array.shape} map, got {cell}")
        if not array[cell[0], cell[1]]:
            raise PlannerError(f"{name}: {tuple(cell)} is an obstacle")
    return array.astype(np.uint8)


def _values(v: Tensor) -> NDArray[np.float32]:
    value: NDArray[np.float32] = (v[0] if len(v) == 1 else v.norm(dim=0)).float().cpu().numpy()
    return value


def _follow(
    actions: NDArray[np.int64], free: NDArray[np.uint8], goal: Cell, start: Cell, moves: Moves
) -> tuple[NDArray[np.int64], float]:
    """Return the cells that the policy visits until it arrives, bumps or comes to a cell twice, and their cost."""
    height, width = free.shape
    row, column = int(start[0]), int(start[1])
    cells, cost = [(row, column)], 0.0
    seen = set(cells)
    while (row, column) != (goal[0], goal[1]):
        action = int(actions[row, column])
        row, column = row + moves.offsets[action][0], column + moves.offsets[action][1]
        if moves.wrap:
            row, column = row % height, column % width
        if not (0 <= row < height and 0 <= column < width) or not free[row, column] or (row, column) in seen:
            break
        cost += moves.costs[action]
        cells.append((row, column))
        seen.add((row, column))
    return np.array(cells, np.int64), cost
