"""The loop around the compiled ConvGRU: forward iteration and Anderson's, for the state and for the adjoint vector.

It works on the samples first..last-1 of a batch, one after the other, and writes to nothing else: several threads may
share a batch, and the result does not depend on how many there are.

Legend: B samples, S state channels, K steps, m history depth; z iterate, w adjoint vector. Planes have zero borders, so
flat inner products are those of the maps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planners.compiled.conv_gru.step import GRUPlanes, gru_step, linearise_gru, transposed_gru
from planners.compiled.conv_gru.tile_step import tile_gru_step, tile_transposed_gru
from planners.compiled.layout import Floats, as_planes, compiled, fastmath, from_planes, to_planes
from planners.compiled.linalg import (
    DIVERGED,
    MAX_STEPS,
    anderson_weights,
    compare,
    growth_limit,
    inner,
    norm,
    relative,
    verdict,
)
from planners.compiled.tiles import begin_tiles, release_tiles
from planners.compiled.value_iteration.step import Ints


class GRUResult(NamedTuple):
    """Where `solve_gru` writes: value [B, S, h, w], its quality [B] and trace [K, B]."""

    value: Floats
    residual: Floats
    steps: Ints
    result: NDArray[np.int8]
    trace: Floats


@fastmath
def _remember(z: Floats, z_old: Floats, change: Floats, change_old: Floats, mixing: float, dc: Floats, move: Floats):  # type: ignore[no-untyped-def]
    """Write the latest difference of changes, and the move that it stands for."""
    for i in range(len(change)):
        dc[i] = change[i] - change_old[i]
        move[i] = z[i] - z_old[i] + mixing * dc[i]


@fastmath
def _extrapolate(z: Floats, change: Floats, moves: Floats, gamma: Floats, mixing: float, out: Floats) -> None:
    """Write z + mixing change - sum_i gamma_i moves_i."""
    for i in range(len(change)):
        out[i] = z[i] + mixing * change[i]
    for k in range(len(gamma)):
        if gamma[k] != 0:
            g, move = gamma[k], moves[k]
            for i in range(len(change)):
                out[i] -= g * move[i]


@compiled
def solve_gru(first, last, start, reward, kept, filters, tiles, grid, quick, options, out):  # type: ignore[no-untyped-def]
    """Solve v = f(v) from v = start; or, given what a step kept, w = J^T w + start from w = start, J that step's.

    Args:
        first: First sample.
        last: One past the last sample.
        start: [B, S, h, w].
        reward: [B, 1, h, w].
        kept: [B, 1, 4 S x length] planes v, u, s, n of the step; or [B, 0, 0].
        filters: `GRUFilters`.
        tiles: `GRUTiles`, where tile registers take the steps; None where they don't.
        grid: Layout.
        quick: Whether three products of bfloat16 numbers will do for one of float32, before the last step.
        options: `Options`.
        out: `GRUResult`.
    """
    size, adjoint = start.shape[1] * grid.length, kept.shape[1] > 0
    depth, mixing = options.depth, np.float32(options.mixing)
    planes = GRUPlanes(
        np.zeros(2 * size, np.float32),
        np.zeros(size + grid.length, np.float32),
        np.zeros(size, np.float32),
        np.zeros(2 * size if adjoint else 0, np.float32),
    )
    finite_filters = np.isfinite(norm(filters.gates.ravel())) and np.isfinite(norm(filters.candidate.ravel()))
    finite_filters &= np.isfinite(norm(filters.gates_bias)) and np.isfinite(norm(filters.candidate_bias))
    if tiles is not None:
        work = begin_tiles(tiles.gates, grid, start.shape[1] // 2 + 1)
    slopes, none = np.empty(5 * size if adjoint else 0, np.float32), np.zeros(0, np.float32)
    for b in range(first, last):
        z, given = np.zeros(size + grid.length, np.float32), as_planes(reward[b], grid)
        to_planes(start[b], z, grid)
        z[size:] = given
        fz = z.copy()
        if adjoint:
            step = kept[b, 0]
            linearise_gru(step[:size], GRUPlanes(step[size : 3 * size], none, step[3 * size :], none), slopes)
            given = z[:size].copy()
            z, fz = z[:size], fz[:size]
        best, lowest, now = z[:size].copy(), np.float32(np.inf), np.float32(np.inf)
        moves, changes = np.zeros((depth, size), np.float32), np.zeros((depth, size), np.float32)
        gram, against = np.zeros((depth, depth)), np.zeros(depth)
        z_old, change, change_old = z.copy(), np.zeros(size, np.float32), np.zeros(size, np.float32)
        limit, result, k = np.float32(0), MAX_STEPS, 0
        # The compiled tanh cuts off what is not a number: nothing would show that an input was none.
        sound = np.isfinite(norm(given)) and np.isfinite(norm(z)) and finite_filters
        while k < options.max_steps:
            if tiles is not None:
                three = quick and k + 1 < options.max_steps
                if adjoint:
                    tile_transposed_gru(z, given, slopes, tiles, filters, grid, planes, work, three, fz)
                else:
                    tile_gru_step(z, tiles, filters, grid, planes, work, three, fz)
            elif adjoint:
                transposed_gru(z, given, slopes, filters, grid, planes, fz)
            else:
                gru_step(z, filters, grid, planes, fz)
            difference, length = compare(z, fz, change)
            now = relative(difference, length) if sound else np.float32(np.inf)
            limit = growth_limit(norm(z[:size]), length) if k == 0 else limit
            out.trace[k, b] = now
            k += 1
            result = verdict(now, length, limit, options.tolerance)
            if result == DIVERGED:
                lowest = now if depth == 0 else lowest
                break
            if depth == 0:
                z, fz, lowest = fz, z, now
            elif now < lowest:
                best[:] = z[:size]
                lowest = now
            if result != MAX_STEPS or k == options.max_steps:
                break
            if depth > 0:
                gamma = np.zeros(depth)
                if k > 1:
                    slot = (k - 2) % depth
                    _remember(z, z_old, change, change_old, mixing, changes[slot], moves[slot])
                    for i in range(depth):
                        before, against[i] = against[i], inner(changes[i], change)
                        # <dc_i, dc> of dc = change - change_old, where dc_i is as old as `before`.
                        gram[slot, i] = gram[i, slot] = against[i] - before
                    gram[slot, slot] = inner(changes[slot], changes[slot])
                    gamma = anderson_weights(gram, against, options.weight)
                _extrapolate(z, change, moves, gamma.astype(np.float32), mixing, z_old)
                z, z_old, change, change_old = z_old, z, change_old, change
        out.trace[k:, b] = now
        from_planes(z[:size] if depth == 0 else best, out.value[b], grid)
        out.residual[b], out.steps[b], out.result[b] = lowest, k, result
    if tiles is not None:
        release_tiles()
