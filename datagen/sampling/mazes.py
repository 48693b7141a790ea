"""Mazes by depth-first search, as they are, thinned or opened, and plain noise; each with its goal, no map twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel
from datagen.options import MAZE_KINDS
from datagen.sampling.splitmix import below, next_bits, uniform
from datagen.sampling.symmetry import shape_hash
from datagen.sampling.unique_maps import AGAIN, NONE, UNUSABLE, admit

THINNED, PERFECT, OPENED, NOISE = (MAZE_KINDS.index(kind) for kind in ("thinned", "perfect", "opened", "noise"))
PAPERS = -1
"""The paper's: thinned, and the goal is anywhere inside, and freed."""

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
def thin(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Free every interior cell with a probability that is itself uniform in (0, 1), drawn once per map."""
    size = map_.shape[0]
    threshold = next_bits(state) >> _S32
    for row in range(1, size - 1):
        for column in range(1, size - 1):
            map_[row, column] |= np.uint8((next_bits(state) >> _S32) < threshold)


@kernel
def _free_interior(map_: NDArray[np.uint8], share: float, state: NDArray[np.uint64]) -> None:
    for row in range(1, map_.shape[0] - 1):
        for column in range(1, map_.shape[1] - 1):
            map_[row, column] |= np.uint8(uniform(state) < share)


@kernel
def _freed_goal(cells: NDArray[np.uint8], size: int, state: NDArray[np.uint64]) -> int:
    """Free one of all interior cells but the first, (1, 1), and return its place."""
    goal = 1 + below(state, (size - 2) * (size - 2) - 1)
    cell = (1 + goal // (size - 2)) * size + 1 + goal % (size - 2)
    cells[cell] = 1
    return cell


@kernel
def _draw_one(
    kind: int, opened: float, map_: NDArray[np.uint8], stack: NDArray[np.int64], state: NDArray[np.uint64]
) -> int:
    """Draw a map of a kind and return its goal's place, uniform over free cells; -1 where nothing is free."""
    map_[:] = 0
    if kind == NOISE:
        _free_interior(map_, 0.55 + 0.25 * uniform(state), state)
    else:
        carve(map_, stack, state)
    if kind in (THINNED, PAPERS):
        thin(map_, state)
    elif kind == OPENED:
        _free_interior(map_, opened * uniform(state), state)
    cells = map_.ravel()
    if kind == PAPERS:
        return _freed_goal(cells, map_.shape[0], state)
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
def draw_mazes(
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
