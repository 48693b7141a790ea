"""Maps of several kinds: thinned mazes as in `navigation`, perfect ones, ones with openings, and what is no maze.

What is thinned with a probability that is uniform in (0, 1) is nearly open nine times in ten: a planner sees few long
ways there. A perfect maze has one way between any two cells; openings make rings of it; noise has what no maze has,
such as walls that touch at a corner, and cells that cannot be reached.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import breadth_first, neighbours, solve
from datagen.jit import kernel
from datagen.options import MAZE_ALGORITHMS, MAZE_KINDS, MAZE_STARTS, MazeOptions
from datagen.problem import FOUR, Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds, uniform
from datagen.sampling.symmetry import shape_hash
from datagen.sampling.unique_maps import AGAIN, NONE, UNUSABLE, Claims, admit, draw_in_order
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.kinds import blocks, caves, free_interior, percolate, pick, places, prim, rooms, spiral, wilson
from datagen.tasks.navigation import carve, thin
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

THINNED, PERFECT, OPENED, NOISE, PERCOLATED, CAVES, ROOMS, SPIRALS, BLOCKS = range(len(MAZE_KINDS))
DEPTH_FIRST, WILSON, PRIM = range(len(MAZE_ALGORITHMS))
FARTHEST, DEAD_END, ELSEWHERE = range(len(MAZE_STARTS))

Drawn = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


@kernel
def _draw_map(
    kind: int,
    algorithm: int,
    shares: NDArray[np.float64],
    map_: NDArray[np.uint8],
    stack: NDArray[np.int64],
    state: NDArray[np.uint64],
) -> None:
    """Draw a map of a kind; `shares` are those of `_shares`."""
    map_[:] = 0
    if kind == NOISE:
        least = 1 - shares[6]
        free_interior(map_, least + (1 - shares[5] - least) * uniform(state), state)
    elif kind == CAVES:
        caves(map_, state)
    elif kind == ROOMS:
        rooms(map_, state)
    elif kind == SPIRALS:
        spiral(map_, state)
    elif kind == BLOCKS:
        blocks(map_, state)
    elif algorithm == WILSON:
        wilson(map_, state)
    elif algorithm == PRIM:
        prim(map_, state)
    else:
        carve(map_, stack, state)
    if kind == THINNED:
        thin(map_, state, shares[1], shares[2])
    elif kind == OPENED:
        free_interior(map_, shares[0] * uniform(state), state)
    elif kind == PERCOLATED:
        percolate(map_, shares[3] + (shares[4] - shares[3]) * uniform(state), state)


def _shares(options: MazeOptions) -> NDArray[np.float64]:
    return np.array([options.opened, *options.thinning, *options.percolation, *options.noise])


@kernel
def _start_of(start: int, map_: NDArray[np.uint8], distance: NDArray[np.float32], state: NDArray[np.uint64]) -> int:
    """Return a random dead end with a way to the goal, or a random other cell with one; -1 where there is none."""
    size = map_.shape[0]
    cells, chosen = map_.reshape(-1), np.zeros(size * size, np.bool_)
    for cell in range(size * size):
        if 0 < distance[cell] < np.inf:
            row, column, ways = cell // size, cell % size, np.int64(0)
            ways += np.int64(row > 0 and cells[cell - size] != 0) + np.int64(row < size - 1 and cells[cell + size] != 0)
            ways += np.int64(column > 0 and cells[cell - 1] != 0) + np.int64(column < size - 1 and cells[cell + 1] != 0)
            chosen[cell] = (ways == 1) == (start == DEAD_END)
    return pick(chosen, state)


@kernel
def _mazes(
    size: int,
    split: int,
    chosen: tuple[NDArray[np.int64], int, int, NDArray[np.float64]],
    seeds: NDArray[np.uint64],
    first: int,
    sources: NDArray[np.int32],
    directions: NDArray[np.int64],
    keys: NDArray[np.uint64],
    holders: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], int]:
    """Return maps, goals and starts (flat places), and the first problem for which there is no map, or -1."""
    kinds, algorithm, start, shares = chosen
    maps = np.empty((len(seeds), size, size), np.uint8)
    goals, starts = np.empty(len(seeds), np.int64), np.full(len(seeds), -1, np.int64)
    stack = np.empty(size * size // 4 + 1, np.int64)
    distance, queue = np.empty(size * size, np.float32), np.empty(size * size + 1, np.int32)
    state, draws = np.empty(1, np.uint64), np.empty(2, np.int64)
    for i in range(len(seeds)):
        state[0] = seeds[i]
        kind = kinds[(first + i) % len(kinds)]
        draws[:] = 0
        verdict = AGAIN
        while verdict == AGAIN:
            _draw_map(kind, algorithm, shares, maps[i], stack, state)
            cells = maps[i].reshape(-1)
            goals[i] = pick(cells == 1, state)
            usable = goals[i] >= 0
            if usable and (kind >= PERCOLATED or start != FARTHEST):
                reached = breadth_first(cells, goals[i], sources, queue, distance)
                # Of maps in pieces, the pieces that are next to nothing are of no use.
                usable = kind < PERCOLATED or 2 * reached >= cells.sum()
                if usable and start != FARTHEST:
                    starts[i] = _start_of(start, maps[i], distance, state)
                    usable = starts[i] >= 0
            hash_ = shape_hash(maps[i], directions, False) if usable else UNUSABLE
            verdict = admit(hash_, split, first + i, draws, keys, holders)
        if verdict == NONE:
            return maps, goals, starts, first + i
    return maps, goals, starts, -1


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split, the kinds of map in turn; the goal is uniform over free cells.

    Args:
        spec: Uses `map_size`, `seed`, `distinct` and `MazeOptions`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems, no observation; with their starts where the options ask for some.

    Raises:
        ValueError: The split owns no map of this size and kind.
    """
    assert isinstance(spec.options, MazeOptions)
    options, size, number = spec.options, spec.map_size, SPLITS.index(split)
    kinds = np.array([MAZE_KINDS.index(kind) for kind in options.kinds], np.int64)
    chosen = (kinds, MAZE_ALGORITHMS.index(options.algorithm), MAZE_STARTS.index(options.start), _shares(options))
    sources, directions = neighbours(size, size, FOUR, -1), ways_of_reading(spec).directions

    def turn(first: int, end: int, claims: Claims) -> Drawn:
        seeds = problem_seeds(spec.seed, number, first, end)
        given = (size, number, chosen, seeds, first, sources, directions)
        maps, goals, starts, failed = _mazes(*given, claims.keys, claims.holders)
        if failed >= 0:
            kind = options.kinds[failed % len(kinds)]
            place = "" if options.start == "farthest" else f" with a start of {options.start!r}"
            raise ValueError(
                f"map_size: no {kind} maze of size {size}{place} belongs to split {split!r}; choose a larger size"
            )
        return maps, goals, starts

    maps, goals, starts = draw_in_order(("mazes", size, spec.seed, spec.distinct, options, split), turn, start, stop)
    seeds = label_seeds(problem_seeds(spec.seed, number, start, stop))
    problems = solve(maps, places(goals, size), FOUR, seeds)
    return problems if options.start == "farthest" else replace(problems, start=places(starts, size))
