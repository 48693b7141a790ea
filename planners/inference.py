"""A trained planner in a notebook: from its trial directory to a route on one's own map; needs no Ray and no MLflow."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from datagen.moved import by_name
from datagen.plugins import PluginError, named_in_environment, require
from datagen.problem import FOUR, Moves
from datagen.shapes import shaped
from planners import advice, trial_files
from planners.cores import CostCore
from planners.cores.reachability import _LEAST_COST as LEAST_COST
from planners.cores.reachability import Reachability
from planners.edge import on_map, plan_walled
from planners.planner import DEAREST, Planner, build_planner
from planners.published import folder_of, read_state
from planners.registry import OPTIONS, load_parts
from planners.trial_files import PlannerError as PlannerError

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

Cell = tuple[int, int]


@shaped
@dataclass(frozen=True, eq=False)
class Route:
    """What a planner makes of one map, goal and start.

    Attributes:
        cells: int64 [n, 2], rows and columns from the start, the start first; as far as the policy gets.
        arrives: Whether the last cell is the goal. A policy that bumps or comes to a cell twice never arrives.
        cost: Sum of the moves' costs along the cells; or, where costs were given, of those of the cells entered.
        actions: int64 [h, w], the action that the planner takes in each cell.
        values: float32 [h, w], the planner's value of each cell; of several channels their norm.
        residual: Relative residual of the fixed point; small where the planner has made up its mind.
        steps: Applications of the step that the solve took.
        converged: Whether the residual is within the planner's tolerance.
        trace: float32 [steps], the residual after each step.
        grid: uint8 [h, w], the map, 1 = free.
        goal: Row and column.
        moves: What the actions do.
        all_steps: The planner was trained unrolled, for a number of steps, and not to converge.
        discount: The planner's own discount per step, None where it has none.
    """

    cells: Int64[NDArray[np.int64], "n 2"]
    arrives: bool
    cost: float
    actions: Int64[NDArray[np.int64], "h w"]
    values: Float32[NDArray[np.float32], "h w"]
    residual: float
    steps: int
    converged: bool
    trace: Float32[NDArray[np.float32], " steps"]
    grid: UInt8[NDArray[np.uint8], "h w"]
    goal: Cell
    moves: Moves = FOUR
    all_steps: bool = False
    discount: float | None = None

    @property
    def outcome(self) -> str:
        """How it ends: "arrives", "bumps", "leaves the map", or "cycles"."""
        return advice.outcome(self)

    @property
    def advice(self) -> str:
        """What is wrong with it and what to try, in words; empty where it arrives by values that have converged."""
        return advice.advice(self)


@dataclass(frozen=True)
class RoutePlanner:
    """A planner for maps as numpy arrays, one at a time and of any size.

    Attributes:
        planner: The planner itself, for batches of tensors.
        moves: What its actions do.
        tolerance: Relative residual at which a plan counts as converged, and a solve ends.
        all_steps: Take all steps nevertheless, as an unrolled planner does in training.
        steps_per_row: Most forward steps per row of the map, or column if there are more, where that is more than in
            training; None takes those of training on every map.
    """

    planner: Planner
    moves: Moves = FOUR
    tolerance: float = 1e-4
    all_steps: bool = False
    steps_per_row: float | None = None

    @by_name("goal", "start", after=2)
    def solve(
        self, grid: ArrayLike, *, start: Cell, goal: Cell, k: int | None = None, costs: ArrayLike | None = None
    ) -> Route:
        """Plan on a map and follow the plan from the start to the goal.

        The edge of the map is a wall, except on the torus.

        Args:
            grid: [h, w], 1 or True where a cell is free, 0 or False where there is an obstacle. No cell of a masked
                array may be masked: whether the unknown is free is not for a planner to say.
            start: Row and column, a free cell.
            goal: Row and column, a free cell.
            k: Most forward steps; None is as many as the planner was trained or is tested with, `steps_per_row` on maps
                that are larger. Values move a cell or so a step.
            costs: [h, w], what entering each free cell costs, at least 0; those of obstacles do not count. For planners
                with core `reachability` or `shortest_path`, which then look for the way that costs least.

        Returns:
            The route, with values, residual and steps; its `advice` says what to try where it does not arrive.

        Raises:
            PlannerError: The map is not one of zeros and ones, or goal or start is no free cell of it; the planner
                needs more than a map, or takes no costs.
        """
        if self.planner.channels or self.moves.links:
            raise PlannerError(
                f"solve: this planner reads {self.planner.channels} channels beside map and goal; "
                "give them to `planner.planner.plan(map, goal, observation)`"
            )
        free = checked_grid(grid)
        goal, start = (checked_cell(name, cell, free) for name, cell in (("goal", goal), ("start", start)))
        given: dict[str, Any] = {}
        if costs is not None:
            self._refuse_costs()
            entering = checked_costs(costs, free)
            own = without_least(entering) if isinstance(self.planner.core, Reachability) else entering
            given["costs"] = torch.from_numpy(own)[None, None]
        steps = trial_files.most_steps(self.planner.solver.max_steps, self.steps_per_row, max(free.shape))
        if k is not None:
            steps = _checked_steps(k)
        tensor = next(self.planner.parameters())
        x = torch.zeros(1, 2, *free.shape)
        x[0, 0], x[0, 1, goal[0], goal[1]] = torch.from_numpy(free), 1.0
        recording = self.planner.recording(tolerance=0.0 if self.all_steps else self.tolerance)
        with torch.no_grad():
            plan = plan_walled(recording, *x.to(tensor).split(1, dim=1), moves=self.moves, k_fwd=steps, **given)
        found, actions = plan.solution, plan.logits[0].max(0).indices.cpu().numpy()  # argmax takes sevenfold
        assert found.trace is not None, "the solver was told to record"
        cells, cost = followed(actions, free, goal, start, self.moves)
        if costs is not None:
            cost = float(entering[*cells[1:].T].sum())
        taken = int(found.steps[0])
        return Route(
            cells=cells,
            arrives=tuple(cells[-1]) == goal,
            cost=cost,
            actions=actions,
            values=_values(on_map(plan)[0]),
            residual=float(found.residual[0]),
            steps=taken,
            converged=bool(found.residual[0] <= self.tolerance),
            trace=found.trace[:taken, 0].float().cpu().numpy(),
            grid=free,
            goal=goal,
            moves=self.moves,
            all_steps=self.all_steps,
            discount=getattr(self.planner.core, "discount", None),
        )

    def _refuse_costs(self) -> None:
        """Raise PlannerError where the planner takes no costs."""
        core = self.planner.core
        if not isinstance(core, CostCore) or (isinstance(core, Reachability) and self.moves.offsets != FOUR.offsets):
            raise PlannerError(
                "costs: only a planner with core 'reachability' and the four moves, or with core 'shortest_path', "
                "takes costs of cells"
            )


def load_planner(directory: str | Path, plugins: Iterable[str] = ()) -> RoutePlanner:
    """Return the planner that a trial has trained.

    Args:
        directory: The trial directory, of whose files `spec.json` and `checkpoint.pt` are enough; or a folder that
            `idp export-model` made of it; or the name of one that comes with this package: "reachability".
        plugins: Modules to import for its parts, beside those in IDP_PLUGINS; its files have none imported.

    Raises:
        PlannerError: A file is missing or not of this version; names it.
        PluginError: A plug-in can't be imported, or the planner's parts come from one that is not named.
    """
    if isinstance(plugins, str):  # each letter would be a module
        raise PlannerError(
            f"plugins: expected names of modules, [{plugins!r:.40}] for one, got the text {plugins!r:.40}"
        )
    folder = folder_of(directory)
    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        raise PlannerError(
            f"{folder}: of sweeps, orchestrator.api.load_planner(sweep, planner=..., seed=...) loads one"
        )
    spec_file = folder / trial_files.SPEC_FILE
    load_parts([*named_in_environment(), *plugins])
    try:
        spec = trial_files.read_json(spec_file)
        checkpoint, state = read_state(folder)
    except FileNotFoundError as error:
        raise PlannerError(
            f"{error.filename}: no such file: {folder} is not the directory of a trained trial"
        ) from None
    try:
        require(spec.get("plugins", ()))
    except PluginError as error:
        raise type(error)(f"{spec_file}: {error}") from None
    spec = trial_files.agreed_spec(spec, state, checkpoint)
    trainer = trial_files.trainer_of(state, checkpoint)
    moves = trial_files.moves_of(trainer, checkpoint)
    try:
        tested, rows = spec.get("training", {}).get("tested_checkpoint", "last"), spec.get("data", {}).get("map_size")
        planner_spec = _as_built(spec["planner"])
        planner = build_planner(planner_spec, actions=len(moves.names))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PlannerError(f"{spec_file}: planner: not of this version ({reason:.300})") from error
    except (MemoryError, RuntimeError) as error:
        raise PlannerError(
            f"{spec_file}: planner: can't be built here ({' '.join(str(error).split()):.300})"
        ) from error
    trial_files.give_weights(planner, trial_files.tested_weights(trainer, checkpoint, tested), checkpoint)
    planner.eval()
    unrolled = planner_spec.adjoint == "unrolled"
    own_rule = trial_files.trained_steps_per_row(planner_spec.k_fwd, rows, unrolled=unrolled)
    rule = trial_files.read_steps_per_row(folder) or own_rule
    return RoutePlanner(planner, moves, planner_spec.tolerance, all_steps=unrolled, steps_per_row=rule)


def _as_built(planner: Mapping[str, Any]) -> Any:
    """Return a planner as `build_planner` reads it.

    Where pydantic is installed it is validated, or an option of a later version would mean nothing without a word.
    """
    parts: dict[str, Any] = dict(planner)
    for field, (registry, options) in OPTIONS.items():
        entry = registry.get(planner[field])
        if entry is None:
            raise ValueError(f"{field}: unknown name {planner[field]!r}; known: {', '.join(registry)}")
        own = SimpleNamespace if isinstance(entry.options, str) else entry.options
        parts[options] = own(**planner[options])
    if find_spec("pydantic") is None:
        return SimpleNamespace(**parts)
    from pydantic import ValidationError

    from datagen.spec import first_problem
    from planners.specs import PlannerSpec

    try:
        return PlannerSpec.model_validate(planner)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


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
    for rows, columns in _strokes(route):
        axes.plot(columns, rows, color="#d55e00", linewidth=2, linestyle="-" if route.arrives else "--")
    axes.plot(route.cells[0, 1], route.cells[0, 0], "o", color="white", markeredgecolor="#d55e00", markersize=7)
    axes.plot(route.goal[1], route.goal[0], "*", color="#f0e442", markeredgecolor="black", markersize=13)
    outcome = f"arrives at cost {route.cost:.4g}" if route.arrives else f"does not arrive: {route.outcome}"
    axes.set_title(f"{outcome}; {route.steps} steps, residual {route.residual:.1e}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(fill(route.advice, 64), fontsize=7)
    return axes


def _strokes(route: Route) -> list[NDArray[np.float64]]:
    """Return the lines that a route is drawn as, [2, n] rows and columns; it is cut where it goes round the torus."""
    cells = route.cells.astype(float)
    pieces, begun = [], [cells[0]]
    for here, there in pairwise(cells):
        move = np.array(route.moves.offsets[int(route.actions[int(here[0]), int(here[1])])], float)
        if (here + move != there).any():
            pieces.append([*begun, here + move / 2])
            begun = [there - move / 2]
        begun.append(there)
    return [np.array(piece).T for piece in [*pieces, begun]]


def checked_grid(grid: ArrayLike) -> NDArray[np.uint8]:
    """Return a map as uint8 [h, w] of 1 and 0; raise PlannerError where it is none."""
    rows = grid if isinstance(grid, list | tuple) else [grid]
    masked = sum(int(np.ma.getmaskarray(row).sum()) for row in rows if np.ma.isMaskedArray(row))
    if masked:
        raise PlannerError(
            f"grid: {masked} cells are masked, neither free nor obstacle; grid.filled(0) makes obstacles of them"
        )
    expected = "grid: expected an array [h, w] of 1 (free) and 0 (obstacle), got"
    try:
        array = np.asarray(grid)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors elsewhere, or that need a gradient
        raise PlannerError(f"{expected} a {type(grid).__name__} that is none ({str(error).splitlines()[0]})") from error
    found = f"{array.dtype} {list(array.shape)}"
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        raise PlannerError(f"{expected} {found}")
    if not np.isin(array, (0, 1)).all():
        if np.isnan(array).any():
            raise PlannerError(f"{expected} {found} with NaN, which says neither")
        least, most = array.min(), array.max()
        image = "; of an image, image > 127 makes one" if least >= 0 and 1 < most <= 255 else ""
        raise PlannerError(f"{expected} {found} with values from {least:.4g} up to {most:.4g}{image}")
    return array.astype(np.uint8)


def checked_cell(name: str, cell: Any, free: NDArray[np.uint8]) -> Cell:
    """Return row and column of a free cell; raise PlannerError, naming it, where it is none."""
    given = cell.tolist() if isinstance(cell, Tensor | np.ndarray) else cell
    try:
        if not isinstance(given, Sequence) or len(given) != 2 or any(isinstance(at, bool | np.bool_) for at in given):
            raise TypeError
        row, column = (operator.index(at) for at in given)
    except TypeError:
        shown = " ".join(repr(cell).split())
        raise PlannerError(
            f"{name}: expected row and column of a cell of the {free.shape} map, two whole numbers, got {shown:.60}"
        ) from None
    if not (0 <= row < free.shape[0] and 0 <= column < free.shape[1]):
        raise PlannerError(f"{name}: expected row and column of a cell of the {free.shape} map, got {(row, column)}")
    if not free[row, column]:
        raise PlannerError(f"{name}: {(row, column)} is an obstacle")
    return row, column


def checked_costs(costs: ArrayLike, free: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return costs of cells, 0 on obstacles; raise PlannerError where a free cell has none that can be."""
    try:
        array = np.ma.asarray(costs)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"of {array.dtype}")
        array = np.ma.filled(array.astype(np.float64), np.nan)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PlannerError(f"costs: expected numbers [h, w], got a {type(costs).__name__} ({reason})") from error
    if array.shape != free.shape:
        raise PlannerError(f"costs: expected one per cell of the {free.shape} map, got {array.shape}")
    wrong = np.argwhere((free == 1) & ~((array >= 0) & (array <= DEAREST)))
    if len(wrong):
        place = row, column = tuple(wrong[0].tolist())
        raise PlannerError(
            f"costs: expected finite ones from 0 to {DEAREST:g} on free cells, got {array[row, column]} at {place}"
        )
    return np.where(free == 1, array, 0.0)


def without_least(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return costs less what `Reachability.encode_with_costs` adds to each, so that cells cost what they cost.

    Warns:
        UserWarning: Some cost less than that, though not nothing: they will count as much.
    """
    least = LEAST_COST * costs.max()
    if ((costs > 0) & (costs < least)).any():
        warnings.warn(
            f"costs: those from {costs[costs > 0].min():.4g} to {least:.4g}, a hundred-millionth of the largest, all "
            "count as that: the way may not be the cheapest; let nothing cost so much, or make it an obstacle",
            stacklevel=3,
        )
    return np.maximum(costs - least, 0.0)


def _checked_steps(k: Any) -> int:
    try:
        steps = operator.index(k)
    except TypeError:
        steps = 0
    if steps < 1 or isinstance(k, bool):
        raise PlannerError(f"k: expected a whole number of steps, at least 1, got {k!r:.40}")
    return steps


def _values(v: Tensor) -> NDArray[np.float32]:
    value: NDArray[np.float32] = (v[0] if len(v) == 1 else v.norm(dim=0)).float().cpu().numpy()
    return value


def followed(
    actions: NDArray[np.int64], free: NDArray[np.uint8], goal: Cell, start: Cell, moves: Moves
) -> tuple[NDArray[np.int64], float]:
    """Return the cells that the policy visits until it arrives, bumps or comes to a cell twice, and their cost."""
    height, width = free.shape
    offsets = np.array(moves.offsets)[actions]  # [h, w, 2]
    rows, columns = np.arange(height)[:, None] + offsets[..., 0], np.arange(width) + offsets[..., 1]
    if moves.wrap:
        rows, columns = rows % height, columns % width
    on_map = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    there = np.where(on_map, rows * width + columns, 0)
    enters = np.where(on_map & (free.flat[there] == 1), there, -1).ravel().tolist()
    cell, end = start[0] * width + start[1], goal[0] * width + goal[1]
    cells, seen = [cell], bytearray(height * width)
    seen[cell] = True
    while cell != end:
        cell = enters[cell]
        if cell < 0 or seen[cell]:
            break
        cells.append(cell)
        seen[cell] = True
    visited = np.array(cells, np.int64)
    taken = actions.ravel()[visited[:-1]]
    return np.stack(np.divmod(visited, width), 1), float(np.array(moves.costs, float)[taken].sum())
