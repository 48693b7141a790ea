"""The vocabulary shared by every task: actions, moves, and the arrays that describe a batch of problems."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datagen.shapes import shaped

if TYPE_CHECKING:
    from jaxtyping import Float32, Int16, UInt8

ACTIONS = ("north", "west", "south", "east")
"""Counter-clockwise, so a quarter turn of the map is a cyclic shift of the actions."""


MOST_ACTIONS = 8
FARTHEST = 1000  # rows or columns of a move
"""As many as `Problems.optimal_actions` has bits."""


@dataclass(frozen=True)
class Moves:
    """What an agent can do in one step on a grid.

    Attributes:
        names: One name per action; an action's place here is its bit in `Problems.optimal_actions`.
        offsets: Row and column change per action (rows grow southwards, columns eastwards).
        costs: Cost per action, positive.
        wrap: True on the torus, False where a move over the edge is a bump.
        links: Where every problem brings roads of its own, the function that reads them off the observations,
            "module:function" (see `datagen.expert.graph`); offsets and costs then mean nothing. Empty on a grid.
    """

    names: tuple[str, ...] = ACTIONS
    offsets: tuple[tuple[int, int], ...] = ((-1, 0), (0, -1), (1, 0), (0, 1))
    costs: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    wrap: bool = False
    links: str = ""

    def __post_init__(self) -> None:
        lengths = {"names": len(self.names), "offsets": len(self.offsets), "costs": len(self.costs)}
        if len(set(lengths.values())) > 1 or not 0 < len(self.names) <= MOST_ACTIONS:
            told = ", ".join(f"{count} {field}" for field, count in lengths.items())
            raise ValueError(f"moves: expected as many offsets and costs as names, 1 to {MOST_ACTIONS}, got {told}")
        if not all(isinstance(name, str) for name in self.names) or not isinstance(self.wrap, bool):
            told = f"{self.names!r:.80} and {self.wrap!r:.40}"
            raise ValueError(f"moves: expected names as text and wrap as true or false, got {told}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"moves: names: each must be there once, got {self.names!r:.200}")
        for name, offset in zip(self.names, self.offsets, strict=True):
            pair = isinstance(offset, tuple | list) and len(offset) == 2
            whole = pair and all(isinstance(part, Integral) and not isinstance(part, bool) for part in offset)
            near = whole and all(abs(part) <= FARTHEST for part in offset)
            if not near or (not any(offset) and not self.links):
                raise ValueError(
                    f"moves: the offset of {name!r}: expected whole rows and columns that lead elsewhere, "
                    f"at most {FARTHEST} away, got {offset!r:.80}"
                )
        for name, cost in zip(self.names, self.costs, strict=True):
            if not (math.isfinite(cost) and cost > 0):  # with 0, a bump would count as an optimal move
                raise ValueError(f"moves: the cost of {name!r} must be positive, got {cost}")


FOUR = Moves()
"""The literature's moves: four directions, unit cost; a blocked move stays where it is."""

FOUR_WRAP = Moves(wrap=True)
"""The same on the torus (joint angles)."""

EIGHT = Moves(
    names=("northwest", "north", "northeast", "west", "east", "southwest", "south", "southeast"),
    offsets=((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
    costs=(1.0,) * 8,
)
"""To all cells around, row by row, diagonals at the price of the others, as on the literature's terrain."""


@shaped
@dataclass(frozen=True, eq=False)
class Problems:
    """A batch of planning problems of one size with their expert labels.

    Attributes:
        map: uint8 [n, h, w], 1 = free, 0 = obstacle.
        goal: int16 [n, 2], row and column of the goal; always a free cell.
        distance: float32 [n, h, w], cost of the cheapest path to the goal; inf where there is none.
        optimal_actions: uint8 [n, h, w], bit a is set where action a is optimal; 0 at the goal, on obstacles and
            on cells that cannot reach the goal.
        label: uint8 [n, h, w], one action per cell, every cell, ties drawn once (the literature's one-hot label).
        start: int16 [n, 2], row and column of the cell that the problem starts from, where it names one; else None.
        observation: uint8 [n, ...] what a mapper sees instead of the map, or None.
        costs: float32 [n, h, w], by what entering a cell multiplies the cost of the move, where cells differ, or None.
            The expert's: no planner and no agent is shown them.
        obstacles: per problem a list of polygons, float32 [vertices, 2] in workspace coordinates, or None.
    """

    map: UInt8[NDArray[np.uint8], "n h w"]
    goal: Int16[NDArray[np.int16], "n 2"]
    distance: Float32[NDArray[np.float32], "n h w"]
    optimal_actions: UInt8[NDArray[np.uint8], "n h w"]
    label: UInt8[NDArray[np.uint8], "n h w"]
    observation: UInt8[NDArray[np.uint8], "n ..."] | None = None
    start: Int16[NDArray[np.int16], "n 2"] | None = None
    obstacles: list[list[NDArray[np.float32]]] | None = None
    costs: Float32[NDArray[np.float32], "n h w"] | None = None

    def __len__(self) -> int:
        return len(self.map)

    def __getitem__(self, rows: slice) -> Problems:
        """Return the problems in `rows` as views.

        Raises:
            TypeError: `rows` is no slice.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"problems: expected a slice such as [0:1], got {rows!r:.80}; `take` selects by indices")
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: None if part is None else part[rows] for name, part in parts.items()}
        return Problems(**chosen)

    def take(self, indices: NDArray[np.int64]) -> Problems:
        """Return copies of the problems at `indices`, in that order."""
        arrays: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "obstacles"}
        obstacles = None if self.obstacles is None else [self.obstacles[i] for i in indices]
        chosen: dict[str, Any] = {name: None if part is None else part[indices] for name, part in arrays.items()}
        return Problems(**chosen, obstacles=obstacles)

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[Problems]:
        """Yield one epoch of shuffled batches; the order depends on (seed, epoch) alone.

        Args:
            size: Problems per batch; a last partial batch is dropped.
            seed: Seed of the training run.
            epoch: Number of the epoch, from 0.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for start in range(0, len(order) - size + 1, size):
            yield self.take(order[start : start + size])

    def in_order(self, size: int) -> Iterator[Problems]:
        """Yield all problems in order, `size` at a time, the last batch as it comes."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def concatenate(parts: list[Problems]) -> Problems:
    """Return batches of problems of one size as one batch."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    obstacles = [part.obstacles for part in parts]
    return Problems(
        map=joined("map"),
        goal=joined("goal"),
        distance=joined("distance"),
        optimal_actions=joined("optimal_actions"),
        label=joined("label"),
        observation=None if parts[0].observation is None else joined("observation"),
        start=None if parts[0].start is None else joined("start"),
        costs=None if parts[0].costs is None else joined("costs"),
        obstacles=None if obstacles[0] is None else [scene for part in obstacles for scene in part or []],
    )
