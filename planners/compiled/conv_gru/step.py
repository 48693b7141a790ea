"""Compiled ConvGRU iteration and its linearisation, one sample at a time while it stays in the cache.

Roofline, per cell and step, S state channels, F x F filters: 6 S^2 F^2 floating-point operations (86 kFLOP at S = 40,
F = 3) and three activations a channel (about 30 operations each, 4 % more), against 20 S bytes that move between cache
levels: 100 operations a byte, so arithmetic is the bound. The reward is one more input channel of every convolution:
its part of gates and candidate is the same at every step, but making it (54 S operations at F = 3) costs no more than
reading it (12 S bytes), and a sample without it is smaller.

The transposed Jacobian is three convolutions with turned filters, and costs what the step costs. None reads more than S
planes at once: 48 cells and their neighbours of these fit the first-level cache (31 KB at S = 40), of 2 S they do not.

Legend: v state, r reward, u update gate, s reset gate, n candidate, p = s v, w adjoint vector, S channels
padded to a multiple of 5, T taps = input channels x F x F.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planners.compiled.conv_gru.convolution import add_block, convolve_block
from planners.compiled.layout import BLOCK, Floats, Grid, compiled, fastmath, set_borders
from planners.compiled.value_iteration.step import Ints


class GRUFilters(NamedTuple):
    """Packed filters [out / 5, T, 5] that read [v, r] or [p, r], their biases, those of v alone turned, and offsets."""

    gates: Floats
    candidate: Floats
    updates_turned: Floats
    resets_turned: Floats
    candidate_turned: Floats
    gates_bias: Floats
    candidate_bias: Floats
    zeros: Floats
    offsets: Ints


class GRUPlanes(NamedTuple):
    """Working planes of one sample: what a step leaves behind, which is what its linearisation needs.

    gates: [2 S] u and s; reset: [S + 1] p and r, or the cotangent of p; candidate: [S] n; both: [2 S].
    """

    gates: Floats
    reset: Floats
    candidate: Floats
    both: Floats


@compiled
def clear_borders(planes: Floats, grid: Grid) -> None:
    """Make what surrounds the map zero in each plane, so that inner products of planes are those of maps."""
    for plane in range(0, len(planes), grid.length):
        planes[plane : plane + grid.origin] = 0
        for row in range(plane + grid.origin, plane + grid.origin + (grid.height - 1) * grid.stride, grid.stride):
            planes[row + grid.width : row + grid.stride] = 0
        planes[plane + grid.origin + (grid.height - 1) * grid.stride + grid.width : plane + grid.length] = 0


@compiled
def second_pass_lag(grid: Grid) -> int:
    """Return how many blocks the first convolution of a step must be ahead of the second, which reads what it wrote.

    What a block left in the second-level cache is still there. On the torus the second waits for all of the first;
    elsewhere the border of what it reads stays zero by itself, as a product with the state or the adjoint vector.
    """
    return grid.blocks if grid.wrap else (BLOCK - 1 + grid.origin) // BLOCK


@fastmath
def tanh(x):  # type: ignore[no-untyped-def]
    """Return tanh(x) to within 3e-7: the ratio of odd and even polynomials of degree 13 and 6, x cut to [-9, 9]."""
    x = min(max(x, np.float32(-9.0)), np.float32(9.0))
    y = x * x
    odd = np.float32(2.00018790482477e-13) + y * np.float32(-2.76076847742355e-16)
    odd = np.float32(-8.60467152213735e-11) + y * odd
    odd = np.float32(5.12229709037114e-08) + y * odd
    odd = np.float32(1.48572235717979e-05) + y * odd
    odd = np.float32(6.37261928875436e-04) + y * odd
    odd = np.float32(4.89352455891786e-03) + y * odd
    even = np.float32(1.18534705686654e-04) + y * np.float32(1.19825839466702e-06)
    even = np.float32(2.26843463243900e-03) + y * even
    even = np.float32(4.89352518554385e-03) + y * even
    return x * odd / even


@fastmath
def open_gates(gates: Floats, v: Floats, grid: Grid, first: int, p: Floats) -> None:
    """Turn a block of the reset gate's pre-activations into s, and write p = s v."""
    half, size = np.float32(0.5), len(gates) // 2
    for c in range(first, size, grid.length):
        resets, values, out = gates[size + c :], v[c:], p[c:]
        for i in range(BLOCK):
            s = half + half * tanh(half * resets[i])
            resets[i] = s
            out[i] = s * values[i]


@fastmath
def mix(gates: Floats, candidate: Floats, v: Floats, grid: Grid, first: int, out: Floats) -> None:
    """Turn a block of the other pre-activations into u and n, and write v' = v + u (n - v)."""
    half = np.float32(0.5)
    for c in range(first, len(candidate), grid.length):
        updates, candidates, values, mixed = gates[c:], candidate[c:], v[c:], out[c:]
        for i in range(BLOCK):
            u = half + half * tanh(half * updates[i])
            n = tanh(candidates[i])
            updates[i], candidates[i] = u, n
            mixed[i] = values[i] + u * (n - values[i])


@compiled
def gru_step(v, filters, grid, planes, out):  # type: ignore[no-untyped-def]
    """Write v' = f(v): planes [S + 1] with zero borders, of which the last is r and stays as it is."""
    lag = second_pass_lag(grid)
    set_borders(v, grid)
    planes.reset[len(v) - grid.length :] = v[len(v) - grid.length :]
    for block in range(grid.blocks + lag):
        first = grid.origin + block * BLOCK
        if block < grid.blocks:
            convolve_block(v, filters.gates_bias, filters.gates, filters.offsets, grid, first, planes.gates)
            open_gates(planes.gates, v, grid, first, planes.reset)
        if grid.wrap and block == grid.blocks - 1:
            clear_borders(v, grid)
            set_borders(planes.reset, grid)
        if block >= lag:
            first -= lag * BLOCK
            convolve_block(
                planes.reset, filters.candidate_bias, filters.candidate, filters.offsets, grid, first, planes.candidate
            )
            mix(planes.gates, planes.candidate, v, grid, first, out)
    clear_borders(out, grid)


@fastmath
def linearise_gru(v: Floats, planes: GRUPlanes, slopes: Floats) -> None:
    """Write dv'/dn, dp/ds, dv'/du (before the activations), 1 - u and s into slopes [5 S], after a step from v."""
    size, one = len(planes.candidate), np.float32(1)
    for i in range(size):
        u, s, n = planes.gates[i], planes.gates[size + i], planes.candidate[i]
        slopes[i] = u * (one - n * n)
        slopes[size + i] = v[i] * s * (one - s)
        slopes[2 * size + i] = (n - v[i]) * u * (one - u)
        slopes[3 * size + i] = one - u
        slopes[4 * size + i] = s


@fastmath
def into_candidate(w: Floats, slopes: Floats, grid: Grid, out: Floats) -> None:
    """Write the cotangent of the candidate, before its activation."""
    for i in range(len(w)):
        out[i] = slopes[i] * w[i]


@fastmath
def into_gates(w: Floats, slopes: Floats, dp: Floats, grid: Grid, first: int, both: Floats) -> None:
    """Write a block of the cotangents of both gates."""
    size = len(w)
    for c in range(first, size, grid.length):
        w_c, dp_c, updates, resets = w[c:], dp[c:], both[c:], both[size + c :]
        ds, du = slopes[size + c :], slopes[2 * size + c :]
        for i in range(BLOCK):
            updates[i] = du[i] * w_c[i]
            resets[i] = ds[i] * dp_c[i]


@fastmath
def past_gates(w: Floats, right: Floats, slopes: Floats, dp: Floats, grid: Grid, first: int, out: Floats) -> None:
    """Add what reaches v directly and through p, and the right-hand side."""
    size = len(w)
    for c in range(first, size, grid.length):
        w_c, dp_c, right_c, out_c = w[c:], dp[c:], right[c:], out[c:]
        past, s = slopes[3 * size + c :], slopes[4 * size + c :]
        for i in range(BLOCK):
            out_c[i] += past[i] * w_c[i] + s[i] * dp_c[i] + right_c[i]


@compiled
def transposed_gru(w, right, slopes, filters, grid, planes, out):  # type: ignore[no-untyped-def]
    """Write J^T w + right, planes [S] with zero borders."""
    size, lag = len(w), second_pass_lag(grid)
    into_candidate(w, slopes, grid, planes.candidate)
    set_borders(planes.candidate, grid)
    for block in range(grid.blocks + lag):
        first = grid.origin + block * BLOCK
        if block < grid.blocks:
            convolve_block(
                planes.candidate, filters.zeros, filters.candidate_turned, filters.offsets, grid, first, planes.reset
            )
            into_gates(w, slopes, planes.reset, grid, first, planes.both)
        if grid.wrap and block == grid.blocks - 1:
            set_borders(planes.both, grid)
        if block >= lag:
            first -= lag * BLOCK
            convolve_block(planes.both[:size], filters.zeros, filters.updates_turned, filters.offsets, grid, first, out)
            add_block(planes.both[size:], filters.zeros, filters.resets_turned, filters.offsets, grid, first, out)
            past_gates(w, right, slopes, planes.reset, grid, first, out)
    clear_borders(out, grid)
