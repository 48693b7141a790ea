"""Long ways through perfect mazes, of the kind of Maze-Unique: one way from a far start to the goal, in 30x30 cells.

Maze-Unique (locuslab/EqR, 2026) has perfect mazes of 14 x 14 rooms in 30 x 30 cells and ways of 100 to 140 steps. What
is drawn here is of that kind; its own mazes are brought in by `datagen.storage.maze_unique`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import breadth_first, neighbours, solve
from datagen.jit import kernel
from datagen.options import MazeUniqueOptions
from datagen.problem import FOUR, Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.sampling.symmetry import shape_hash
from datagen.sampling.unique_maps import AGAIN, NONE, UNUSABLE, Claims, admit, draw_in_order
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.kinds import pick, places
from datagen.tasks.navigation import carve
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

Mazes = tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.int16]]


@kernel
def _mazes(
    size: int,
    split: int,
    ways: tuple[int, int],
    seeds: NDArray[np.uint64],
    start: int,
    sources: NDArray[np.int32],
    directions: NDArray[np.int64],
    keys: NDArray[np.uint64],
    holders: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], int]:
    """Return maps, goals and starts (flat places), and the first problem for which there is no map, or -1."""
    maps = np.zeros((len(seeds), size, size), np.uint8)
    goals, starts = np.empty(len(seeds), np.int64), np.empty(len(seeds), np.int64)
    block = np.empty((size - 1 + size % 2, size - 1 + size % 2), np.uint8)
    stack = np.empty(size * size // 4 + 1, np.int64)
    distance, queue = np.empty(size * size, np.float32), np.empty(size * size + 1, np.int32)
    state, draws = np.empty(1, np.uint64), np.empty(2, np.int64)
    for i in range(len(seeds)):
        state[0] = seeds[i]
        draws[:] = 0
        verdict = AGAIN
        while verdict == AGAIN:
            block[:] = 0
            carve(block, stack, state)
            maps[i, : len(block), : len(block)] = block
            cells = maps[i].reshape(-1)
            goals[i] = pick(cells == 1, state)
            breadth_first(cells, goals[i], sources, queue, distance)
            starts[i] = pick((distance >= ways[0]) & (distance <= ways[1]), state)
            hash_ = shape_hash(maps[i], directions, False) if starts[i] >= 0 else UNUSABLE
            verdict = admit(hash_, split, start + i, draws, keys, holders)
        if verdict == NONE:
            return maps, goals, starts, start + i
    return maps, goals, starts, -1


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split.

    A perfect maze on the odd cells; on an even size the last row and column are wall. The goal is uniform over the free
    cells, the start over those whose way to the goal has `shortest` to `longest` steps; where there is none, maze and
    goal are drawn again.

    Args:
        spec: Uses `map_size`, `seed`, `distinct` and `MazeUniqueOptions`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems with their starts, no observation.

    Raises:
        ValueError: No maze of this size that the split owns has such a way.
    """
    assert isinstance(spec.options, MazeUniqueOptions)
    options, size, number = spec.options, spec.map_size, SPLITS.index(split)
    sources, directions = neighbours(size, size, FOUR, -1), ways_of_reading(spec).directions

    def turn(first: int, end: int, claims: Claims) -> Mazes:
        seeds = problem_seeds(spec.seed, number, first, end)
        ways = (options.shortest, options.longest)
        *drawn, failed = _mazes(size, number, ways, seeds, first, sources, directions, claims.keys, claims.holders)
        if failed >= 0:
            raise ValueError(
                f"options.shortest: no maze of size {size} in split {split!r} has a way of {options.shortest} to "
                f"{options.longest} steps; choose a larger size or shorter ways"
            )
        maps, goals, starts = drawn
        return maps, places(goals, size), places(starts, size)

    key = ("maze_unique", size, spec.seed, spec.distinct, options.shortest, options.longest, split)
    maps, goals, starts = draw_in_order(key, turn, start, stop)
    solved = solve(maps, goals, FOUR, label_seeds(problem_seeds(spec.seed, number, start, stop)))
    return replace(solved, start=starts)
