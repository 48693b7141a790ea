"""K steps of the compiled ConvGRU kept for the way back, and the way back through them.

Roofline of the way back, per cell and step: a transposed step (6 S^2 F^2 operations) and the filters' gradient (as many
again). Of these, eighteen sums (2 outputs x 9 taps) live in registers while 16 cells at a time go by, whose planes stay
in the first-level cache: 18 fused multiply-adds and 11 loads. A step keeps 16 S bytes a cell: v, u, s and n.

Legend: B samples, S state channels, K steps; v state, r reward, p = s v, w cotangent of the state.
"""

from __future__ import annotations

import numpy as np

from planners.cores.gru_kernel import GRUPlanes, clear_borders, gru_step, linearise_gru, transposed_gru
from planners.cores.gru_solver import compare
from planners.cores.lanes import LANES, fma, load, store
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


@compiled
def gru_filter_gradient(d, x, channels, offsets, grid, sums):  # type: ignore[no-untyped-def]
    """Add the gradient of filters that read planes x, borders set, given d, the cotangent of what they make.

    Args:
        d: Planes [O x length], zero on the border.
        x: Planes [C x length] or more.
        channels: C.
        offsets: [T], T a multiple of 9, of one plane.
        grid: Layout.
        sums: [O x C x T x 16], added to; the gradient is the sum over the last dimension.
    """
    length, cells = grid.length, grid.blocks * BLOCK
    outputs, row = len(d) // length, len(offsets) * LANES
    for o in range(0, outputs, 2):
        at_a = grid.origin + o * length
        pair = 1 if o + 1 < outputs else 0  # of an odd number, the last goes alone and twice
        at_b = at_a + pair * length
        for c in range(channels):
            for t in range(0, len(offsets), 9):
                at = grid.origin + c * length
                at_0, at_1, at_2 = at + offsets[t], at + offsets[t + 1], at + offsets[t + 2]
                at_3, at_4, at_5 = at + offsets[t + 3], at + offsets[t + 4], at + offsets[t + 5]
                at_6, at_7, at_8 = at + offsets[t + 6], at + offsets[t + 7], at + offsets[t + 8]
                to_b = ((o + pair) * channels + c) * row + t * LANES
                to_a = (o * channels + c) * row + t * LANES
                b0, b1, b2 = load(sums, to_b), load(sums, to_b + 16), load(sums, to_b + 32)
                b3, b4, b5 = load(sums, to_b + 48), load(sums, to_b + 64), load(sums, to_b + 80)
                b6, b7, b8 = load(sums, to_b + 96), load(sums, to_b + 112), load(sums, to_b + 128)
                a0, a1, a2 = load(sums, to_a), load(sums, to_a + 16), load(sums, to_a + 32)
                a3, a4, a5 = load(sums, to_a + 48), load(sums, to_a + 64), load(sums, to_a + 80)
                a6, a7, a8 = load(sums, to_a + 96), load(sums, to_a + 112), load(sums, to_a + 128)
                for i in range(0, cells, LANES):
                    d_a, d_b = load(d, at_a + i), load(d, at_b + i)
                    x0, x1, x2 = load(x, at_0 + i), load(x, at_1 + i), load(x, at_2 + i)
                    a0, a1, a2 = fma(d_a, x0, a0), fma(d_a, x1, a1), fma(d_a, x2, a2)
                    b0, b1, b2 = fma(d_b, x0, b0), fma(d_b, x1, b1), fma(d_b, x2, b2)
                    x0, x1, x2 = load(x, at_3 + i), load(x, at_4 + i), load(x, at_5 + i)
                    a3, a4, a5 = fma(d_a, x0, a3), fma(d_a, x1, a4), fma(d_a, x2, a5)
                    b3, b4, b5 = fma(d_b, x0, b3), fma(d_b, x1, b4), fma(d_b, x2, b5)
                    x0, x1, x2 = load(x, at_6 + i), load(x, at_7 + i), load(x, at_8 + i)
                    a6, a7, a8 = fma(d_a, x0, a6), fma(d_a, x1, a7), fma(d_a, x2, a8)
                    b6, b7, b8 = fma(d_b, x0, b6), fma(d_b, x1, b7), fma(d_b, x2, b8)
                store(sums, to_b, b0), store(sums, to_b + 16, b1), store(sums, to_b + 32, b2)
                store(sums, to_b + 48, b3), store(sums, to_b + 64, b4), store(sums, to_b + 80, b5)
                store(sums, to_b + 96, b6), store(sums, to_b + 112, b7), store(sums, to_b + 128, b8)
                store(sums, to_a, a0), store(sums, to_a + 16, a1), store(sums, to_a + 32, a2)
                store(sums, to_a + 48, a3), store(sums, to_a + 64, a4), store(sums, to_a + 80, a5)
                store(sums, to_a + 96, a6), store(sums, to_a + 112, a7), store(sums, to_a + 128, a8)


@reordered
def _times(a: Floats, b: Floats, out: Floats) -> None:
    for i in range(len(a)):
        out[i] = a[i] * b[i]


@reordered
def _add_lanes(sums: Floats, out: Floats) -> None:
    for i in range(len(out)):
        total = np.float32(0)
        for lane in range(LANES):
            total += sums[i * LANES + lane]
        out[i] = total


@compiled
def back_through_gru(first, last, u, filters, offsets, grid, kept, dv0, d_part, dw_gates, dw_candidate, to_start):  # type: ignore[no-untyped-def]
    """Go back through the kept steps from u [B, S, h, w], the cotangent of the last one's value.

    Args:
        first: First sample.
        last: One past the last sample.
        u: [B, S, h, w].
        filters: `GRUFilters`.
        offsets: [T] of one plane, T a multiple of 9.
        grid: Layout.
        kept: As `unroll_gru` wrote it.
        dv0: [B, S, h, w], written.
        d_part: [B, 3 S, h, w] gradient to the reward's part of gates and candidate, written.
        dw_gates: [B, 2 S x S x T], written.
        dw_candidate: [B, S x S x T], written.
        to_start: Whether dv0 is wanted.
    """
    channels, size = u.shape[1], u.shape[1] * grid.length
    sums_gates = np.empty(dw_gates.shape[1] * LANES, np.float32)
    sums_candidate = np.empty(dw_candidate.shape[1] * LANES, np.float32)
    work = GRUPlanes(
        np.zeros(0, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(2 * size, np.float32)
    )
    slopes, zeros, none = np.empty(5 * size, np.float32), np.zeros(size, np.float32), np.zeros(0, np.float32)
    for b in range(first, last):
        w, image, total = as_planes(u[b], grid), np.zeros(size, np.float32), np.zeros(3 * size, np.float32)
        sums_gates[:] = 0
        sums_candidate[:] = 0
        for k in range(kept.shape[1] - 1, -1, -1):
            step = kept[b, k]
            v = step[:size]
            linearise_gru(v, GRUPlanes(step[size : 3 * size], none, step[3 * size :], none), slopes)
            transposed_gru(w, zeros, slopes, filters, grid, work, image if to_start or k > 0 else none)
            clear_borders(work.both, grid)
            clear_borders(work.candidate, grid)
            total[: 2 * size] += work.both
            total[2 * size :] += work.candidate
            set_borders(v, grid)
            gru_filter_gradient(work.both, v, channels, offsets, grid, sums_gates)
            clear_borders(v, grid)
            _times(v, step[2 * size : 3 * size], work.reset)
            set_borders(work.reset, grid)
            gru_filter_gradient(work.candidate, work.reset, channels, offsets, grid, sums_candidate)
            w, image = image, w
        leave(w, dv0[b], grid)
        leave(total, d_part[b], grid)
        _add_lanes(sums_gates, dw_gates[b])
        _add_lanes(sums_candidate, dw_candidate[b])
