"""The gradient of the ConvGRU's filters, summed over cells while its sums stay in registers.

Roofline, per cell, O outputs, C inputs, F x F filters: 2 O C F^2 operations, for all filters of a step as many as it
has. Twenty-seven sums (3 outputs x 9 taps) live in registers while 16 cells at a time go by, whose planes stay in the
first-level cache: 27 fused multiply-adds, two a cycle, and 12 loads, each of two cache lines since taps lie one cell
apart, two lines a cycle. So arithmetic is the bound, narrowly: with 18 sums it was the loads.

Legend: O outputs, C inputs, T taps of one plane, d cotangent of what filters make, x what they read.
"""

from __future__ import annotations

import numpy as np

from planners.compiled.layout import BLOCK, Floats, compiled, fastmath
from planners.compiled.simd import LANES, fma, load, store


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
    for o in range(0, outputs, 3):
        # Of the last ones, what goes twice or thrice is summed alike and written alike.
        o_b, o_c = min(o + 1, outputs - 1), min(o + 2, outputs - 1)
        at_a, at_b = grid.origin + o * length, grid.origin + o_b * length
        at_c = grid.origin + o_c * length
        for x_c in range(channels):
            for t in range(0, len(offsets), 9):
                at = grid.origin + x_c * length
                at_0, at_1, at_2 = at + offsets[t], at + offsets[t + 1], at + offsets[t + 2]
                at_3, at_4, at_5 = at + offsets[t + 3], at + offsets[t + 4], at + offsets[t + 5]
                at_6, at_7, at_8 = at + offsets[t + 6], at + offsets[t + 7], at + offsets[t + 8]
                to_a = (o * channels + x_c) * row + t * LANES
                to_b = (o_b * channels + x_c) * row + t * LANES
                to_c = (o_c * channels + x_c) * row + t * LANES
                a0, a1, a2 = load(sums, to_a), load(sums, to_a + 16), load(sums, to_a + 32)
                a3, a4, a5 = load(sums, to_a + 48), load(sums, to_a + 64), load(sums, to_a + 80)
                a6, a7, a8 = load(sums, to_a + 96), load(sums, to_a + 112), load(sums, to_a + 128)
                b0, b1, b2 = load(sums, to_b), load(sums, to_b + 16), load(sums, to_b + 32)
                b3, b4, b5 = load(sums, to_b + 48), load(sums, to_b + 64), load(sums, to_b + 80)
                b6, b7, b8 = load(sums, to_b + 96), load(sums, to_b + 112), load(sums, to_b + 128)
                c0, c1, c2 = load(sums, to_c), load(sums, to_c + 16), load(sums, to_c + 32)
                c3, c4, c5 = load(sums, to_c + 48), load(sums, to_c + 64), load(sums, to_c + 80)
                c6, c7, c8 = load(sums, to_c + 96), load(sums, to_c + 112), load(sums, to_c + 128)
                for i in range(0, cells, LANES):
                    d_a, d_b, d_c = load(d, at_a + i), load(d, at_b + i), load(d, at_c + i)
                    x_k = load(x, at_0 + i)
                    a0, b0, c0 = fma(d_a, x_k, a0), fma(d_b, x_k, b0), fma(d_c, x_k, c0)
                    x_k = load(x, at_1 + i)
                    a1, b1, c1 = fma(d_a, x_k, a1), fma(d_b, x_k, b1), fma(d_c, x_k, c1)
                    x_k = load(x, at_2 + i)
                    a2, b2, c2 = fma(d_a, x_k, a2), fma(d_b, x_k, b2), fma(d_c, x_k, c2)
                    x_k = load(x, at_3 + i)
                    a3, b3, c3 = fma(d_a, x_k, a3), fma(d_b, x_k, b3), fma(d_c, x_k, c3)
                    x_k = load(x, at_4 + i)
                    a4, b4, c4 = fma(d_a, x_k, a4), fma(d_b, x_k, b4), fma(d_c, x_k, c4)
                    x_k = load(x, at_5 + i)
                    a5, b5, c5 = fma(d_a, x_k, a5), fma(d_b, x_k, b5), fma(d_c, x_k, c5)
                    x_k = load(x, at_6 + i)
                    a6, b6, c6 = fma(d_a, x_k, a6), fma(d_b, x_k, b6), fma(d_c, x_k, c6)
                    x_k = load(x, at_7 + i)
                    a7, b7, c7 = fma(d_a, x_k, a7), fma(d_b, x_k, b7), fma(d_c, x_k, c7)
                    x_k = load(x, at_8 + i)
                    a8, b8, c8 = fma(d_a, x_k, a8), fma(d_b, x_k, b8), fma(d_c, x_k, c8)
                store(sums, to_c, c0), store(sums, to_c + 16, c1), store(sums, to_c + 32, c2)
                store(sums, to_c + 48, c3), store(sums, to_c + 64, c4), store(sums, to_c + 80, c5)
                store(sums, to_c + 96, c6), store(sums, to_c + 112, c7), store(sums, to_c + 128, c8)
                store(sums, to_b, b0), store(sums, to_b + 16, b1), store(sums, to_b + 32, b2)
                store(sums, to_b + 48, b3), store(sums, to_b + 64, b4), store(sums, to_b + 80, b5)
                store(sums, to_b + 96, b6), store(sums, to_b + 112, b7), store(sums, to_b + 128, b8)
                store(sums, to_a, a0), store(sums, to_a + 16, a1), store(sums, to_a + 32, a2)
                store(sums, to_a + 48, a3), store(sums, to_a + 64, a4), store(sums, to_a + 80, a5)
                store(sums, to_a + 96, a6), store(sums, to_a + 112, a7), store(sums, to_a + 128, a8)


@fastmath
def add_lanes(sums: Floats, out: Floats) -> None:
    """Write the sums over the last dimension, of sixteen."""
    for i in range(len(out)):
        total = np.float32(0)
        for lane in range(LANES):
            total += sums[i * LANES + lane]
        out[i] = total
