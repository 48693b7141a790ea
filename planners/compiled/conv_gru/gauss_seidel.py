"""Gauss-Seidel sweeps for the ConvGRU: each cell's equation solved for that cell, in place.

At a fixed point v = (1 - u) v + u n of any cell v is n, whatever u > 0. A sweep therefore writes n in place of v, 48
cells at a time from the first row to the last, with the newest v behind the block and the last sweep's reset gate ahead
of it; the update gate is never made. The damping that u puts on a step is gone, and news travels down the whole map.
A true step afterwards says how good v is. Where n alone makes grow what u damps, a sample does not converge, and its
result says so.

Roofline, per cell and sweep, S state channels, F x F filters: two S-to-S convolutions of the step's three, 4 S^2 F^2
floating-point operations, and two activations a channel. Blocks of one direction alone: sweeping up and down in turn
took as many sweeps on the maps we measured.

Legend: B samples, S state channels, K sweeps; v state, r reward, u update gate, s reset gate, n candidate, p = s v.
"""

from __future__ import annotations

import numpy as np

from planners.compiled.conv_gru.convolution import convolve_block
from planners.compiled.conv_gru.step import clear_borders, tanh
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
from planners.compiled.linalg import DIVERGED, MAX_STEPS, compare, norm, relative, verdict


@compiled
def cells_of(grid: Grid) -> Floats:
    """Return 1 where the swept cells [blocks x 48] lie on the map, 0 on its border."""
    inside = np.zeros(grid.blocks * BLOCK, np.float32)
    for i in range(grid.height):
        inside[i * grid.stride : i * grid.stride + grid.width] = 1
    return inside


@fastmath
def _reset(s: Floats, v: Floats, inside: Floats, grid: Grid, first: int, p: Floats) -> None:
    """Turn a block of the reset gate's pre-activations into s, and write p = s v on the map."""
    half, zero = np.float32(0.5), np.float32(0)
    on_map = inside[first - grid.origin :]
    for c in range(first, len(s), grid.length):
        resets, values, out = s[c:], v[c:], p[c:]
        for i in range(BLOCK):
            resets[i] = half + half * tanh(half * resets[i])
            out[i] = resets[i] * values[i] if on_map[i] > zero else out[i]


@fastmath
def _settle(n: Floats, s: Floats, inside: Floats, grid: Grid, first: int, v: Floats, p: Floats) -> None:
    """Write v = n and p = s v for a block, on the map."""
    zero = np.float32(0)
    on_map = inside[first - grid.origin :]
    for c in range(first, len(n), grid.length):
        candidates, resets, values, out = n[c:], s[c:], v[c:], p[c:]
        for i in range(BLOCK):
            new = tanh(candidates[i])
            values[i] = new if on_map[i] > zero else values[i]
            out[i] = resets[i] * new if on_map[i] > zero else out[i]


@fastmath
def times(a: Floats, b: Floats, out: Floats) -> None:
    """Write a b."""
    for i in range(len(a)):
        out[i] = a[i] * b[i]


@compiled
def _open(v, filters, grid, inside, s, p):  # type: ignore[no-untyped-def]
    """Write s of the whole map for v, planes [S + 1] that end with r."""
    size, half = len(s), filters.gates.shape[0] // 2
    weights, bias = filters.gates[half:], filters.gates_bias[len(filters.gates_bias) // 2 :]
    set_borders(v, grid)
    for first in range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK):
        convolve_block(v, bias, weights, filters.offsets, grid, first, s)
        _reset(s, v[:size], inside, grid, first, p[:size])
    clear_borders(v[:size], grid)


@compiled
def gru_sweep(v, filters, grid, inside, s, p, n):  # type: ignore[no-untyped-def]
    """Sweep v, planes [S + 1] that end with r, in place.

    Args:
        v: Planes [S + 1], written on the map; across the edge of a torus, what was there before the sweep counts.
        filters: `GRUFilters`.
        grid: Layout.
        inside: `cells_of` the grid.
        s: Planes [S], the reset gate of the last sweep, renewed.
        p: Planes [S + 1], written.
        n: Planes [S] to work on.
    """
    size, half = len(s), filters.gates.shape[0] // 2
    weights, bias = filters.gates[half:], filters.gates_bias[len(filters.gates_bias) // 2 :]
    values, products = v[:size], p[:size]
    times(s, values, products)
    p[size:] = v[size:]
    set_borders(v, grid)
    set_borders(p, grid)
    for first in range(grid.origin, grid.origin + grid.blocks * BLOCK, BLOCK):
        convolve_block(v, bias, weights, filters.offsets, grid, first, s)
        _reset(s, values, inside, grid, first, products)
        convolve_block(p, filters.candidate_bias, filters.candidate, filters.offsets, grid, first, n)
        _settle(n, s, inside, grid, first, values, products)
    clear_borders(values, grid)


@compiled
def sweep_gru(first, last, start, reward, filters, grid, max_steps, tolerance, out):  # type: ignore[no-untyped-def]
    """Sweep the samples first..last-1 from v = start until a sweep changes them by at most the tolerance.

    Args:
        first: First sample.
        last: One past the last sample.
        start: [B, S, h, w].
        reward: [B, 1, h, w].
        filters: `GRUFilters`.
        grid: Layout.
        max_steps: Most sweeps.
        tolerance: Relative change at which a sample stops; 0 for none.
        out: `GRUResult`, written; its residuals are the sweeps' changes.
    """
    size, inside = start.shape[1] * grid.length, cells_of(grid)
    s, n, change = np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
    p = np.zeros(size + grid.length, np.float32)
    finite_filters = np.isfinite(norm(filters.gates.ravel())) and np.isfinite(norm(filters.candidate.ravel()))
    finite_filters &= np.isfinite(norm(filters.gates_bias)) and np.isfinite(norm(filters.candidate_bias))
    for b in range(first, last):
        z, given = np.zeros(size + grid.length, np.float32), as_planes(reward[b], grid)
        to_planes(start[b], z, grid)
        # The compiled tanh cuts off what is not a number: nothing would show that an input was none.
        sound = np.isfinite(norm(given)) and np.isfinite(norm(z)) and finite_filters
        z[size:] = given
        _open(z, filters, grid, inside, s, p)
        now, result, k = np.float32(np.inf), MAX_STEPS if sound else DIVERGED, 0
        while k < max_steps and result == MAX_STEPS:
            old = z[:size].copy()
            gru_sweep(z, filters, grid, inside, s, p, n)
            difference, length = compare(old, z[:size], change)
            now = relative(difference, length)
            out.trace[k, b] = now
            k += 1
            result = verdict(now, length, np.float32(np.inf), tolerance)
        out.trace[k:, b] = now
        from_planes(z[:size], out.value[b], grid)
        out.residual[b], out.steps[b], out.result[b] = now, k, result
