"""Mazes of several kinds: thinned ones as in `navigation`, perfect ones, perfect ones with openings, and plain noise.

What is thinned with a probability that is uniform in (0, 1) is nearly open nine times in ten: a planner sees few long
ways there. A perfect maze has one way between any two cells; openings make rings of it; noise has what no maze has,
such as walls that touch at a corner, and cells that cannot be reached.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import solve
from datagen.jit import kernel
from datagen.options import MAZE_KINDS, MazeOptions
from datagen.problem import FOUR, Problems
from datagen.sampling.splitmix import below, label_seeds, problem_seeds, uniform
from datagen.sampling.symmetry import shape_hash
from datagen.sampling.unique_maps import AGAIN, NONE, UNUSABLE, Claims, admit, draw_in_order
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.navigation import carve, thin
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

THINNED, PERFECT, OPENED, NOISE = (MAZE_KINDS.index(kind) for kind in ("thinned", "perfect", "opened", "noise"))


@kernel
def _free_interior(map_: NDArray[np.uint8], share: float, state: NDArray[np.uint64]) -> None:
    for row in range(1, map_.shape[0] - 1):
        for column in range(1, map_.shape[1] - 1):
            map_[row, column] |= np.uint8(uniform(state) < share)


@kernel
def _draw_one(
    kind: int, opened: float, map_: NDArray[np.uint8], stack: NDArray[np.int64], state: NDArray[np.uint64]
) -> int:
    """Draw a map of a kind and return its goal's place; -1 where nothing is free."""
    map_[:] = 0
    if kind == NOISE:
        _free_interior(map_, 0.55 + 0.25 * uniform(state), state)
    else:
        carve(map_, stack, state)
    if kind == THINNED:
        thin(map_, state)
    elif kind == OPENED:
        _free_interior(map_, opened * uniform(state), state)
    cells = map_.ravel()
    free = 0
    for cell in range(cells.size):
        free += cells[cell]
    if free == 0:
        return -1
    left = below(state, free)
    for cell in range(cells.size):
        if cells[cell]:
            if left == 0:
                return cell
            left -= 1
    return -1


@kernel
def _mazes(
    size: int,
    split: int,
    kinds: NDArray[np.int64],
    opened: float,
    seeds: NDArray[np.uint64],
    start: int,
    directions: NDArray[np.int64],
    keys: NDArray[np.uint64],
    holders: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.int16], int]:
    """Return maps, goals, and the first problem for which there is no map, or -1."""
    maps = np.empty((len(seeds), size, size), np.uint8)
    goals = np.empty((len(seeds), 2), np.int16)
    stack = np.empty(size * size // 4 + 1, np.int64)
    state, draws = np.empty(1, np.uint64), np.empty(2, np.int64)
    for i in range(len(seeds)):
        state[0] = seeds[i]
        kind = kinds[(start + i) % len(kinds)]
        draws[:] = 0
        verdict, goal = AGAIN, -1
        while verdict == AGAIN:
            goal = _draw_one(kind, opened, maps[i], stack, state)
            hash_ = shape_hash(maps[i], directions, False) if goal >= 0 else UNUSABLE
            verdict = admit(hash_, split, start + i, draws, keys, holders)
        if verdict == NONE:
            return maps, goals, start + i
        goals[i, 0], goals[i, 1] = goal // size, goal % size
    return maps, goals, -1


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split, the kinds of maze in turn; the goal is uniform over free cells.

    Args:
        spec: Uses `map_size`, `seed`, `distinct` and `MazeOptions`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems, no observation.

    Raises:
        ValueError: The split owns no map of this size and kind.
    """
    assert isinstance(spec.options, MazeOptions)
    options, size, number, directions = (
        spec.options,
        spec.map_size,
        SPLITS.index(split),
        ways_of_reading(spec).directions,
    )
    kinds = np.array([MAZE_KINDS.index(kind) for kind in options.kinds], np.int64)

    def turn(first: int, end: int, claims: Claims) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        seeds = problem_seeds(spec.seed, number, first, end)
        given = (size, number, kinds, options.opened, seeds, first, directions)
        maps, goals, failed = _mazes(*given, claims.keys, claims.holders)
        if failed >= 0:
            kind = options.kinds[failed % len(kinds)]
            raise ValueError(
                f"map_size: no {kind} maze of size {size} belongs to split {split!r}; choose a larger size"
            )
        return maps, goals

    key = ("mazes", size, spec.seed, spec.distinct, options.kinds, options.opened, split)
    maps, goals = draw_in_order(key, turn, start, stop)
    return solve(maps, goals, FOUR, label_seeds(problem_seeds(spec.seed, number, start, stop)))
