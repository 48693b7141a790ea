"""A step of the compiled ConvGRU and its transposed Jacobian on tile registers.

Roofline, per cell and step, S state channels, F x F filters: 3 S^2 F^2 products of float32 numbers, by three or six of
bfloat16 numbers each (`planners.compiled.tiles`). A convolution is done for the whole map before what it feeds begins;
three activations a channel (30 operations on vector registers) take a third to a fifth of the time.

Legend: as in `planners.compiled.conv_gru.step`.
"""

from __future__ import annotations

from typing import NamedTuple

from planners.compiled.conv_gru.step import (
    clear_borders,
    into_candidate,
    into_gates,
    mix,
    open_gates,
    past_gates,
)
from planners.compiled.layout import BLOCK, compiled, set_borders
from planners.compiled.tiles import TileFilters, convolve


class GRUTiles(NamedTuple):
    """Filters that read [v, r] or [p, r], and those of v alone turned."""

    gates: TileFilters
    candidate: TileFilters
    updates_turned: TileFilters
    resets_turned: TileFilters
    candidate_turned: TileFilters


@compiled
def tile_gru_step(v, tiles, filters, grid, planes, work, quick, out):  # type: ignore[no-untyped-def]
    """Write v' = f(v), as `gru_step` does."""
    blocks = range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK)
    channels = len(v) // grid.length
    set_borders(v, grid)
    planes.reset[len(v) - grid.length :] = v[len(v) - grid.length :]
    convolve(v, channels, tiles.gates, filters.gates_bias, grid, work, quick, False, planes.gates)
    for first in blocks:
        open_gates(planes.gates, v, grid, first, planes.reset)
    if grid.wrap:
        clear_borders(v, grid)
        set_borders(planes.reset, grid)
    convolve(
        planes.reset, channels, tiles.candidate, filters.candidate_bias, grid, work, quick, False, planes.candidate
    )
    for first in blocks:
        mix(planes.gates, planes.candidate, v, grid, first, out)
    clear_borders(out, grid)


@compiled
def tile_transposed_gru(w, right, slopes, tiles, filters, grid, planes, work, quick, out):  # type: ignore[no-untyped-def]
    """Write J^T w + right, as `transposed_gru` does."""
    size, channels = len(w), len(w) // grid.length
    blocks = range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK)
    into_candidate(w, slopes, grid, planes.candidate)
    set_borders(planes.candidate, grid)
    convolve(planes.candidate, channels, tiles.candidate_turned, filters.zeros, grid, work, quick, False, planes.reset)
    for first in blocks:
        into_gates(w, slopes, planes.reset, grid, first, planes.both)
    if grid.wrap:
        set_borders(planes.both, grid)
    updates, resets = planes.both[:size], planes.both[size:]
    convolve(updates, channels, tiles.updates_turned, filters.zeros, grid, work, quick, False, out)
    convolve(resets, channels, tiles.resets_turned, filters.zeros, grid, work, quick, True, out)
    for first in blocks:
        past_gates(w, right, slopes, planes.reset, grid, first, out)
    clear_borders(out, grid)
