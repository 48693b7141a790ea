"""Gauss-Seidel sweeps for the adjoint system of the ConvGRU, w = J^T w + g.

At a fixed point I - J = u (I - J_n), so w is y / u for y = J_n^T y + g: what reaches the update gate is multiplied by n
- v, which is zero there. y is swept 48 cells at a time from the first row to the last, as
`planners.compiled.conv_gru.gauss_seidel` sweeps v, and one product with the true J^T afterwards says how good w is.

Roofline, per cell and sweep, S state channels, F x F filters: 4 S^2 F^2 floating-point operations, two thirds of a
product's; the start and the product at the end add the work of two sweeps.

Legend: B samples, S state channels, K sweeps; v state, u update gate, s reset gate, n candidate, p = s v, w adjoint
vector, g right-hand side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planners.compiled.conv_gru.convolution import convolve_block
from planners.compiled.conv_gru.gauss_seidel import cells_of, times
from planners.compiled.conv_gru.step import GRUPlanes, clear_borders, linearise_gru, transposed_gru
from planners.compiled.layout import BLOCK, Floats, Grid, as_planes, compiled, fastmath, from_planes, set_borders
from planners.compiled.linalg import MAX_STEPS, compare, relative, verdict

_LEAST_GATE = np.float32(1e-6)
"""The smallest u that w = y / u is taken with: below, float32 does not tell u from zero."""


class _Slopes(NamedTuple):
    """Planes [S] that an adjoint sweep multiplies with: dn of the candidate, ds of p by the reset gate, s itself."""

    dn: Floats
    ds: Floats
    s: Floats


@fastmath
def _slopes(kept: Floats, right: Floats, slopes: _Slopes, gate: Floats) -> None:
    """Write the slopes and u from what a step kept: v, u, s, n."""
    size, one = len(right), np.float32(1)
    for i in range(size):
        v, s, n = kept[i], kept[2 * size + i], kept[3 * size + i]
        gate[i] = max(kept[size + i], _LEAST_GATE)
        slopes.dn[i] = one - n * n
        slopes.ds[i] = v * s * (one - s)
        slopes.s[i] = s


@fastmath
def _into_reset(dp: Floats, slopes: _Slopes, inside: Floats, grid: Grid, first: int, resets: Floats) -> None:
    """Write a block of the reset gate's cotangent, on the map."""
    zero = np.float32(0)
    on_map = inside[first - grid.origin :]
    for c in range(first, len(dp), grid.length):
        dp_c, ds, out = dp[c:], slopes.ds[c:], resets[c:]
        for i in range(BLOCK):
            out[i] = ds[i] * dp_c[i] if on_map[i] > zero else out[i]


@fastmath
def _gather(
    out: Floats,
    dp: Floats,
    right: Floats,
    slopes: _Slopes,
    inside: Floats,
    grid: Grid,
    first: int,
    y: Floats,
    into: Floats,
) -> None:
    """Write a block of y = W^T resets + s dp + right and of the candidate's cotangent, on the map."""
    zero = np.float32(0)
    on_map = inside[first - grid.origin :]
    for c in range(first, len(y), grid.length):
        out_c, dp_c, right_c, y_c, into_c = out[c:], dp[c:], right[c:], y[c:], into[c:]
        s, dn = slopes.s[c:], slopes.dn[c:]
        for i in range(BLOCK):
            new = out_c[i] + s[i] * dp_c[i] + right_c[i]
            y_c[i] = new if on_map[i] > zero else y_c[i]
            into_c[i] = dn[i] * new if on_map[i] > zero else into_c[i]


@compiled
def sweep_gru_adjoint(first, last, right, kept, filters, grid, max_steps, tolerance, out):  # type: ignore[no-untyped-def]
    """Solve w = J^T w + right for the samples first..last-1 by sweeps and one product with the true J^T.

    Args:
        first: First sample.
        last: One past the last sample.
        right: [B, S, h, w].
        kept: [B, 1, 4 S x length] planes v, u, s, n of the step that J belongs to.
        filters: `GRUFilters`.
        grid: Layout.
        max_steps: Most sweeps, the product counted as one.
        tolerance: Relative change at which a sample's sweeps stop, and residual that counts as converged; 0 for none.
        out: `GRUResult`, written; the value is the product's, the residual that of the system itself.
    """
    size, inside = right.shape[1] * grid.length, cells_of(grid)
    none = np.zeros(0, np.float32)
    slopes = _Slopes(np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32))
    gate, change, image = np.empty(size, np.float32), np.empty(size, np.float32), np.zeros(size, np.float32)
    into, dp, resets = np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
    planes = GRUPlanes(none, dp, into, np.zeros(2 * size, np.float32))
    all_slopes = np.empty(5 * size, np.float32)
    blocks = range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK)
    for b in range(first, last):
        given, step = as_planes(right[b], grid), kept[b, 0]
        _slopes(step, given, slopes, gate)
        y = given.copy()
        times(slopes.dn, y, into)
        set_borders(into, grid)
        for block in blocks:
            convolve_block(into, filters.zeros, filters.candidate_turned, filters.offsets, grid, block, dp)
            _into_reset(dp, slopes, inside, grid, block, resets)
        now, result, k = np.float32(np.inf), MAX_STEPS, 0
        while k < max_steps - 1 and result == MAX_STEPS:
            old = y.copy()
            set_borders(into, grid)
            set_borders(resets, grid)
            for block in blocks:
                convolve_block(into, filters.zeros, filters.candidate_turned, filters.offsets, grid, block, dp)
                _into_reset(dp, slopes, inside, grid, block, resets)
                convolve_block(resets, filters.zeros, filters.resets_turned, filters.offsets, grid, block, image)
                _gather(image, dp, given, slopes, inside, grid, block, y, into)
            difference, length = compare(old, y, change)
            now = relative(difference, length)
            out.trace[k, b] = now
            k += 1
            result = verdict(now, length, np.float32(np.inf), tolerance)
        for i in range(size):
            y[i] /= gate[i]
        clear_borders(y, grid)
        linearise_gru(step[:size], GRUPlanes(step[size : 3 * size], none, step[3 * size :], none), all_slopes)
        transposed_gru(y, given, all_slopes, filters, grid, planes, image)
        difference, length = compare(y, image, change)
        now = relative(difference, length)
        out.trace[k:, b] = now
        from_planes(image, out.value[b], grid)
        out.residual[b], out.steps[b] = now, k + 1
        out.result[b] = verdict(now, length, np.float32(np.inf), tolerance)
