"""Kinds of map that the field plans on, each drawn from a stream: mazes by algorithm, and maps that are no mazes.

All draw into obstacles, `map_` [m, m] of zeros. Rooms of a maze are the cells with odd row and column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel
from datagen.sampling.splitmix import below, uniform

_DOWN, _RIGHT = (-1, 0, 1, 0), (0, -1, 0, 1)


@kernel
def pick(chosen: NDArray[np.bool_], state: NDArray[np.uint64]) -> int:
    """Return the place of a random one of the chosen cells; -1 where there is none."""
    count = np.int64(chosen.sum())
    left = below(state, count) if count > 0 else -1
    for cell in range(len(chosen)):
        if chosen[cell]:
            if left == 0:
                return cell
            left -= 1
    return -1


def places(cells: NDArray[np.int64], size: int) -> NDArray[np.int16]:
    """Return rows and columns [n, 2] of cells that are numbered row by row."""
    return np.stack([cells // size, cells % size], axis=1).astype(np.int16)


@kernel
def free_interior(map_: NDArray[np.uint8], share: float, state: NDArray[np.uint64]) -> None:
    """Free each cell of the interior with that probability."""
    for row in range(1, map_.shape[0] - 1):
        for column in range(1, map_.shape[1] - 1):
            map_[row, column] |= np.uint8(uniform(state) < share)


@kernel
def wilson(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Carve a perfect maze that is uniform over all: loop-erased random walks (Wilson, 1996)."""
    side = map_.shape[0] // 2
    inside, way = np.zeros(side * side, np.bool_), np.zeros(side * side, np.int64)
    root = below(state, side * side)
    inside[root] = True
    map_[2 * (root // side) + 1, 2 * (root % side) + 1] = 1
    for first in range(side * side):
        for laying in range(2):
            cell = first
            while not inside[cell]:
                row, column = cell // side, cell % side
                if laying:
                    inside[cell] = True
                else:
                    way[cell] = below(state, 4)
                    while not (0 <= row + _DOWN[way[cell]] < side and 0 <= column + _RIGHT[way[cell]] < side):
                        way[cell] = below(state, 4)
                down, right = _DOWN[way[cell]], _RIGHT[way[cell]]
                if laying:
                    map_[2 * row + 1, 2 * column + 1] = 1
                    map_[2 * row + 1 + down, 2 * column + 1 + right] = 1
                cell += down * side + right


@kernel
def prim(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Carve a perfect maze that grows from one room through a random wall at its edge: short, many dead ends."""
    side = map_.shape[0] // 2
    walls = np.empty((4 * side * side, 2), np.int64)
    cell, count = below(state, side * side), 0
    while True:
        row, column = cell // side, cell % side
        map_[2 * row + 1, 2 * column + 1] = 1
        for way in range(4):
            if 0 <= row + _DOWN[way] < side and 0 <= column + _RIGHT[way] < side:
                walls[count, 0], walls[count, 1] = cell, way
                count += 1
        cell = -1
        while cell < 0:
            if count == 0:
                return
            chosen = below(state, count)
            row, column, way = walls[chosen, 0] // side, walls[chosen, 0] % side, walls[chosen, 1]
            count -= 1
            walls[chosen, 0], walls[chosen, 1] = walls[count, 0], walls[count, 1]
            down, right = _DOWN[way], _RIGHT[way]
            if map_[2 * (row + down) + 1, 2 * (column + right) + 1] == 0:
                map_[2 * row + 1 + down, 2 * column + 1 + right] = 1
                cell = (row + down) * side + column + right


@kernel
def percolate(map_: NDArray[np.uint8], share: float, state: NDArray[np.uint64]) -> None:
    """Open each wall between two neighbouring rooms with that probability; with 1 a lattice is left."""
    side = map_.shape[0] // 2
    for row in range(1, 2 * side):
        for column in range(1, 2 * side):
            if (row + column) % 2 == 1:
                map_[row, column] |= np.uint8(uniform(state) < share)


@kernel
def caves(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Draw caves: noise of half obstacles, smoothed four times by the majority of the nine cells around each."""
    free_interior(map_, 0.5 + 0.08 * uniform(state), state)
    before = np.empty_like(map_)
    for _ in range(4):
        before[:] = map_
        for row in range(1, map_.shape[0] - 1):
            for column in range(1, map_.shape[1] - 1):
                around = before[row - 1 : row + 2, column - 1 : column + 2]
                map_[row, column] = np.uint8(around.sum() >= 5)


@kernel
def rooms(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Draw rooms with doors: space divided by walls until no side is over 3 to 9 cells, one or two doors a wall."""
    size = map_.shape[0]
    map_[1:-1, 1:-1] = 1
    most = 3 + below(state, 7)
    left = np.empty((size * size // 4 + 4, 4), np.int64)
    left[0, 0], left[0, 1], left[0, 2], left[0, 3] = 1, 1, size - 2, size - 2
    count = 1
    while count > 0:
        count -= 1
        top, start, bottom, end = left[count, 0], left[count, 1], left[count, 2], left[count, 3]
        height, width = bottom - top + 1, end - start + 1
        if max(height, width) <= max(most, 2):
            continue
        across = height > width or (height == width and below(state, 2) == 0)
        low, high = (top, bottom) if across else (start, end)
        from_, to = (start, end) if across else (top, bottom)
        # Walls stand on even lines and doors on odd ones, so that no wall ends at a door.
        wall = low + 1 + 2 * below(state, (high - low) // 2)
        for place in range(from_, to + 1):
            if across:
                map_[wall, place] = 0
            else:
                map_[place, wall] = 0
        for _ in range(1 + np.int64(uniform(state) < 0.25)):
            door = from_ + 2 * below(state, (to - from_) // 2 + 1)
            if across:
                map_[wall, door] = 1
            else:
                map_[door, wall] = 1
        for part in range(2):
            first, last = (low, wall - 1) if part == 0 else (wall + 1, high)
            if first <= last:
                if across:
                    left[count, 0], left[count, 1], left[count, 2], left[count, 3] = first, start, last, end
                else:
                    left[count, 0], left[count, 1], left[count, 2], left[count, 3] = top, first, bottom, last
                count += 1


@kernel
def spiral(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Draw a corridor that winds inwards, turned and flipped at random, up to a twentieth of its walls opened."""
    size = map_.shape[0]
    row, column, way, turns = 1, 1, 3, 0
    map_[1, 1] = 1
    while turns < 2:
        down, right = _DOWN[way], _RIGHT[way]
        to_row, to_column = row + down, column + right
        opens = 1 <= to_row <= size - 2 and 1 <= to_column <= size - 2 and map_[to_row, to_column] == 0
        if opens and map_[to_row + down, to_column + right] == 0:
            row, column, turns = to_row, to_column, 0
            map_[row, column] = 1
        else:
            way, turns = (way + 3) % 4, turns + 1
    if below(state, 2):
        map_[:, :] = map_[::-1, :].copy()
    if below(state, 2):
        map_[:, :] = map_[:, ::-1].copy()
    if below(state, 2):
        map_[:, :] = map_.T.copy()
    free_interior(map_, 0.05 * uniform(state), state)


@kernel
def blocks(map_: NDArray[np.uint8], state: NDArray[np.uint64]) -> None:
    """Draw rectangles of obstacles, each side up to a sixth of the map's, until a tenth to two fifths are covered."""
    size = map_.shape[0]
    map_[1:-1, 1:-1] = 1
    covered, most = 0, (0.1 + 0.3 * uniform(state)) * (size - 2) ** 2
    while covered < most:
        height, width = 1 + below(state, max(2, size // 6)), 1 + below(state, max(2, size // 6))
        top, left = 1 + below(state, size - 2), 1 + below(state, size - 2)
        for row in range(top, min(top + height, size - 1)):
            for column in range(left, min(left + width, size - 1)):
                covered += map_[row, column]
                map_[row, column] = 0
