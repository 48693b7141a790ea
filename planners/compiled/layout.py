"""How a compiled kernel lays a map out in memory: one plane with a border, so that a filter's tap is one offset.

A plane holds `height` rows, `stride` cells from one to the next, and `pad` border cells around the map; it is flat, and
kernels sweep it in blocks without regard to rows. With zero padding the columns right of one row are those left of the
next. On the torus the border repeats the opposite side.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel
from planners.compiled.simd import LANES

BLOCK = 3 * LANES
compiled = partial(kernel, error_model="numpy")
fastmath = partial(kernel, error_model="numpy", fastmath={"reassoc", "contract"})
"""For sums that may be vectorised; infinities and NaN keep their meaning."""

Floats = NDArray[np.float32]


class Grid(NamedTuple):
    """A map's size and its place in a plane: cell (i, j) is at origin + i * stride + j; blocks * 48 cells are swept."""

    height: int
    width: int
    pad: int
    wrap: bool
    stride: int
    origin: int
    blocks: int
    length: int


def grid_of(height: int, width: int, pad: int, wrap: bool) -> Grid:
    """Return the layout of a map for filters that reach `pad` cells far; a vector may start at any cell they reach."""
    stride = width + (2 * pad if wrap else pad)
    origin = pad * stride + pad
    blocks = -(-((height - 1) * stride + width) // BLOCK)
    length = 2 * origin + max(blocks * BLOCK, height * stride) + LANES
    return Grid(height, width, pad, wrap, stride, origin, blocks, length)


def tap_offsets(channels: int, size: int, grid: Grid) -> NDArray[np.int64]:
    """Return where each tap of a filter [channels, size, size] reads, relative to the cell that it writes."""
    reach = np.arange(size) - size // 2
    plane = np.arange(channels) * grid.length
    return (plane[:, None, None] + reach[:, None] * grid.stride + reach).astype(np.int64).ravel()


@compiled
def set_border(plane: Floats, grid: Grid) -> None:
    """Make what surrounds the map zero, or the opposite side of the torus."""
    h, w, pad, stride, origin = grid.height, grid.width, grid.pad, grid.stride, grid.origin
    plane[:origin] = 0
    plane[origin + (h - 1) * stride + w :] = 0
    for i in range(h):
        row = origin + i * stride
        for j in range(pad):
            if grid.wrap:
                plane[row - 1 - j] = plane[row + w - 1 - j]
                plane[row + w + j] = plane[row + j]
            else:
                plane[row + w + j] = 0
    if grid.wrap:
        first, border = origin - pad, pad * stride
        for k in range(border):
            plane[first - border + k] = plane[first + (h - pad) * stride + k]
            plane[first + h * stride + k] = plane[first + k]


@compiled
def fold_border(plane: Floats, grid: Grid) -> None:
    """Add what was written outside the map to where it belongs on the torus, then clear it.

    The transpose of `set_border`.
    """
    h, w, pad, stride, origin = grid.height, grid.width, grid.pad, grid.stride, grid.origin
    if grid.wrap:
        first, border = origin - pad, pad * stride
        for k in range(border):
            plane[first + (h - pad) * stride + k] += plane[first - border + k]
        for k in range(border):
            plane[first + k] += plane[first + h * stride + k]
    for i in range(h):
        row = origin + i * stride
        if grid.wrap:
            for j in range(pad):
                plane[row + w - 1 - j] += plane[row - 1 - j]
            for j in range(pad):
                plane[row + j] += plane[row + w + j]
            plane[row - pad : row] = 0
        plane[row + w : row + w + pad] = 0
    plane[:origin] = 0
    plane[origin + (h - 1) * stride + w :] = 0


@compiled
def to_planes(maps: Floats, planes: Floats, grid: Grid) -> None:
    """Copy maps [C, h, w] to the cells of planes (C times `grid.length`); the border is left alone."""
    for c in range(maps.shape[0]):
        for i in range(grid.height):
            start = c * grid.length + grid.origin + i * grid.stride
            planes[start : start + grid.width] = maps[c, i]


@compiled
def from_planes(planes: Floats, maps: Floats, grid: Grid) -> None:
    """Copy the cells of planes to maps [C, h, w]."""
    for c in range(maps.shape[0]):
        for i in range(grid.height):
            start = c * grid.length + grid.origin + i * grid.stride
            maps[c, i] = planes[start : start + grid.width]


@compiled
def as_planes(maps: Floats, grid: Grid) -> Floats:
    """Return maps [C, h, w] as planes, zero on the border."""
    planes = np.zeros(maps.shape[0] * grid.length, np.float32)
    to_planes(maps, planes, grid)
    return planes


@compiled
def set_borders(planes: Floats, grid: Grid) -> None:
    """Do `set_border` for each plane."""
    for c in range(len(planes) // grid.length):
        set_border(planes[c * grid.length : (c + 1) * grid.length], grid)


@compiled
def fold_borders(planes: Floats, grid: Grid) -> None:
    """Do `fold_border` for each plane."""
    for c in range(len(planes) // grid.length):
        fold_border(planes[c * grid.length : (c + 1) * grid.length], grid)
