"""Maps that are one problem turned, mirrored or, on the torus, shifted: one hash for all of them.

A planner may be built so that it cannot tell such maps apart: on the torus every one with circular padding, and what is
tied over turns and flips everywhere. If one of them is in training, the others are no test. So with
`DatasetSpec.distinct: up_to_symmetry` a map's hash, which decides the split that owns it and whether it has come before
(see `datagen.sampling.unique_maps`), is the least over all its readings: row by row in each of the eight directions
that leave the shape of the map and the moves as they are, and on the torus from every cell. Goals do not count, as
ever.

On the torus of two joint angles all of them are the same planning problem, though only shifts of the first joint and
the reflection of both are motions of the arm in its workspace: the map decides, not the picture of the workspace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel
from datagen.problem import Moves
from datagen.sampling.splitmix import GAMMA, mix
from datagen.sampling.unique_maps import map_hash

# A line of cells c is read as sum of c_j X^(n - 1 - j), its lines as that sum with Y, modulo 2^64; started one cell
# later it is X times that, and c_0 (1 - X^n). Both are odd, and none of their powers that matter here is 1.
_X, _Y = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)
_ONE = np.uint64(1)
_SALT = np.uint64(13)  # with it even the four mazes of size 5 are shared out: 2, 1, 1


class Readings(NamedTuple):
    """In how many ways a map may be read.

    Attributes:
        directions: int64 [k, 4], of a flat map the first cell, and the steps to the next row and column; then 1 where
            the same rows are read from the last to the first, too. None where maps are the same only cell for cell.
        wrap: Whether a reading may begin at any cell.
    """

    directions: NDArray[np.int64]
    wrap: bool


CELL_FOR_CELL = Readings(np.empty((0, 4), np.int64), wrap=False)
"""Maps are the same where their cells are, read in one way."""


def readings(moves: Moves, shape: tuple[int, int]) -> Readings:
    """Return the ways of reading a map that give the same problem for an agent with these moves.

    Args:
        moves: What the agent can do.
        shape: Rows and columns of the map.
    """
    if moves.links:
        return CELL_FOR_CELL
    height, width = shape
    axes = ((1, 0), (-1, 0), (0, 1), (0, -1))
    kept = {
        (down, right)
        for down in axes
        for right in axes
        if down[0] * right[0] + down[1] * right[1] == 0
        and (down[0] != 0 or height == width)
        and _keeps(moves, down, right)
    }
    found = []
    for down, right in sorted(kept, reverse=True):
        reverse = ((-down[0], -down[1]), right)
        if reverse in kept and down < reverse[0]:
            continue  # read together with it
        row, column = (height - 1) * (-1 in (down[0], right[0])), (width - 1) * (-1 in (down[1], right[1]))
        steps = (down[0] * width + down[1], right[0] * width + right[1])
        found.append((row * width + column, *steps, int(reverse in kept)))
    return Readings(np.array(found, np.int64), moves.wrap)


def _keeps(moves: Moves, down: tuple[int, int], right: tuple[int, int]) -> bool:
    """Return whether the moves are the same ones, at the same costs, where rows and columns run in these directions."""
    before = sorted(zip(moves.offsets, moves.costs, strict=True))
    turned = [(y * down[0] + x * right[0], y * down[1] + x * right[1]) for y, x in moves.offsets]
    return before == sorted(zip(turned, moves.costs, strict=True))


@kernel
def _power(base: Any, exponent: int) -> Any:
    result = _ONE
    for _ in range(exponent):
        result = result * base
    return result


@kernel
def _least_by_start(mixed: NDArray[np.uint64], turn: Any, both: bool) -> Any:
    """Return the least sum of a ring of lines, by the line that comes first, in one order or in both."""
    total, back, power = np.uint64(0), np.uint64(0), _ONE
    for i in range(len(mixed)):
        total = total * _Y + mixed[i]
        back += mixed[i] * power
        power *= _Y
    least = min(total, back) if both else total
    for i in range(len(mixed) - 1):
        total = total * _Y + mixed[i] * turn
        least = min(least, total)
        if both:
            back = back * _Y + mixed[len(mixed) - 1 - i] * turn
            least = min(least, back)
    return least


@kernel
def _least_on_torus(
    cells: NDArray[np.uint8], first: int, down: int, right: int, both: bool, work: Any, width: int
) -> Any:
    words, mixed = work
    height = len(words)
    for i in range(height):
        word, cell = np.uint64(0), first + i * down
        for _ in range(width):
            word = word * _X + np.uint64(cells[cell])
            cell += right
        words[i], mixed[i] = word, mix(word)
    turn_line, turn = _ONE - _power(_X, width), _ONE - _power(_Y, height)
    least = _least_by_start(mixed, turn, both)
    for j in range(width - 1):
        for i in range(height):
            words[i] = words[i] * _X + np.uint64(cells[first + i * down + j * right]) * turn_line
            mixed[i] = mix(words[i])
        least = min(least, _least_by_start(mixed, turn, both))
    return least


@kernel
def _least_of_one(
    cells: NDArray[np.uint8], first: int, down: int, right: int, both: bool, height: int, width: int
) -> Any:
    total, back, power = np.uint64(0), np.uint64(0), _ONE
    for i in range(height):
        word, cell = np.uint64(0), first + i * down
        for _ in range(width):
            word = word * _X + np.uint64(cells[cell])
            cell += right
        word = mix(word)
        total = total * _Y + word
        back += word * power
        power *= _Y
    return min(total, back) if both else total


@kernel
def shape_hash(map_: NDArray[np.uint8], directions: NDArray[np.int64], wrap: bool) -> Any:
    """Return the uint64 hash of one map [h, w], the same for all that it may be read as; never 0.

    Args:
        map_: Cells of 0 and 1, in C order.
        directions: See `Readings`.
        wrap: See `Readings`.
    """
    if len(directions) == 0:
        return map_hash(map_)
    height, width = map_.shape
    cells = map_.reshape(-1)
    work = (np.empty(height, np.uint64), np.empty(height, np.uint64))
    least = ~np.uint64(0)
    for k in range(len(directions)):
        first, down, right, both = directions[k, 0], directions[k, 1], directions[k, 2], directions[k, 3] == 1
        if wrap:
            least = min(least, _least_on_torus(cells, first, down, right, both, work, width))
        else:
            least = min(least, _least_of_one(cells, first, down, right, both, height, width))
    # The least of many is small, but owners are told by the highest bits.
    return max(mix(least ^ mix(np.uint64(height) * GAMMA + np.uint64(width) + _SALT)), _ONE)


@kernel
def _shape_hashes(maps: NDArray[np.uint8], directions: NDArray[np.int64], wrap: bool) -> NDArray[np.uint64]:
    hashes = np.empty(len(maps), np.uint64)
    for i in range(len(maps)):
        hashes[i] = shape_hash(maps[i], directions, wrap)
    return hashes


def shape_hashes(maps: NDArray[np.uint8], ways: Readings) -> NDArray[np.uint64]:
    """Return the hash of every map, the same for maps that can be read as one another.

    Args:
        maps: uint8 [n, h, w] of 0 and 1.
        ways: How they may be read.

    Returns:
        uint64 [n].
    """
    hashes: NDArray[np.uint64] = _shape_hashes(np.ascontiguousarray(maps), *ways)
    return hashes
