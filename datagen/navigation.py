"""2D navigation: mazes thinned out at random, as in GPPN (Lee et al., 2018) and the paper's section 5.1."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from datagen.expert import solve
from datagen.problem import FOUR, Problems
from datagen.splitmix import below, label_seeds, next_bits, problem_seeds
from datagen.splits import MAX_ATTEMPTS, map_hash, owner
from datagen.task import SPLITS, DatasetSpec, Split

_S32 = np.uint64(32)


@njit(cache=True, nogil=True)
def _carve(map_: NDArray[np.uint8], stack: NDArray[np.int64], state: NDArray[np.uint64]) -> None:
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
        if row < size - 3 and cells[cell + 2 * size] == 0:
            ways[n] = size
            n += 1
        if column < size - 3 and cells[cell + 2] == 0:
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


@njit(cache=True, nogil=True)
def _thin(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Free every interior cell with a probability that is itself uniform in (0, 1), drawn once per map."""
    size = map_.shape[0]
    threshold = next_bits(state) >> _S32
    for row in range(1, size - 1):
        for column in range(1, size - 1):
            map_[row, column] |= np.uint8((next_bits(state) >> _S32) < threshold)


@njit(cache=True, nogil=True)
def _mazes(
    size: int, split: int, seeds: NDArray[np.uint64], max_attempts: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16], int]:
    maps = np.empty((len(seeds), size, size), np.uint8)
    goals = np.empty((len(seeds), 2), np.int16)
    stack = np.empty(size * size // 4 + 1, np.int64)
    state = np.empty(1, np.uint64)
    for i in range(len(seeds)):
        state[0] = seeds[i]
        map_ = maps[i]
        for attempt in range(max_attempts + 1):
            if attempt == max_attempts:
                return maps, goals, i
            map_[:] = 0
            _carve(map_, stack, state)
            _thin(map_, state)
            # All interior cells but the first, (1, 1).
            goal = 1 + below(state, (size - 2) * (size - 2) - 1)
            row, column = 1 + goal // (size - 2), 1 + goal % (size - 2)
            map_[row, column] = 1
            if owner(map_hash(map_)) == split:
                goals[i, 0] = row
                goals[i, 1] = column
                break
    return maps, goals, -1


def mazes(size: int, split: Split, seeds: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Draw a maze and a goal for each seed.

    All cells are obstacles; randomised depth-first search carves a perfect maze on the odd cells, reached from
    (1, 1); every interior cell is then freed with probability d ~ U(0, 1), d drawn once per map; the goal is uniform
    over the interior without (1, 1), and freed. On an even size the maze covers rows and columns 1 .. size - 3, and the last
    interior row and column, size - 2, are opened by the thinning alone; the border is solid at every size.

    Args:
        size: Rows and columns, at least 5.
        split: Which maps are drawn: those that `splits.owner` gives to it.
        seeds: uint64 [n], one stream per problem.

    Returns:
        Maps, uint8 [n, size, size], and goals, int16 [n, 2].

    Raises:
        ValueError: There are no maps of this size in the split (possible for tiny sizes only).
    """
    maps, goals, failed = _mazes(size, SPLITS.index(split), seeds, MAX_ATTEMPTS)
    if failed >= 0:
        raise ValueError(f"map_size: no maps of size {size} fall to split {split!r}; choose a larger size")
    return maps, goals


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the navigation problems `start` to `stop` of a split, labels included.

    Args:
        spec: Uses `map_size` and `seed`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems, no observation.
    """
    seeds = problem_seeds(spec.seed, SPLITS.index(split), start, stop)
    maps, goals = mazes(spec.map_size, split, seeds)
    return solve(maps, goals, FOUR, label_seeds(seeds))
