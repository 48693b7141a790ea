"""Compiled value iteration v' = max_a (W_r,a * r + W_v,a * v), one sample at a time while it stays in the cache.

Roofline, per cell, action and step, F x F filters, one channel: 2 F^2 floating-point operations (18 at F = 3) and one
maximum against 4 bytes, the reward's part of Q, which comes from the second-level cache (A h w floats: 0.9 MiB at 49x49
and A = 100). Fifteen sums (5 actions x 48 cells) live in registers: per tap 15 fused multiply-adds, two a cycle, and 8
loads, two a cycle too; then 15 maxima, which take the place of 15 multiply-adds. So arithmetic is the bound: 90 % of
the peak at F = 3, less the lanes that fall on the border. Q is never written.

The linearisation at v is the greedy policy's transition operator: of all actions only the maximising one counts at a
cell, so a vector-Jacobian product costs 2 F^2 operations a cell, A times fewer than the step. Where actions tie, the
lowest index is the maximising one.

Legend: v value, r reward, q action values, u cotangent, G value channels (1 in VIN; the group's order in SymVIN), A
actions padded to a multiple of 5, T taps = input channels x F x F, n = 48 grid.blocks cells swept per plane.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from planners.compiled.layout import BLOCK, Floats, Grid, compiled
from planners.compiled.simd import LANES, broadcast, fma, item, load, splat, store, where_greater

ACTIONS_AT_ONCE = 5
Ints = NDArray[np.int64]
Shorts = NDArray[np.int16]
_LOWEST = np.float32(-np.inf)


def pack_weights(w: Floats) -> Floats:
    """Return filters [G, A, ...] as a sweep reads them, [G, A / 5, T, 5]; action 0 again fills the last five."""
    w = w.reshape(*w.shape[:2], -1)
    missing = -w.shape[1] % ACTIONS_AT_ONCE
    w = np.concatenate([w, np.repeat(w[:, :1], missing, axis=1)], axis=1)
    by_five = w.reshape(w.shape[0], w.shape[1] // ACTIONS_AT_ONCE, ACTIONS_AT_ONCE, w.shape[2])
    return np.ascontiguousarray(by_five.transpose(0, 1, 3, 2))


@compiled
def reward_part(r, w, offsets, grid, part):  # type: ignore[no-untyped-def]
    """Write W_r * r in the order in which a sweep reads it: by channel, block, five actions, action, cell."""
    k = 0
    for g in range(w.shape[0]):
        for b in range(grid.blocks):
            for five in range(w.shape[1]):
                for a in range(ACTIONS_AT_ONCE):
                    for lane in range(0, BLOCK, LANES):
                        q = splat(np.float32(0))
                        for t in range(w.shape[2]):
                            at = grid.origin + b * BLOCK + lane + offsets[t]
                            q = fma(splat(w[g, five, t, a]), load(r, at), q)
                        store(part, k, q)
                        k += LANES


@compiled
def field_part(q: Floats, actions: int, grid: Grid, part: Floats) -> None:
    """Write the reward's part of Q, given as maps [A x G, h, w] (action-major), in the order of a sweep."""
    groups = q.shape[0] // actions
    padded = actions + -actions % ACTIONS_AT_ONCE
    part[:] = 0
    for g in range(groups):
        for a in range(padded):
            maps = q[(a if a < actions else 0) * groups + g]
            for i in range(grid.height):
                for j in range(grid.width):
                    b, lane = divmod(i * grid.stride + j, BLOCK)
                    part[((g * grid.blocks + b) * padded + a) * BLOCK + lane] = maps[i, j]


@compiled
def _keep(q, a, m, i):  # type: ignore[no-untyped-def]
    """Return the maximum so far and its action, having seen the values q of action a."""
    return where_greater(q, m, q, m), where_greater(q, m, a, i)


def _make_sweep(record: bool) -> Callable[..., None]:
    @compiled
    def sweep(v, part, w, offsets, grid, out, greedy):  # type: ignore[no-untyped-def]
        """Write max_a Q into the cells of `out`, garbage into its border; with `record` also the greedy actions."""
        weights = w.ravel()
        taps = w.shape[2]
        k = 0
        for g in range(w.shape[0]):
            for b in range(grid.blocks):
                first = grid.origin + b * BLOCK
                m0 = m1 = m2 = splat(_LOWEST)
                i0 = i1 = i2 = splat(0)
                i = g * w.shape[1] * taps * ACTIONS_AT_ONCE
                for five in range(w.shape[1]):
                    p0, p1, p2 = load(part, k), load(part, k + 16), load(part, k + 32)
                    q0, q1, q2 = load(part, k + 48), load(part, k + 64), load(part, k + 80)
                    x0, x1, x2 = load(part, k + 96), load(part, k + 112), load(part, k + 128)
                    y0, y1, y2 = load(part, k + 144), load(part, k + 160), load(part, k + 176)
                    z0, z1, z2 = load(part, k + 192), load(part, k + 208), load(part, k + 224)
                    k += ACTIONS_AT_ONCE * BLOCK
                    for t in range(taps):
                        at = first + item(offsets, t)
                        v0, v1, v2 = load(v, at), load(v, at + 16), load(v, at + 32)
                        c = broadcast(weights, i)
                        p0, p1, p2 = fma(c, v0, p0), fma(c, v1, p1), fma(c, v2, p2)
                        c = broadcast(weights, i + 1)
                        q0, q1, q2 = fma(c, v0, q0), fma(c, v1, q1), fma(c, v2, q2)
                        c = broadcast(weights, i + 2)
                        x0, x1, x2 = fma(c, v0, x0), fma(c, v1, x1), fma(c, v2, x2)
                        c = broadcast(weights, i + 3)
                        y0, y1, y2 = fma(c, v0, y0), fma(c, v1, y1), fma(c, v2, y2)
                        c = broadcast(weights, i + 4)
                        z0, z1, z2 = fma(c, v0, z0), fma(c, v1, z1), fma(c, v2, z2)
                        i += ACTIONS_AT_ONCE
                    a = splat(five * ACTIONS_AT_ONCE)
                    (m0, i0), (m1, i1), (m2, i2) = _keep(p0, a, m0, i0), _keep(p1, a, m1, i1), _keep(p2, a, m2, i2)
                    a = splat(five * ACTIONS_AT_ONCE + 1)
                    (m0, i0), (m1, i1), (m2, i2) = _keep(q0, a, m0, i0), _keep(q1, a, m1, i1), _keep(q2, a, m2, i2)
                    a = splat(five * ACTIONS_AT_ONCE + 2)
                    (m0, i0), (m1, i1), (m2, i2) = _keep(x0, a, m0, i0), _keep(x1, a, m1, i1), _keep(x2, a, m2, i2)
                    a = splat(five * ACTIONS_AT_ONCE + 3)
                    (m0, i0), (m1, i1), (m2, i2) = _keep(y0, a, m0, i0), _keep(y1, a, m1, i1), _keep(y2, a, m2, i2)
                    a = splat(five * ACTIONS_AT_ONCE + 4)
                    (m0, i0), (m1, i1), (m2, i2) = _keep(z0, a, m0, i0), _keep(z1, a, m1, i1), _keep(z2, a, m2, i2)
                at = g * grid.length + first
                store(out, at, m0), store(out, at + 16, m1), store(out, at + 32, m2)
                if record:
                    at = (g * grid.blocks + b) * BLOCK
                    store(greedy, at, i0), store(greedy, at + 16, i1), store(greedy, at + 32, i2)

    return sweep


sweep = _make_sweep(False)
sweep_greedy = _make_sweep(True)


@compiled
def filter_gradient(u, greedy, x, size, offsets, grid, runs):  # type: ignore[no-untyped-def]
    """Add the gradient of the greedy filters that read the planes x.

    The taps of one row of a filter read neighbouring cells, so one vector serves them all; its other lanes are waste.

    Args:
        u: Planes [G x length] of the cotangent, zero on the border.
        greedy: [G x n] action of each cell.
        x: Planes that the filters read, borders set.
        size: F.
        offsets: [T].
        grid: Layout.
        runs: [G, A, T / F, 16], added to; of the last dimension the first F count.
    """
    flat = runs.ravel()
    rows = runs.shape[2]
    n = grid.blocks * BLOCK
    for g in range(runs.shape[0]):
        for j in range(n):
            cell = grid.origin + j
            c = broadcast(u, g * grid.length + cell)
            at = (g * runs.shape[1] + item(greedy, g * n + j)) * rows * LANES
            for row in range(rows):
                store(flat, at, fma(c, load(x, cell + item(offsets, row * size)), load(flat, at)))
                at += LANES


@compiled
def scatter_field(u: Floats, greedy: Shorts, actions: int, grid: Grid, dq: Floats) -> None:
    """Add u [G x length] to the maximising actions' maps in dq [A x G, h, w]."""
    groups = dq.shape[0] // actions
    n = grid.blocks * BLOCK
    for g in range(groups):
        for i in range(grid.height):
            for j in range(grid.width):
                cell = i * grid.stride + j
                dq[greedy[g * n + cell] * groups + g, i, j] += u[g * grid.length + grid.origin + cell]


@compiled
def greedy_filters(greedy: Shorts, w: Floats, planes: Floats) -> None:
    """Write the greedy action's filter of each cell, tap by tap: planes [G, T, n] from greedy [G x n], w [G, A, T]."""
    n = planes.shape[2]
    for g in range(w.shape[0]):
        for t in range(w.shape[2]):
            for j in range(n):
                planes[g, t, j] = w[g, greedy[g * n + j], t]


@compiled
def transposed_step(u: Floats, planes: Floats, offsets: Ints, grid: Grid, out: Floats) -> None:
    """Add J^T u: planes [G x length] from u, zero on the border; what belongs to the border is left there."""
    n = planes.shape[2]
    for g in range(planes.shape[0]):
        source = u[g * grid.length + grid.origin :]
        for t in range(planes.shape[1]):
            target = out[grid.origin + offsets[t] :]
            filters = planes[g, t]
            for j in range(n):
                target[j] += filters[j] * source[j]
