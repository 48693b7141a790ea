"""The convolution of the compiled ConvGRU: 48 cells of all outputs, their sums in registers.

Roofline: fifteen sums (5 outputs x 48 cells) live in registers: per tap 15 fused multiply-adds, two a cycle, and 8
loads of 11 cache lines, two lines a cycle. Arithmetic is the bound while what 48 cells and their neighbours read stays
in the first-level cache: 3 x 256 bytes of each input plane at F = 3.

Legend: T taps = input channels x F x F.
"""

from __future__ import annotations

from collections.abc import Callable

from planners.compiled.layout import compiled
from planners.compiled.simd import broadcast, fma, item, load, store

OUTPUTS_AT_ONCE = 5


def _make_convolution(add: bool) -> Callable[..., None]:
    @compiled
    def convolve_block(x, bias, w, offsets, grid, first, out):  # type: ignore[no-untyped-def]
        """Write bias + W * x, or add W * x, in 48 cells of planes `out` from `first` on, garbage in their border."""
        weights = w.ravel()
        taps, length = w.shape[1], grid.length
        i = 0
        for five in range(w.shape[0]):
            at = first + five * OUTPUTS_AT_ONCE * length
            if add:
                a0, a1, a2 = load(out, at), load(out, at + 16), load(out, at + 32)
                at += length
                b0, b1, b2 = load(out, at), load(out, at + 16), load(out, at + 32)
                at += length
                c0, c1, c2 = load(out, at), load(out, at + 16), load(out, at + 32)
                at += length
                d0, d1, d2 = load(out, at), load(out, at + 16), load(out, at + 32)
                at += length
                e0, e1, e2 = load(out, at), load(out, at + 16), load(out, at + 32)
            else:
                at = five * OUTPUTS_AT_ONCE
                a0, b0, c0 = broadcast(bias, at), broadcast(bias, at + 1), broadcast(bias, at + 2)
                d0, e0 = broadcast(bias, at + 3), broadcast(bias, at + 4)
                a1, b1, c1, d1, e1 = a0, b0, c0, d0, e0
                a2, b2, c2, d2, e2 = a0, b0, c0, d0, e0
            for t in range(taps):
                at = first + item(offsets, t)
                x0, x1, x2 = load(x, at), load(x, at + 16), load(x, at + 32)
                k = broadcast(weights, i)
                a0, a1, a2 = fma(k, x0, a0), fma(k, x1, a1), fma(k, x2, a2)
                k = broadcast(weights, i + 1)
                b0, b1, b2 = fma(k, x0, b0), fma(k, x1, b1), fma(k, x2, b2)
                k = broadcast(weights, i + 2)
                c0, c1, c2 = fma(k, x0, c0), fma(k, x1, c1), fma(k, x2, c2)
                k = broadcast(weights, i + 3)
                d0, d1, d2 = fma(k, x0, d0), fma(k, x1, d1), fma(k, x2, d2)
                k = broadcast(weights, i + 4)
                e0, e1, e2 = fma(k, x0, e0), fma(k, x1, e1), fma(k, x2, e2)
                i += OUTPUTS_AT_ONCE
            at = first + five * OUTPUTS_AT_ONCE * length
            store(out, at, a0), store(out, at + 16, a1), store(out, at + 32, a2)
            at += length
            store(out, at, b0), store(out, at + 16, b1), store(out, at + 32, b2)
            at += length
            store(out, at, c0), store(out, at + 16, c1), store(out, at + 32, c2)
            at += length
            store(out, at, d0), store(out, at + 16, d1), store(out, at + 32, d2)
            at += length
            store(out, at, e0), store(out, at + 16, e1), store(out, at + 32, e2)

    return convolve_block


convolve_block, add_block = _make_convolution(False), _make_convolution(True)
