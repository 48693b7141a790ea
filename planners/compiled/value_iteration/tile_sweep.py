"""A step of value iteration on tile registers: all Q of 32 cells, 32 at a time, and their maxima while they are near.

Roofline, per cell, A actions, G value channels, F x F filters: 6 A G^2 F^2 products of bfloat16 numbers, six for one of
float32 (`planners.compiled.tiles`), and for each Q a load from the first-level cache, an addition and a maximum, which
take the vector registers a fifth of that time at G = 8, F = 3.

Legend: as in `planners.compiled.value_iteration.step`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planners.compiled.layout import BLOCK, Floats, Grid, compiled
from planners.compiled.simd import LANES, fma, load, plus, splat, store, where_greater
from planners.compiled.tiles import CELLS, OUTPUTS, TILES, TileFilters, blocks_of_cells, gather, multiply, split

_LOWEST = np.float32(-np.inf)


@compiled
def tile_part_size(tiles: TileFilters, grid: Grid) -> int:
    """Return how many floats the reward's part of Q takes: by value channel, block of 32 cells, action, cell."""
    return blocks_of_cells(grid) * tiles.outputs * CELLS


@compiled
def tile_reward_part(r, w, offsets, grid, part):  # type: ignore[no-untyped-def]
    """Write W_r * r, filters w [G, A, T], r planes with borders set."""
    at = 0
    for g in range(w.shape[0]):
        for first in range(grid.origin, grid.origin + blocks_of_cells(grid) * CELLS, CELLS):
            for a in range(w.shape[1]):
                q0 = q1 = splat(np.float32(0))
                for t in range(w.shape[2]):
                    weight, cell = splat(w[g, a, t]), first + offsets[t]
                    q0, q1 = fma(weight, load(r, cell), q0), fma(weight, load(r, cell + LANES), q1)
                store(part, at, q0), store(part, at + LANES, q1)
                at += CELLS


@compiled
def tile_field_part(q: Floats, actions: int, grid: Grid, part: Floats) -> None:
    """Write the reward's part of Q where it is given as maps [A x G, h, w], action-major."""
    groups, blocks = q.shape[0] // actions, blocks_of_cells(grid)
    part[:] = 0
    for g in range(groups):
        for a in range(actions):
            for i in range(grid.height):
                row, j = q[a * groups + g, i], 0
                while j < grid.width:
                    block, lane = divmod(i * grid.stride + j, CELLS)
                    count, at = min(grid.width - j, CELLS - lane), ((g * blocks + block) * actions + a) * CELLS + lane
                    for k in range(count):
                        part[at + k] = row[j + k]
                    j += count


def _make_sweep(record: bool) -> Callable[..., None]:
    @compiled
    def sweep(v, part, tiles, grid, work, quick, out, greedy):  # type: ignore[no-untyped-def]
        """Write max_a Q into the cells of `out`, garbage into its border; with `record` also the greedy actions."""
        actions = tiles.outputs // tiles.channels
        blocks, n = blocks_of_cells(grid), grid.blocks * BLOCK
        split(v, tiles.channels, grid, work.words)
        for block in range(blocks):
            first, near = block * CELLS, block * actions * CELLS
            gather(work.words, tiles, grid.origin + first, work.cells, quick)
            g = a = 0
            m0 = m1 = splat(_LOWEST)
            i0 = i1 = splat(0)
            batches = (tiles.outputs + OUTPUTS - 1) // OUTPUTS
            for turn in range(batches + 1):
                if turn < batches:
                    multiply(tiles, work, grid.origin + first, grid.length, turn, turn % 2 * TILES, quick)
                # What was just written is not looked at before the next products are under way.
                row, base = 0, (turn - 1) % 2 * TILES
                rows = min(OUTPUTS, tiles.outputs - (turn - 1) * OUTPUTS) if turn > 0 else 0
                while row < rows:
                    last = min(rows, row + actions - a)
                    for k in range(row, last):
                        at = base + k * CELLS
                        q0, q1 = load(work.products, at), load(work.products, at + LANES)
                        q0, q1 = plus(q0, load(part, near)), plus(q1, load(part, near + LANES))
                        if record:
                            i0, i1 = where_greater(q0, m0, splat(a), i0), where_greater(q1, m1, splat(a), i1)
                        m0, m1 = where_greater(q0, m0, q0, m0), where_greater(q1, m1, q1, m1)
                        near, a = near + CELLS, a + 1
                    row = last
                    if a == actions:
                        at = g * grid.length + grid.origin + first
                        store(out, at, m0), store(out, at + LANES, m1)
                        if record:
                            store(greedy, g * n + first, i0)
                            if first + LANES < n:
                                store(greedy, g * n + first + LANES, i1)
                        g, a, near = g + 1, 0, near + (blocks - 1) * actions * CELLS
                        m0 = m1 = splat(_LOWEST)
                        i0 = i1 = splat(0)

    return sweep


tile_sweep = _make_sweep(False)
tile_sweep_greedy = _make_sweep(True)
