"""From a robot's occupancy grid to a path in metres: all of a planning server but the messages.

Cells are (row, column) with row 0 at the origin and columns along x, as occupancy grids are stored, so no axis is
turned: a grid's data reshaped to [height, width] is the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from planners.inference import Cell, Route
from planners.trial_files import PlannerError

Point = tuple[float, float]

Reason = Literal[
    "INVALID_MAP", "START_OUTSIDE_MAP", "GOAL_OUTSIDE_MAP", "START_OCCUPIED", "GOAL_OCCUPIED", "NO_VALID_PATH"
]


class NoPath(PlannerError):
    """There is no path; `reason` says why in the words of navigation servers."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Solver(Protocol):
    """What plans: a trained planner, or a search."""

    def solve(
        self, grid: NDArray[np.uint8], *, start: Cell, goal: Cell, costs: NDArray[np.float64] | None = None
    ) -> Route:
        """Return the route."""


@dataclass(frozen=True, eq=False)
class OccupancyGrid:
    """A map as robots have it.

    Attributes:
        data: Integers [height, width], 0..100 how likely a cell is occupied, -1 where that is not known. No cell of a
            masked array may be masked.
        resolution: Metres per cell.
        origin: x, y in metres and heading in radians of the corner of cell (0, 0).
    """

    data: NDArray[np.int8]
    resolution: float
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        masked = int(np.ma.getmaskarray(self.data).sum()) if np.ma.isMaskedArray(self.data) else 0
        if masked:  # what lies under a mask is any number, and often 0, which is free
            raise NoPath("INVALID_MAP", f"map: {masked} cells are masked; data.filled(-1) says that they are not known")
        try:
            object.__setattr__(self, "data", np.asarray(self.data))
        except ValueError as error:  # rows of several lengths
            raise NoPath("INVALID_MAP", f"map: expected integers [height, width]: {error}") from None
        if self.data.ndim != 2 or not self.data.size or self.data.dtype.kind not in "iu":
            raise NoPath("INVALID_MAP", f"map: expected integers [height, width], got {list(self.data.shape)}")
        if self.data.min() < -1 or self.data.max() > 100:
            raise NoPath("INVALID_MAP", f"map: expected -1 to 100, got {self.data.min()} to {self.data.max()}")
        if not (_finite(self.resolution) and self.resolution > 0):
            raise NoPath("INVALID_MAP", f"map: resolution: expected metres above 0, got {self.resolution!r:.40}")
        origin = tuple(self.origin) if isinstance(self.origin, (Sequence, np.ndarray)) else ()
        if len(origin) != 3 or not all(map(_finite, origin)):
            raise NoPath("INVALID_MAP", f"map: origin: expected x, y and heading, got {self.origin!r:.60}")
        object.__setattr__(self, "origin", origin)

    def cell(self, point: Point) -> Cell | None:
        """Return the row and column of a point in metres, None outside."""
        x, y, heading = self.origin
        dx, dy = point[0] - x, point[1] - y
        if not (math.isfinite(dx) and math.isfinite(dy)):
            return None
        along = dx * math.cos(heading) + dy * math.sin(heading)
        across = dy * math.cos(heading) - dx * math.sin(heading)
        row, column = across / self.resolution, along / self.resolution
        height, width = self.data.shape
        return (math.floor(row), math.floor(column)) if 0 <= row < height and 0 <= column < width else None

    def points(self, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the centres of cells [n, 2] in metres, x and y [n, 2]."""
        x, y, heading = self.origin
        across, along = (cells.T + 0.5) * self.resolution
        cos, sin = math.cos(heading), math.sin(heading)
        return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


@dataclass(frozen=True)
class Rules:
    """How an occupancy grid becomes a map to plan on.

    Metres are from centre to centre of cells: a wall begins half a cell before. Where unknown cells are not free, they
    are obstacles in all of this, with the same distance kept from them.

    Attributes:
        occupied_from: Occupancy from which a cell is an obstacle, 1..100.
        unknown_is_free: Whether the robot may go where nobody has looked.
        radius: Metres around obstacles that the robot's centre keeps out of; from one cell's side on, it forbids the
            cells beside an obstacle.
        inflation: Metres around obstacles within which cells cost more, for a robot that keeps its distance; 0 for a
            shortest path.
        penalty: What the cells next to the forbidden ones cost beyond 1; it falls to 0 at `inflation`.
    """

    occupied_from: int = 65
    unknown_is_free: bool = False
    radius: float = 0.0
    inflation: float = 0.0
    penalty: float = 10.0

    def __post_init__(self) -> None:
        if not (_finite(self.occupied_from) and 1 <= self.occupied_from <= 100):
            raise PlannerError(f"occupied_from: expected 1 to 100, got {self.occupied_from!r:.40}")
        if not isinstance(self.unknown_is_free, (bool, np.bool_)):
            raise PlannerError(f"unknown_is_free: expected true or false, got {self.unknown_is_free!r:.40}")
        for name in ("radius", "inflation", "penalty"):
            if not (_finite(value := getattr(self, name)) and value >= 0):
                raise PlannerError(f"{name}: expected a number from 0 on, got {value!r:.40}")

    @property
    def priced(self) -> bool:
        """Whether some cells cost more than others, so that the planner has to take costs."""
        return self.inflation > self.radius and self.penalty > 0

    def read(self, grid: OccupancyGrid) -> tuple[NDArray[np.uint8], NDArray[np.float64] | None]:
        """Return the map, uint8 [h, w], 1 where the robot's centre may be, and costs of cells or None for all equal."""
        blocked = (grid.data >= self.occupied_from) | ((grid.data < 0) & (not self.unknown_is_free))
        if not (self.radius or self.inflation) or not blocked.any():
            return (~blocked).astype(np.uint8), None
        from scipy.ndimage import distance_transform_edt

        distance = distance_transform_edt(~blocked) * grid.resolution
        free = ~blocked & (distance > self.radius * (1 + 1e-9))  # 3 cells of 0.05 are more than 0.15
        if not self.priced:
            return free.astype(np.uint8), None
        near = np.clip((self.inflation - distance) / (self.inflation - self.radius), 0.0, 1.0)
        return free.astype(np.uint8), np.where(free, 1.0 + self.penalty * near, 0.0)


@dataclass(frozen=True, eq=False)
class Path:
    """A path for a robot.

    Attributes:
        points: x and y in metres [n, 2], from the start to the goal themselves through centres of cells.
        headings: Radians [n], towards the next point; the last is that of the one before.
        cost: Of the cells entered.
        cells: Rows and columns [n, 2].
    """

    points: NDArray[np.float64]
    headings: NDArray[np.float64]
    cost: float
    cells: NDArray[np.int64]


@dataclass(eq=False)
class Navigator:
    """Plans on the latest map, and again when the map changes.

    Attributes:
        solver: `load_planner("reachability")`, or anything with such a `solve`.
        rules: How maps are read.
    """

    solver: Solver
    rules: Rules = field(default_factory=Rules)
    _grid: OccupancyGrid | None = None
    _read: tuple[NDArray[np.uint8], NDArray[np.float64] | None] | None = None

    def see(self, grid: OccupancyGrid) -> bool:
        """Take a map; return whether anything that plans depend on has changed."""
        read, before, last = self.rules.read(grid), self._read, self._grid
        self._grid, self._read = grid, read
        if before is None or last is None or (last.resolution, last.origin) != (grid.resolution, grid.origin):
            return True
        same_costs = (before[1] is None) == (read[1] is None) and (
            before[1] is None or read[1] is None or np.array_equal(before[1], read[1])
        )
        return not (same_costs and np.array_equal(before[0], read[0]))

    def blocks(self, path: Path) -> bool:
        """Return whether the present map forbids a cell of a path that was planned on a map of the same cells."""
        if self._read is None:
            raise NoPath("INVALID_MAP", "map: none was seen yet")
        free = self._read[0]
        inside = (path.cells < free.shape).all()
        return not inside or not bool(free[*path.cells.T].all())

    def plan(self, start: Point, goal: Point) -> Path:
        """Return a path between two points in metres.

        Raises:
            NoPath: Says which of the reasons it is.
            PlannerError: A point is none.
        """
        if self._grid is None or self._read is None:
            raise NoPath("INVALID_MAP", "map: none was seen yet")
        free, costs = self._read
        cells = []
        for name, given in (("start", start), ("goal", goal)):
            point = _point(name, given)
            cell = self._grid.cell(point)
            if cell is None:
                outside: Reason = "START_OUTSIDE_MAP" if name == "start" else "GOAL_OUTSIDE_MAP"
                raise NoPath(outside, f"{name}: ({point[0]:.3f}, {point[1]:.3f}) m is not on the map")
            if not free[cell]:
                taken: Reason = "START_OCCUPIED" if name == "start" else "GOAL_OCCUPIED"
                raise NoPath(taken, f"{name}: no room for the robot at ({point[0]:.3f}, {point[1]:.3f}) m")
            cells.append(cell)
        route = self.solver.solve(free, start=cells[0], goal=cells[1], costs=costs)
        if not route.arrives:
            raise NoPath("NO_VALID_PATH", route.advice)
        points = self._grid.points(route.cells)
        if len(points) == 1:
            points, route_cells = np.repeat(points, 2, axis=0), np.repeat(route.cells, 2, axis=0)
        else:
            route_cells = route.cells
        points[0], points[-1] = start, goal
        return Path(points, _headings(points), route.cost, route_cells)


def _point(name: str, given: object) -> Point:
    """Return x and y in metres; raise PlannerError, naming it, for anything else, such as a pose with its heading."""
    parts = given.tolist() if hasattr(given, "tolist") else given  # of numpy or torch
    if not isinstance(parts, Sequence) or len(parts) != 2 or not all(isinstance(part, Real) for part in parts):
        raise PlannerError(f"{name}: expected x and y in metres, got {given!r:.60}")
    return float(parts[0]), float(parts[1])


def _finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _headings(points: NDArray[np.float64]) -> NDArray[np.float64]:
    ahead = np.diff(points, axis=0)
    headings = np.arctan2(ahead[:, 1], ahead[:, 0])
    return np.append(headings, headings[-1])
