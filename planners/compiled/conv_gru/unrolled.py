"""K steps of the compiled ConvGRU kept for the way back, and the way back through them.

Roofline of the way back, per cell and step: a transposed step (6 S^2 F^2 operations) and the filters' gradient (as many
again, `planners.compiled.conv_gru.filter_gradient`). A step keeps 16 S bytes a cell: v, u, s and n.

Legend: B samples, S state channels, K steps; v state, r reward, p = s v, w cotangent of the state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planners.compiled.conv_gru.convolution import add_block, convolve_block
from planners.compiled.conv_gru.filter_gradient import add_lanes, gru_filter_gradient
from planners.compiled.conv_gru.step import GRUPlanes, clear_borders, gru_step, second_pass_lag
from planners.compiled.conv_gru.tile_filter_gradient import (
    gradient_work,
    sums_size,
    take_sums,
    tile_filter_gradient,
)
from planners.compiled.conv_gru.tile_step import tile_gru_step
from planners.compiled.layout import (
    BLOCK,
    Floats,
    Grid,
    as_planes,
    compiled,
    fastmath,
    from_planes,
    set_borders,
    to_planes,
)
from planners.compiled.linalg import compare, relative
from planners.compiled.simd import LANES
from planners.compiled.tiles import aligned_zeros, begin_tiles, convolve, release_tiles


class GRUGradients(NamedTuple):
    """Where the way back writes: gradients of v0 [B, S, h, w], the reward's part [B, 3 S, h, w] and the filters.

    gates: [B, 2 S x S x T]; candidate: [B, S x S x T].
    """

    v0: Floats
    part: Floats
    gates: Floats
    candidate: Floats


@compiled
def unroll_gru(first, last, start, reward, filters, tiles, grid, quick, kept, every, out):  # type: ignore[no-untyped-def]
    """Take K steps of the samples first..last-1 and keep what the way back needs.

    Args:
        first: First sample.
        last: One past the last sample.
        start: [B, S, h, w].
        reward: [B, 1, h, w].
        filters: `GRUFilters`.
        tiles: `GRUTiles`, where tile registers take the steps; None where they don't.
        grid: Layout.
        quick: Whether three products of bfloat16 numbers will do for one of float32, before the last step.
        kept: [B, K, 4 S x length] planes v, u, s, n of each step, written.
        every: Whether all steps' residuals and sizes are wanted, or the first's and the last's alone.
        out: Value [B, S, h, w], trace [K, B] and size of f(v) [K, B], written.
    """
    value, trace, sizes = out
    if tiles is not None:
        work = begin_tiles(tiles.gates, grid, start.shape[1] // 2 + 1)
    size = start.shape[1] * grid.length
    reset, none, change = np.zeros(size + grid.length, np.float32), np.zeros(0, np.float32), np.zeros(size, np.float32)
    for b in range(first, last):
        z = np.zeros(size + grid.length, np.float32)
        to_planes(start[b], z, grid)
        z[size:] = as_planes(reward[b], grid)
        fz = z.copy()
        for k in range(kept.shape[1]):
            step = kept[b, k]
            step[:size] = z[:size]
            planes = GRUPlanes(step[size : 3 * size], reset, step[3 * size :], none)
            if tiles is None:
                gru_step(z, filters, grid, planes, fz)
            else:
                tile_gru_step(z, tiles, filters, grid, planes, work, quick and k + 1 < kept.shape[1], fz)
            if every or k == 0 or k == kept.shape[1] - 1:
                difference, sizes[k, b] = compare(z, fz, change)
                trace[k, b] = relative(difference, sizes[k, b])
            z, fz = fz, z
        from_planes(z[:size], value[b], grid)
    if tiles is not None:
        release_tiles()


@fastmath
def _into_candidate(w: Floats, step: Floats, grid: Grid, first: int, candidate: Floats, total: Floats) -> None:
    """Write a block of the candidate's cotangent, and add it to the total."""
    size, one = len(w), np.float32(1)
    for c in range(first, size, grid.length):
        w_c, u, n, out, sums = w[c:], step[size + c :], step[3 * size + c :], candidate[c:], total[c:]
        for i in range(BLOCK):
            out[i] = u[i] * (one - n[i] * n[i]) * w_c[i]
            sums[i] += out[i]


@fastmath
def _into_gates(w: Floats, dp: Floats, step: Floats, grid: Grid, first: int, both: Floats, total: Floats) -> None:
    """Write a block of the cotangents of both gates, and add them to the total."""
    size, one = len(w), np.float32(1)
    for c in range(first, size, grid.length):
        w_c, dp_c, v, u = w[c:], dp[c:], step[c:], step[size + c :]
        s, n = step[2 * size + c :], step[3 * size + c :]
        updates, resets, sums, reset_sums = both[c:], both[size + c :], total[c:], total[size + c :]
        for i in range(BLOCK):
            updates[i] = (n[i] - v[i]) * u[i] * (one - u[i]) * w_c[i]
            resets[i] = v[i] * s[i] * (one - s[i]) * dp_c[i]
            sums[i] += updates[i]
            reset_sums[i] += resets[i]


@fastmath
def _past_gates(w: Floats, step: Floats, grid: Grid, first: int, out: Floats, dp: Floats) -> None:
    """Add a block of what reaches v directly and through p; then write p in place of its cotangent."""
    size, one = len(w), np.float32(1)
    for c in range(first, size, grid.length):
        w_c, v, u, s = w[c:], step[c:], step[size + c :], step[2 * size + c :]
        out_c, dp_c = out[c:], dp[c:]
        for i in range(BLOCK):
            out_c[i] += (one - u[i]) * w_c[i] + s[i] * dp_c[i]
            dp_c[i] = s[i] * v[i]


@compiled
def _back_through_step(w, step, filters, grid, through, work, total, out):  # type: ignore[no-untyped-def]
    """Go back through one kept step: write the cotangents of its gates and, where `through`, J^T w; leave p behind.

    The slopes are made where they are used: as planes of their own they would not fit the second-level cache.
    """
    size, lag = len(w), second_pass_lag(grid)
    for first in range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK):
        _into_candidate(w, step, grid, first, work.candidate, total[2 * size :])
    set_borders(work.candidate, grid)
    for block in range(grid.blocks + lag):
        first = grid.origin + block * BLOCK
        if block < grid.blocks:
            convolve_block(
                work.candidate, filters.zeros, filters.candidate_turned, filters.offsets, grid, first, work.reset
            )
            _into_gates(w, work.reset, step, grid, first, work.both, total)
        if grid.wrap and block == grid.blocks - 1:
            set_borders(work.both, grid)
        if block >= lag:
            first -= lag * BLOCK
            if through:
                convolve_block(
                    work.both[:size], filters.zeros, filters.updates_turned, filters.offsets, grid, first, out
                )
                add_block(work.both[size:], filters.zeros, filters.resets_turned, filters.offsets, grid, first, out)
            _past_gates(w, step, grid, first, out, work.reset)
    clear_borders(out, grid)
    clear_borders(work.both, grid)
    clear_borders(work.candidate, grid)


@compiled
def _tile_back_through_step(w, step, tiles, filters, grid, through, work, total, tile_work, quick, out):  # type: ignore[no-untyped-def]
    """Do what `_back_through_step` does on tile registers."""
    size, channels = len(w), len(w) // grid.length
    blocks = range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK)
    updates, resets = work.both[:size], work.both[size:]
    for first in blocks:
        _into_candidate(w, step, grid, first, work.candidate, total[2 * size :])
    set_borders(work.candidate, grid)
    convolve(work.candidate, channels, tiles.candidate_turned, filters.zeros, grid, tile_work, quick, False, work.reset)
    for first in blocks:
        _into_gates(w, work.reset, step, grid, first, work.both, total)
    if grid.wrap:
        set_borders(work.both, grid)
    if through:
        convolve(updates, channels, tiles.updates_turned, filters.zeros, grid, tile_work, quick, False, out)
        convolve(resets, channels, tiles.resets_turned, filters.zeros, grid, tile_work, quick, True, out)
    for first in blocks:
        _past_gates(w, step, grid, first, out, work.reset)
    clear_borders(out, grid)
    clear_borders(work.both, grid)
    clear_borders(work.candidate, grid)


@compiled
def back_through_gru(  # type: ignore[no-untyped-def]
    first, last, u, filters, tiles, offsets, grid, quick, kept, gradients, to_start
):
    """Go back through the kept steps from u [B, S, h, w], the cotangent of the last one's value.

    Args:
        first: First sample.
        last: One past the last sample.
        u: [B, S, h, w].
        filters: `GRUFilters`.
        tiles: `GRUTiles` or None.
        offsets: [T] of one plane, T a multiple of 9.
        grid: Layout.
        quick: Whether three products of bfloat16 numbers will do for one of float32.
        kept: As `unroll_gru` wrote it.
        gradients: `GRUGradients`, written.
        to_start: Whether that of v0 is wanted.
    """
    channels, size = u.shape[1], u.shape[1] * grid.length
    if tiles is None:
        sums_gates = np.empty(gradients.gates.shape[1] * LANES, np.float32)
        sums_candidate = np.empty(gradients.candidate.shape[1] * LANES, np.float32)
    else:
        sums_gates = aligned_zeros(sums_size(2 * channels, channels, len(offsets)))
        sums_candidate = aligned_zeros(sums_size(channels, channels, len(offsets)))
        for_filters = gradient_work(2 * channels, channels, grid)
        for_steps = begin_tiles(tiles.gates, grid, channels // 2 + 1)
    work = GRUPlanes(
        np.zeros(0, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(2 * size, np.float32)
    )
    for b in range(first, last):
        w, image, total = as_planes(u[b], grid), np.zeros(size, np.float32), np.zeros(3 * size, np.float32)
        sums_gates[:] = 0
        sums_candidate[:] = 0
        for k in range(kept.shape[1] - 1, -1, -1):
            step = kept[b, k]
            through, v = to_start or k > 0, step[:size]
            if tiles is None:
                _back_through_step(w, step, filters, grid, through, work, total, image)
                set_borders(v, grid)
                gru_filter_gradient(work.both, v, channels, offsets, grid, sums_gates)
                clear_borders(v, grid)
                set_borders(work.reset, grid)
                gru_filter_gradient(work.candidate, work.reset, channels, offsets, grid, sums_candidate)
            else:
                _tile_back_through_step(w, step, tiles, filters, grid, through, work, total, for_steps, quick, image)
                set_borders(v, grid)
                tile_filter_gradient(work.both, v, channels, offsets, grid, for_filters, quick, sums_gates)
                clear_borders(v, grid)
                set_borders(work.reset, grid)
                tile_filter_gradient(
                    work.candidate, work.reset, channels, offsets, grid, for_filters, quick, sums_candidate
                )
            w, image = image, w
        from_planes(w, gradients.v0[b], grid)
        from_planes(total, gradients.part[b], grid)
        if tiles is None:
            add_lanes(sums_gates, gradients.gates[b])
            add_lanes(sums_candidate, gradients.candidate[b])
        else:
            take_sums(sums_gates, 2 * channels, channels, gradients.gates[b])
            take_sums(sums_candidate, channels, channels, gradients.candidate[b])
    if tiles is not None:
        release_tiles()
