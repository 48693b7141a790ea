"""K steps of the compiled ConvGRU kept for the way back, and the way back through them.

Roofline of the way back, per cell and step: a transposed step (6 S^2 F^2 operations) and the filters' gradient (as many
again). Of these, fifteen sums (5 outputs x 3 taps) live in registers while 16 cells at a time go by: 15 fused
multiply-adds and 8 loads. A step keeps 16 S bytes a cell: v, u, s and n.

Legend: B samples, S state channels, K steps; v state, r reward, p = s v, w cotangent of the state.
"""

from __future__ import annotations

import numpy as np

from planners.cores.gru_kernel import GRUPlanes, clear_borders, gru_step, linearise_gru, transposed_gru
from planners.cores.gru_solver import compare
from planners.cores.lanes import LANES, fma, load, splat, store
from planners.cores.plane import BLOCK, Floats, as_planes, compiled, enter, leave, reordered, set_borders
from planners.cores.vin_forward import relative


@compiled
def unroll_gru(first, last, start, reward, filters, grid, kept, out):  # type: ignore[no-untyped-def]
    """Take K steps of the samples first..last-1 and keep what the way back needs.

    Args:
        first: First sample.
        last: One past the last sample.
        start: [B, S, h, w].
        reward: [B, 1, h, w].
        filters: `GRUFilters`.
        grid: Layout.
        kept: [B, K, 4 S x length] planes v, u, s, n of each step, written.
        out: Value [B, S, h, w], trace [K, B] and size of f(v) [K, B], written.
    """
    value, trace, sizes = out
    size = start.shape[1] * grid.length
    reset, none, change = np.zeros(size + grid.length, np.float32), np.zeros(0, np.float32), np.zeros(size, np.float32)
    for b in range(first, last):
        z = np.zeros(size + grid.length, np.float32)
        enter(start[b], z, grid)
        z[size:] = as_planes(reward[b], grid)
        fz = z.copy()
        for k in range(kept.shape[1]):
            step = kept[b, k]
            step[:size] = z[:size]
            gru_step(z, filters, grid, GRUPlanes(step[size : 3 * size], reset, step[3 * size :], none), fz)
            difference, sizes[k, b] = compare(z, fz, change)
            trace[k, b] = relative(difference, sizes[k, b])
            z, fz = fz, z
        leave(z[:size], value[b], grid)


@reordered
def _total(sums: Floats) -> float:
    total = np.float32(0)
    for each in sums:
        total += each
    return total


@compiled
def gru_filter_gradient(d, x, offsets, grid, dw):  # type: ignore[no-untyped-def]
    """Add the gradient of filters that read planes x, borders set, given d, the cotangent of what they make.

    Args:
        d: Planes [O x length], O a multiple of 5, zero on the border.
        x: Planes [C x length] or more.
        offsets: [T], T a multiple of 3, of one plane.
        grid: Layout.
        dw: [O, C, T], added to.
    """
    length, cells = grid.length, grid.blocks * BLOCK
    sums = np.empty(15 * LANES, np.float32)
    for o in range(0, dw.shape[0], 5):
        at_a = grid.origin + o * length
        at_b, at_c, at_d, at_e = at_a + length, at_a + 2 * length, at_a + 3 * length, at_a + 4 * length
        for c in range(dw.shape[1]):
            for t in range(0, dw.shape[2], 3):
                at = grid.origin + c * length
                at_0, at_1, at_2 = at + offsets[t], at + offsets[t + 1], at + offsets[t + 2]
                a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = e0 = e1 = e2 = splat(np.float32(0))
                for i in range(0, cells, LANES):
                    x0, x1, x2 = load(x, at_0 + i), load(x, at_1 + i), load(x, at_2 + i)
                    k = load(d, at_a + i)
                    a0, a1, a2 = fma(k, x0, a0), fma(k, x1, a1), fma(k, x2, a2)
                    k = load(d, at_b + i)
                    b0, b1, b2 = fma(k, x0, b0), fma(k, x1, b1), fma(k, x2, b2)
                    k = load(d, at_c + i)
                    c0, c1, c2 = fma(k, x0, c0), fma(k, x1, c1), fma(k, x2, c2)
                    k = load(d, at_d + i)
                    d0, d1, d2 = fma(k, x0, d0), fma(k, x1, d1), fma(k, x2, d2)
                    k = load(d, at_e + i)
                    e0, e1, e2 = fma(k, x0, e0), fma(k, x1, e1), fma(k, x2, e2)
                store(sums, 0, a0), store(sums, 16, a1), store(sums, 32, a2)
                store(sums, 48, b0), store(sums, 64, b1), store(sums, 80, b2)
                store(sums, 96, c0), store(sums, 112, c1), store(sums, 128, c2)
                store(sums, 144, d0), store(sums, 160, d1), store(sums, 176, d2)
                store(sums, 192, e0), store(sums, 208, e1), store(sums, 224, e2)
                for q in range(5):
                    for tap in range(3):
                        lane = (3 * q + tap) * LANES
                        dw[o + q, c, t + tap] += _total(sums[lane : lane + LANES])


@reordered
def _times(a: Floats, b: Floats, out: Floats) -> None:
    for i in range(len(a)):
        out[i] = a[i] * b[i]


@compiled
def back_through_gru(first, last, u, filters, offsets, grid, kept, dv0, d_part, dw_gates, dw_candidate):  # type: ignore[no-untyped-def]
    """Go back through the kept steps from u [B, S, h, w], the cotangent of the last one's value.

    Args:
        first: First sample.
        last: One past the last sample.
        u: [B, S, h, w].
        filters: `GRUFilters`.
        offsets: [T] of one plane, T a multiple of 3.
        grid: Layout.
        kept: As `unroll_gru` wrote it.
        dv0: [B, S, h, w], written.
        d_part: [B, 3 S, h, w] gradient to the reward's part of gates and candidate, written.
        dw_gates: [B, 2 S, S, T], added to.
        dw_candidate: [B, S, S, T], added to.
    """
    size = u.shape[1] * grid.length
    work = GRUPlanes(
        np.zeros(0, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(2 * size, np.float32)
    )
    slopes, zeros, none = np.empty(5 * size, np.float32), np.zeros(size, np.float32), np.zeros(0, np.float32)
    for b in range(first, last):
        w, image, total = as_planes(u[b], grid), np.zeros(size, np.float32), np.zeros(3 * size, np.float32)
        for k in range(kept.shape[1] - 1, -1, -1):
            step = kept[b, k]
            v = step[:size]
            linearise_gru(v, GRUPlanes(step[size : 3 * size], none, step[3 * size :], none), slopes)
            transposed_gru(w, zeros, slopes, filters, grid, work, image)
            clear_borders(work.both, grid)
            clear_borders(work.candidate, grid)
            total[: 2 * size] += work.both
            total[2 * size :] += work.candidate
            set_borders(v, grid)
            gru_filter_gradient(work.both, v, offsets, grid, dw_gates[b])
            clear_borders(v, grid)
            _times(v, step[2 * size : 3 * size], work.reset)
            set_borders(work.reset, grid)
            gru_filter_gradient(work.candidate, work.reset, offsets, grid, dw_candidate[b])
            w, image = image, w
        leave(w, dv0[b], grid)
        leave(total, d_part[b], grid)
