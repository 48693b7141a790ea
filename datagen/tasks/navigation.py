"""2D navigation: mazes thinned out at random, as in GPPN (Lee et al., 2018) and the paper's section 5.1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import solve
from datagen.jit import kernel
from datagen.problem import FOUR, Problems
from datagen.sampling.splitmix import below, label_seeds, next_bits, problem_seeds
from datagen.sampling.symmetry import shape_hash
from datagen.sampling.unique_maps import AGAIN, NONE, Claims, admit, draw_in_order
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

_S32 = np.uint64(32)


@kernel
def carve(map_: NDArray[np.uint8], stack: NDArray[np.int64], state: NDArray[np.uint64]) -> None:
    """Carve a perfect maze into `map_` [m, m], all obstacles: depth-first search in steps of two from (1, 1).

    Drawing uniformly among the uncarved neighbours at each visit has the same distribution as trying four directions in
    a random order fixed at the first visit.
    """
    size = map_.shape[0]
    map_[1, 1] = 1
    stack[0] = size + 1
    depth = 1
    ways = np.empty(4, np.int64)
    cells = map_.reshape(-1)
    while depth > 0:
        cell = stack[depth - 1]
        row, column = cell // size, cell % size
        n = 0
        if row > 2 and cells[cell - 2 * size] == 0:
            ways[n] = -size
            n += 1
        if column > 2 and cells[cell - 2] == 0:
            ways[n] = -1
            n += 1
        if row < size - 2 and cells[cell + 2 * size] == 0:
            ways[n] = size
            n += 1
        if column < size - 2 and cells[cell + 2] == 0:
            ways[n] = 1
            n += 1
        if n == 0:
            depth -= 1
            continue
        way = ways[below(state, n)] if n > 1 else ways[0]
        cells[cell + way] = 1
        cells[cell + 2 * way] = 1
        stack[depth] = cell + 2 * way
        depth += 1


@kernel
def thin(map_: NDArray[np.uint8], state: NDArray[np.uint64], lowest: float = 0.0, highest: float = 1.0) -> None:
    """Free every interior cell with a probability that is itself uniform between two, drawn once per map."""
    size = map_.shape[0]
    drawn = np.float64(next_bits(state) >> _S32)  # of 32 bits: exact
    threshold = np.uint64(lowest * 4294967296.0 + (highest - lowest) * drawn)
    for row in range(1, size - 1):
        for column in range(1, size - 1):
            map_[row, column] |= np.uint8((next_bits(state) >> _S32) < threshold)


@kernel
def _mazes(
    size: int,
    split: int,
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
        map_ = maps[i]
        draws[:] = 0
        verdict = AGAIN
        while verdict == AGAIN:
            map_[:] = 0
            carve(map_, stack, state)
            thin(map_, state)
            # All interior cells but the first, (1, 1).
            goal = 1 + below(state, (size - 2) * (size - 2) - 1)
            row, column = 1 + goal // (size - 2), 1 + goal % (size - 2)
            map_[row, column] = 1
            goals[i, 0] = row
            goals[i, 1] = column
            verdict = admit(shape_hash(map_, directions, False), split, start + i, draws, keys, holders)
        if verdict == NONE:
            return maps, goals, start + i
    return maps, goals, -1


def mazes(spec: DatasetSpec, split: Split, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Draw the mazes and goals of problems `start` to `stop` of a split.

    All cells are obstacles; randomised depth-first search carves a perfect maze on the odd cells, reached from (1, 1);
    every interior cell is then freed with probability d ~ U(0, 1), d drawn once per map; the goal is uniform over the
    interior without (1, 1), and freed. On an odd size the border is solid. On an even size, as in GPPN's 28 x 28 set,
    the odd cells include the last row and column, and the edge of the map is the wall there. No map comes twice in the
    whole set (see `datagen.sampling.unique_maps`), except where the split owns too few maps of the size.

    Args:
        spec: Uses `map_size`, `seed` and `distinct`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        Maps, uint8 [stop - start, size, size], and goals, int16 [stop - start, 2].

    Raises:
        ValueError: The split owns no map of this size.
    """
    size, number, directions = spec.map_size, SPLITS.index(split), ways_of_reading(spec).directions

    def turn(first: int, end: int, claims: Claims) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        seeds = problem_seeds(spec.seed, number, first, end)
        maps, goals, failed = _mazes(size, number, seeds, first, directions, claims.keys, claims.holders)
        if failed >= 0:
            raise ValueError(f"map_size: no maze of size {size} belongs to split {split!r}; choose a larger size")
        return maps, goals

    return draw_in_order(("navigation", size, spec.seed, spec.distinct, split), turn, start, stop)


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the navigation problems `start` to `stop` of a split, labels included.

    Args:
        spec: Uses `map_size`, `seed` and `distinct`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems, no observation.
    """
    maps, goals = mazes(spec, split, start, stop)
    seeds = problem_seeds(spec.seed, SPLITS.index(split), start, stop)
    return solve(maps, goals, FOUR, label_seeds(seeds))
