"""The loop around the compiled step of `vin_kernel`: iterate, and record the last steps for the way back.

It works on the samples first..last-1 of a batch, one after the other, and writes to nothing else: several threads may
share a batch, and the result does not depend on how many there are.

Legend: B samples, G value channels, A actions, T taps, K steps, n cells swept; v value, r reward, z iterate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planners.compiled.layout import BLOCK, Floats, Grid, as_planes, compiled, fastmath, from_planes, set_borders
from planners.compiled.linalg import DIVERGED, SETTLED, growth_limit, relative, verdict
from planners.compiled.tiles import QUICK_FROM, begin_tiles, release_tiles
from planners.compiled.value_iteration.step import (
    ACTIONS_AT_ONCE,
    Ints,
    Shorts,
    field_part,
    reward_part,
    sweep,
    sweep_greedy,
)
from planners.compiled.value_iteration.tile_sweep import (
    tile_field_part,
    tile_part_size,
    tile_reward_part,
    tile_sweep,
    tile_sweep_greedy,
)


class Filters(NamedTuple):
    """Filters of reward and value, plain [G, A, T] and packed for a sweep, and where their taps read.

    Without taps in `r` the reward is given as the reward's part of Q itself.
    """

    r: Floats
    v: Floats
    r_packed: Floats
    v_packed: Floats
    r_offsets: Ints
    v_offsets: Ints
    r_size: int
    v_size: int


class VIResult(NamedTuple):
    """Where `forward` writes: the value [B, G, h, w], its quality [B] and trace [K, B], and the recorded steps.

    before: [B, recorded, G x length] planes the recorded steps started from; greedy: [B, recorded, G x n].
    """

    value: Floats
    residual: Floats
    steps: Ints
    result: NDArray[np.int8]
    trace: Floats
    before: Floats
    greedy: Shorts


class VIGradients(NamedTuple):
    """Where `backward` writes: gradients of r (like it), of both filters [B, G x A x T], and of v0."""

    r: Floats
    w_r: Floats
    w_v: Floats
    v0: Floats


class Schedule(NamedTuple):
    """The steps of a solve: most without a record, then how many with one; whether samples stop, and at what residual.

    stop: Whether a sample's unrecorded steps end when it converges or diverges.
    tolerance: Relative residual that counts as convergence; 0 for none.
    """

    unrecorded: int
    recorded: int
    stop: bool
    tolerance: float


@fastmath
def _is_finite(x: Floats) -> bool:
    total = np.float32(0)
    for value in x.ravel():
        total += value * np.float32(0)
    return total == 0


@fastmath
def _norms(z: Floats, fz: Floats, grid: Grid) -> tuple[float, float]:
    """Return ||f(z) - z|| and ||f(z)|| over the cells of planes."""
    change = size = np.float32(0)
    for c in range(len(z) // grid.length):
        for i in range(grid.height):
            start = c * grid.length + grid.origin + i * grid.stride
            a, b = z[start : start + grid.width], fz[start : start + grid.width]
            for j in range(grid.width):
                change += (b[j] - a[j]) * (b[j] - a[j])
                size += b[j] * b[j]
    return np.sqrt(change), np.sqrt(size)


@compiled
def forward(first, last, r, v0, filters, tiles, grid, schedule, out):  # type: ignore[no-untyped-def]
    """Take the steps of a schedule: unrecorded ones, fewer where a sample stops, then those that are kept.

    Args:
        first: First sample.
        last: One past the last sample.
        r: [B, C, h, w] reward, or [B, A x G, h, w] its part of Q, action-major, when the filters of r have no taps.
        v0: [B, G, h, w] where to start.
        filters: `Filters`.
        tiles: Those of v as `TileFilters`, where tile registers take the steps; None where they don't.
        grid: Layout.
        schedule: `Schedule`.
        out: `VIResult`.
    """
    unrecorded, stop, tolerance = schedule.unrecorded, schedule.stop, schedule.tolerance
    groups, fives = filters.v_packed.shape[0], filters.v_packed.shape[1]
    if tiles is None:
        part = np.empty(groups * grid.blocks * fives * ACTIONS_AT_ONCE * BLOCK, np.float32)
    else:
        part = np.empty(tile_part_size(tiles, grid), np.float32)
        work, quick = begin_tiles(tiles, grid, tiles.pairs), tolerance >= QUICK_FROM
    scratch = np.zeros(groups * grid.length, np.float32)
    sound = _is_finite(filters.r) and _is_finite(filters.v)
    for b in range(first, last):
        z, fz = as_planes(v0[b], grid), scratch
        set_borders(z, grid)
        if filters.r.shape[2] == 0:
            if tiles is None:
                field_part(r[b], filters.v.shape[1], grid, part)
            else:
                tile_field_part(r[b], filters.v.shape[1], grid, part)
        else:
            reward = as_planes(r[b], grid)
            set_borders(reward, grid)
            if tiles is None:
                reward_part(reward, filters.r_packed, filters.r_offsets, grid, part)
            else:
                tile_reward_part(reward, filters.r, filters.r_offsets, grid, part)
        now, limit, size = np.float32(np.inf), np.float32(np.inf), np.float32(0)
        diverged = not (sound and _is_finite(r[b]))
        start = max(np.float32(1), _norms(z, z, grid)[1])
        steps = 0
        while steps < unrecorded and not (diverged and stop):
            if tiles is None:
                sweep(z, part, filters.v_packed, filters.v_offsets, grid, fz, out.greedy[b, 0])
            else:
                tile_sweep(z, part, tiles, grid, work, quick, fz, out.greedy[b, 0])
            change, size = _norms(z, fz, grid)
            now = relative(change, size)
            limit = growth_limit(start, size) if steps == 0 else limit
            out.trace[steps, b] = now
            steps += 1
            result = verdict(now, size, limit, tolerance)
            diverged = result == DIVERGED
            if stop and diverged:
                break
            set_borders(fz, grid)
            z, fz = fz, z
            if stop and result == SETTLED:
                break
        out.trace[steps:unrecorded, b] = now
        for k in range(schedule.recorded):
            out.before[b, k] = z
            if tiles is None:
                sweep_greedy(z, part, filters.v_packed, filters.v_offsets, grid, fz, out.greedy[b, k])
            else:
                tile_sweep_greedy(z, part, tiles, grid, work, quick and k + 1 < schedule.recorded, fz, out.greedy[b, k])
            change, size = _norms(z, fz, grid)
            now = relative(change, size)
            limit = growth_limit(start, size) if unrecorded == 0 and k == 0 else limit
            out.trace[unrecorded + k, b] = now
            set_borders(fz, grid)
            z, fz = fz, z
        if not (sound and _is_finite(r[b])):
            z[:] = np.nan
            now = np.float32(np.inf)
        if unrecorded > 0 and stop:
            limit = np.float32(np.inf)  # judged before the recorded steps
        result = DIVERGED if stop and diverged else verdict(now, size, limit, tolerance)
        from_planes(z, out.value[b], grid)
        out.residual[b], out.steps[b] = now, steps + schedule.recorded
        out.result[b] = result
        scratch = fz
    if tiles is not None:
        release_tiles()
