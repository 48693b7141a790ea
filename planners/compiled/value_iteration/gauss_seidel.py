"""Gauss-Seidel value iteration: cells are updated in place, so one sweep carries value as far as its direction goes.

A sweep goes through the rows down or up and through each row right or left; four sweeps in turn take every direction.
Forward iteration moves value by one filter's reach per step, a sweep along the whole of every monotone path. The fixed
points are those of the step itself. Only adjoints that differentiate at the fixed point can use it: there is no record
of steps to go back through.

Roofline, per cell, action and sweep, F x F filters, G value channels: 2 G F^2 operations, as a step has. Lanes are
actions, because neighbouring cells depend on each other; the maximum over lanes and the wait for the neighbour's value
make a sweep two to four times as long as a step.

Legend: v value, r reward, q action values, A actions padded to a multiple of 16, T taps = input channels x F x F.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planners.compiled.layout import Floats, Grid, as_planes, compiled, from_planes, set_borders
from planners.compiled.linalg import DIVERGED, MAX_STEPS, growth_limit, norm, relative, verdict
from planners.compiled.simd import LANES, broadcast, fma, highest, item, load, splat, store, where_greater
from planners.compiled.value_iteration.step import Ints


class SweepFilters(NamedTuple):
    """Filters of reward and value by tap, [G, T, A padded], where their taps read, and A before padding."""

    r: Floats
    v: Floats
    r_offsets: Ints
    v_offsets: Ints
    actions: int


def pack_by_tap(w: Floats, size: int) -> Floats:
    """Return filters [G, A, T] as [G, T, A], actions padded by action 0, the row neighbours' taps last."""
    missing = -w.shape[1] % LANES
    w = np.concatenate([w, np.repeat(w[:, :1], missing, axis=1)], axis=1)
    return np.ascontiguousarray(w.transpose(0, 2, 1)[:, tap_order(w.shape[2], size)])


def tap_order(taps: int, size: int) -> Ints:
    """Return the taps with those of a row's neighbours last: their values come late, and nothing should wait."""
    middle = size // 2
    place = np.arange(taps) % (size * size)
    late = (place // size == middle) & (abs(place % size - middle) == 1)
    return np.argsort(late, kind="stable").astype(np.int64)


@compiled
def _reward_by_cell(r, w, offsets, grid, part):  # type: ignore[no-untyped-def]
    """Write W_r * r by channel, cell and action; r planes with borders set."""
    for g in range(w.shape[0]):
        weights, k = w[g].ravel(), g * grid.height * grid.width * w.shape[2]
        for i in range(grid.height):
            for j in range(grid.width):
                cell = grid.origin + i * grid.stride + j
                for a in range(0, w.shape[2], LANES):
                    q = splat(np.float32(0))
                    for t in range(w.shape[1]):
                        q = fma(load(weights, t * w.shape[2] + a), broadcast(r, cell + item(offsets, t)), q)
                    store(part, k, q)
                    k += LANES


@compiled
def _field_by_cell(q: Floats, actions: int, grid: Grid, part: Floats) -> None:
    """Write the reward's part of Q, given as maps [A x G, h, w] (action-major), by channel, cell and action."""
    groups = q.shape[0] // actions
    padded = actions + -actions % LANES
    k = 0
    for g in range(groups):
        for i in range(grid.height):
            for j in range(grid.width):
                for a in range(padded):
                    part[k] = q[(a if a < actions else 0) * groups + g, i, j]
                    k += 1


@compiled
def _sweep(v, part, w, offsets, grid, up, left):  # type: ignore[no-untyped-def]
    """Update all cells of the planes v in place; return the norms of the change and of the new value."""
    actions, taps = w.shape[2], w.shape[1]
    change = size = np.float32(0)
    for row in range(grid.height):
        i = grid.height - 1 - row if up else row
        for column in range(grid.width):
            j = grid.width - 1 - column if left else column
            cell = grid.origin + i * grid.stride + j
            for g in range(w.shape[0]):
                weights = w[g].ravel()
                k = ((g * grid.height + i) * grid.width + j) * actions
                best = splat(np.float32(-np.inf))
                for a in range(0, actions, LANES):
                    q = load(part, k + a)
                    for t in range(taps):
                        q = fma(load(weights, t * actions + a), broadcast(v, cell + item(offsets, t)), q)
                    best = where_greater(q, best, q, best)
                new, at = highest(best), cell + g * grid.length
                change += (new - v[at]) * (new - v[at])
                size += new * new
                v[at] = new
    return np.sqrt(change), np.sqrt(size)


@compiled
def sweep_batch(first, last, r, v0, filters, grid, solver, out):  # type: ignore[no-untyped-def]
    """Sweep the samples first..last-1 until they stop.

    Args:
        first: First sample.
        last: One past the last sample.
        r: [B, C, h, w] reward, or [B, A x G, h, w] its part of Q, action-major, when the filters of r have no taps.
        v0: [B, G, h, w].
        filters: `SweepFilters`.
        grid: Layout.
        solver: max_steps and tolerance.
        out: Value [B, G, h, w], change [B], sweeps [B], result [B], trace [K, B], written.
    """
    max_steps, tolerance = solver
    w_r, w_v = filters.r, filters.v
    value, residual, steps, results, trace = out
    part = np.empty(w_v.shape[0] * grid.height * grid.width * w_v.shape[2], np.float32)
    sound_filters = np.isfinite(norm(w_r.ravel())) and np.isfinite(norm(w_v.ravel()))
    for b in range(first, last):
        z = as_planes(v0[b], grid)
        if w_r.shape[1] == 0:
            _field_by_cell(r[b], filters.actions, grid, part)
        else:
            reward = as_planes(r[b], grid)
            set_borders(reward, grid)
            _reward_by_cell(reward, w_r, filters.r_offsets, grid, part)
        start, limit, now = max(np.float32(1), norm(z)), np.float32(np.inf), np.float32(np.inf)
        # Comparisons in a maximum drop what is not a number, so inputs are looked at first.
        sound = sound_filters and np.isfinite(norm(part)) and np.isfinite(start)
        result, k = MAX_STEPS if sound else DIVERGED, 0
        while k < max_steps and result == MAX_STEPS:
            set_borders(z, grid)
            change, size = _sweep(z, part, w_v, filters.v_offsets, grid, k % 2 == 1, k % 4 == 1 or k % 4 == 2)
            now = relative(change, size)
            limit = growth_limit(start, size) if k == 0 else limit
            trace[k, b] = now
            k += 1
            result = verdict(now, size, limit, tolerance)
        trace[k:, b] = now
        from_planes(z, value[b], grid)
        residual[b], steps[b], results[b] = now, k, result
