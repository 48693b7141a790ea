"""The gradient of the ConvGRU's filters on tile registers: what is multiplied at once are pairs of neighbouring cells.

Roofline, per cell, O outputs, C inputs, F x F filters: O C F^2 products of float32 numbers, by three or six of bfloat16
numbers each (`planners.compiled.tiles`). Three sums of 16 x 16 filters stay in registers while all cells go by; a tile
of x serves up to three products, and those of d all three sums. What reads x has to have it channel by channel beside
each other: turning it (2 words a number) takes a fifth of the time.

Legend: O outputs, C inputs, T taps of one plane, d cotangent of what filters make, x what they read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planners.compiled.layout import Floats, Grid, compiled
from planners.compiled.simd import LANES, fma, load, nearest_bfloat16, neighbours, splat, store
from planners.compiled.tile_registers import mover, on_registers
from planners.compiled.tiles import CELLS, TILE, aligned_zeros, blocks_of_cells

_INPUTS = 3 * LANES
_load_sums, _keep_sums = (tuple(mover(name, number) for number in range(3)) for name in ("tileloadd64", "tilestored64"))
_load_0, _load_1, _load_2 = _load_sums
_keep_0, _keep_1, _keep_2 = _keep_sums
_load_high, _load_middle, _load_low, _load_x = (mover("tileloadd64", number) for number in (3, 4, 5, 6))
_HIGH, _MIDDLE, _LOW, _X = 3, 4, 5, 6


def _products(sums: int) -> tuple:
    """Return what adds x's part times d's high part, its high and middle, and all three."""
    calls = [("tdpbf16ps", (sums, part, _X)) for part in (_HIGH, _MIDDLE, _LOW)]
    return tuple(on_registers(*reversed(calls[:count])) for count in (1, 2, 3))


(_one_0, _two_0, _three_0), (_one_1, _two_1, _three_1), (_one_2, _two_2, _three_2) = (_products(i) for i in range(3))


class GradientWork(NamedTuple):
    """Words of d, by part, output and pair of cells; of x, by part, parity of the first cell, pair of cells, input."""

    d: Floats
    x: Floats
    line: Floats


@compiled
def sums_size(outputs: int, inputs: int, taps: int) -> int:
    """Return how many floats the sums take: tiles by tap, outputs, inputs."""
    return taps * _up(outputs, LANES) * _up(inputs, _INPUTS)


@compiled
def _up(count: int, step: int) -> int:
    return (count + step - 1) // step * step


@compiled
def gradient_work(outputs: int, inputs: int, grid: Grid) -> GradientWork:
    """Return memory to work on, for at most so many outputs and inputs."""
    d = 3 * _up(outputs, LANES) * blocks_of_cells(grid) * LANES
    x = 6 * (grid.length // 2 + LANES) * _up(inputs, _INPUTS)
    return GradientWork(aligned_zeros(d), aligned_zeros(x), np.zeros(LANES, np.float32))


@compiled
def _pair_d(d, grid, words):  # type: ignore[no-untyped-def]
    """Write the words of d, from the map's first cell on."""
    outputs, row, minus = len(d) // grid.length, blocks_of_cells(grid) * LANES, splat(np.float32(-1))
    for o in range(outputs):
        for block in range(blocks_of_cells(grid)):
            at = o * grid.length + grid.origin + block * CELLS
            a, b = load(d, at), load(d, at + LANES)
            for part in range(3):
                high_a, high_b = nearest_bfloat16(a), nearest_bfloat16(b)
                store(words, (part * _up(outputs, LANES) + o) * row + block * LANES, neighbours(high_a, high_b))
                a, b = fma(minus, high_a, a), fma(minus, high_b, b)


@compiled
def _pair_x(x, inputs, grid, parts, work):  # type: ignore[no-untyped-def]
    """Write the words of x, input by input beside each other."""
    columns, rows, minus = _up(inputs, _INPUTS), grid.length // 2 + LANES, splat(np.float32(-1))
    line, words = work.line, work.x
    for c in range(inputs):
        for parity in range(2):
            for i in range(parity, grid.length, CELLS):
                first = min(i, grid.length - CELLS - (grid.length - parity) % 2)
                a, b = load(x, c * grid.length + first), load(x, c * grid.length + first + LANES)
                for part in range(parts):
                    high_a, high_b = nearest_bfloat16(a), nearest_bfloat16(b)
                    store(line, 0, neighbours(high_a, high_b))
                    at = ((part * 2 + parity) * rows + first // 2) * columns + c
                    for k in range(LANES):
                        words[at + k * columns] = line[k]
                    a, b = fma(minus, high_a, a), fma(minus, high_b, b)


@compiled
def tile_filter_gradient(d, x, inputs, offsets, grid, work, quick, sums):  # type: ignore[no-untyped-def]
    """Add the gradient of filters that read planes x, borders set, given d, the cotangent of what they make.

    Args:
        d: Planes [O x length], zero on the border.
        x: Planes [C x length] or more.
        inputs: C.
        offsets: [T] of one plane.
        grid: Layout.
        work: `gradient_work`.
        quick: Whether the three largest products will do.
        sums: Tiles by tap, 16 outputs and 16 inputs, added to.
    """
    _pair_d(d, grid, work.d)
    _pair_x(x, inputs, grid, 2 if quick else 3, work)
    columns, rows = _up(inputs, _INPUTS), grid.length // 2 + LANES
    outputs, row = _up(len(d) // grid.length, LANES), blocks_of_cells(grid) * LANES
    part_d, part_x, at = outputs * row, 2 * rows * columns, 0
    for t in range(len(offsets)):
        start = grid.origin + offsets[t]
        read = (start % 2 * rows + start // 2) * columns
        for o in range(0, outputs, LANES):
            for c in range(0, columns, _INPUTS):
                _load_0(sums, at, LANES), _load_1(sums, at + TILE, LANES), _load_2(sums, at + 2 * TILE, LANES)
                for block in range(blocks_of_cells(grid)):
                    left, right = o * row + block * LANES, read + block * LANES * columns + c
                    _load_high(work.d, left, row), _load_middle(work.d, left + part_d, row)
                    if quick:
                        _load_x(work.x, right + part_x, columns), _one_0()
                        _load_x(work.x, right, columns), _two_0()
                        _load_x(work.x, right + LANES + part_x, columns), _one_1()
                        _load_x(work.x, right + LANES, columns), _two_1()
                        _load_x(work.x, right + 2 * LANES + part_x, columns), _one_2()
                        _load_x(work.x, right + 2 * LANES, columns), _two_2()
                    else:
                        _load_low(work.d, left + 2 * part_d, row)
                        _load_x(work.x, right + 2 * part_x, columns), _one_0()
                        _load_x(work.x, right + part_x, columns), _two_0()
                        _load_x(work.x, right, columns), _three_0()
                        right += LANES
                        _load_x(work.x, right + 2 * part_x, columns), _one_1()
                        _load_x(work.x, right + part_x, columns), _two_1()
                        _load_x(work.x, right, columns), _three_1()
                        right += LANES
                        _load_x(work.x, right + 2 * part_x, columns), _one_2()
                        _load_x(work.x, right + part_x, columns), _two_2()
                        _load_x(work.x, right, columns), _three_2()
                _keep_0(sums, at, LANES), _keep_1(sums, at + TILE, LANES), _keep_2(sums, at + 2 * TILE, LANES)
                at += 3 * TILE


@compiled
def take_sums(sums: Floats, outputs: int, inputs: int, out: Floats) -> None:
    """Write the sums by output, input and tap."""
    tiles, columns = _up(outputs, LANES), _up(inputs, _INPUTS)
    taps = len(sums) // (tiles * columns)
    for t in range(taps):
        for o in range(outputs):
            for c in range(inputs):
                at = (t * tiles + o - o % LANES) * columns + (c - c % LANES) * LANES + o % LANES * LANES + c % LANES
                out[(o * inputs + c) * taps + t] = sums[at]
