"""Convolutions on a processor's tile registers (Intel AMX), where it has some: of float32 numbers, by bfloat16 numbers.

A float32 number is the sum of three bfloat16 numbers, high + middle + low. Of the nine products of two such sums six
are kept, h h, h m, m h, m m, h l and l h; the others are below 2^-25 of the product, less than float32 rounds. Sums are
of float32, small products first: the results are nearer to the exact ones than a loop of fused multiply-adds comes.

*Quick* products are the three largest alone, which leave an error of about 2^-18 of each, 1e-6 of a step's value. What
stops at a residual of 1e-5 or more (`QUICK_FROM`; the default is 1e-4) iterates by them: its own tolerance leaves out
ten times as much. The last step, whose residual is told and whose gradient is taken, has all six in any case.

Roofline: a product of two tiles, 16 outputs x 32 numbers x 16 cells, takes 16 cycles at best, 512 multiply-adds a
cycle where vector registers do 32; on real numbers we measured 26. Four share two tiles of filters, loaded once for up
to three parts of the cells, and two of cells, whose rows lie across lines of the cache: loading is nearly as long.

Legend: O outputs, C input channels, T taps of one plane, P pairs = T x ceil(C / 2): what a tile multiplies at once are
pairs of channels, two bfloat16 numbers in one word of 32 bits.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planners.compiled.layout import BLOCK, Floats, Grid, compiled
from planners.compiled.simd import LANES, broadcast, fma, item, load, nearest_bfloat16, paired, plus, splat, store
from planners.compiled.tile_registers import configure, move, mover, on_registers

CELLS = 2 * LANES
"""Cells that are multiplied at once: two tiles beside each other."""
OUTPUTS = 32
"""Outputs that are made at once: two tiles below each other."""
TILE = LANES * LANES
TILES = OUTPUTS * CELLS
TAPS_OF_A_TILE = 2 * LANES
# UNSPECIFIED: the arithmetic; see docs/decisions/0073-float32-by-bfloat16.md.
QUICK_FROM = 1e-5
"""Tolerance from which on three products will do."""


class TileFilters(NamedTuple):
    """Filters as tiles, and what their products read.

    words: [O / 32 rounded up x n x 2 x 256] pairs of bfloat16: of each 32 outputs n times two tiles.
    starts: Where the tiles of cells that are read in place, rows a plane apart, lie in the words of `split`, relative
        to a cell; of the high part.
    sources: [tiles x 16] where the rows of those that are gathered lie.
    full: Gathered tiles that are kept part by part.
    rest: Tiles in which each product has rows of its own, of the pairs that fill no tile.
    quick_rest: How many of them, the last, have the three largest products.
    pairs: Pairs of channels, ceil(C / 2).
    channels: C.
    outputs: O.
    """

    words: Floats
    starts: NDArray[np.int64]
    sources: NDArray[np.int64]
    full: int
    rest: int
    quick_rest: int
    pairs: int
    channels: int
    outputs: int


class TileWork(NamedTuple):
    """Memory to work on: words of the planes, tiles of cells, products [2 x 32 x 32]; the registers' configuration."""

    words: Floats
    cells: Floats
    products: Floats
    configuration: NDArray[np.uint8]


def _parts(w: NDArray[np.float32]) -> list[NDArray[np.uint32]]:
    """Return the bits of three numbers that sum to w and have but their upper 16 bits: high, middle, low."""
    parts = []
    with np.errstate(invalid="ignore"):  # what is infinite has parts that are no numbers
        for _ in range(3):
            high = (w.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
            parts.append(high)
            w = w - high.view(np.float32)
    return parts


def pack_tiles(w: Floats, offsets: NDArray[np.int64], length: int) -> TileFilters:
    """Return filters [O, C, T] as tiles.

    Args:
        w: What is multiplied.
        offsets: [T] where the taps of one plane read, relative to the cell that is written.
        length: Of a plane.
    """
    outputs, channels, taps = w.shape
    pairs = -(-channels // 2)
    padded = np.zeros((-(-outputs // OUTPUTS) * OUTPUTS, 2 * pairs, taps), np.float32)
    padded[:outputs, :channels] = w
    by_tap = np.ascontiguousarray(padded.transpose(2, 1, 0))  # [T, 2 pairs, O]
    parts = [(bits[:, 1::2] | bits[:, ::2] >> np.uint32(16)).reshape(taps * pairs, -1) for bits in _parts(by_tap)]
    reads = (offsets[:, None] + length * np.arange(pairs)).ravel()
    # Of each tap, as many pairs as fill tiles lie a plane apart and are read where they are; the others are gathered.
    order = np.arange(taps * pairs).reshape(taps, pairs)
    whole = pairs // LANES * LANES
    order = np.concatenate([order[:, :whole].ravel(), order[:, whole:].ravel()])
    parts, reads = [part[order] for part in parts], reads[order]
    direct, (full, left) = taps * whole // LANES, divmod(taps * (pairs - whole), LANES)
    rows: list[NDArray[np.uint32]] = []
    sources: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for t in range(direct + full):
        at = slice(t * LANES, (t + 1) * LANES)
        rows += [parts[part][at] for part in (2, 1, 0)]
        sources += [reads[at] + part * pairs * length for part in range(3)] if t >= direct else []
    rest, quick_rest = -(-6 * left // LANES), -(-3 * left // LANES)
    if left:
        at = slice((direct + full) * LANES, None)
        missing = rest * LANES - 6 * left
        both = [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)]
        rows += [np.zeros((missing, padded.shape[0]), np.uint32)] + [parts[part][at] for part, _ in both]
        sources += [np.zeros(missing, np.int64)] + [reads[at] + other * pairs * length for _, other in both]
    words = np.concatenate(rows).reshape(3 * (direct + full) + rest, LANES, -1, 2, LANES).transpose(2, 0, 3, 4, 1)
    packed = np.ascontiguousarray(words).view(np.float32).ravel()
    starts = reads[: direct * LANES : LANES].copy()
    return TileFilters(
        _aligned(packed), starts, np.concatenate(sources), full, rest, quick_rest, pairs, channels, outputs
    )


def _aligned(x: Floats) -> Floats:
    """Return a copy that starts where a line of the cache does."""
    memory = np.empty(x.size + LANES, x.dtype)
    start = -(memory.ctypes.data // 4) % LANES
    copy = memory[start : start + x.size]
    copy[:] = x
    return copy


_load_filters = move("tileloadd64", 4, (0, 1024), 64)
_keep = move("tilestored64", 0, (0, 64, 2048, 2112), 128)
_load_cells = mover("tileloadd64", 6, 7)
release_tiles = on_registers(("tilerelease", ()))
_clear = on_registers(*(("tilezero", (number,)) for number in range(4)))
_multiply_upper, _multiply_lower = (
    on_registers(*(("tdpbf16ps", (2 * i + j, 4 + i, 6 + j)) for j in range(2))) for i in range(2)
)


@partial(compiled, forceinline=True)
def _add_products(cells, first, second, stride, both):  # type: ignore[no-untyped-def]
    """Add the products of two tiles of cells with the two of filters that are loaded, or with the first alone."""
    _load_cells(cells, first, second, stride)
    _multiply_upper()
    if both:
        _multiply_lower()


@partial(compiled, forceinline=True)
def _add_parts(filters, w, cells, at, part, second, stride, quick, both):  # type: ignore[no-untyped-def]
    """Add the three or six products of 16 pairs: filters' parts low, middle, high from w on, cells' from `at` on."""
    middle, low = at + part, at + 2 * part
    if not quick:
        _load_filters(filters, w)
        _add_products(cells, at, at + second, stride, both)
    _load_filters(filters, w + 2 * TILE)
    if not quick:
        _add_products(cells, middle, middle + second, stride, both)
    _add_products(cells, at, at + second, stride, both)
    _load_filters(filters, w + 4 * TILE)
    if not quick:
        _add_products(cells, low, low + second, stride, both)
    _add_products(cells, middle, middle + second, stride, both)
    _add_products(cells, at, at + second, stride, both)


@compiled
def begin_tiles(filters, grid, planes):  # type: ignore[no-untyped-def]
    """Return memory to work on, and make this thread's tile registers ready, until `release_tiles`.

    Args:
        filters: Those with the most tiles to gather.
        grid: Layout.
        planes: Most pairs of planes.
    """
    configuration = np.zeros(64, np.uint8)
    configuration[0] = 1
    for i in range(8):
        configuration[16 + 2 * i], configuration[48 + i] = 64, LANES
    configure(configuration)
    tiles = 2 * TILE * (len(filters.sources) // LANES)
    memory = aligned_zeros(3 * planes * grid.length + tiles + 2 * TILES)
    end = tiles + 2 * TILES
    return TileWork(memory[end:], memory[:tiles], memory[tiles:end], configuration)


@compiled
def aligned_zeros(count: int) -> Floats:
    """Return zeros that start where a line of the cache does."""
    memory = np.zeros(count + LANES, np.float32)
    start = -(memory.ctypes.data // 4) % LANES
    return memory[start : start + count]


@compiled
def split(x, channels, grid, words):  # type: ignore[no-untyped-def]
    """Write planes x, borders set, as pairs of bfloat16: words [3 x pairs x length], parts high, middle, low."""
    pairs, length = (channels + 1) // 2, grid.length
    minus = splat(np.float32(-1))
    for p in range(pairs):
        even, odd = 2 * p * length, min(2 * p + 1, channels - 1) * length
        for i in range(0, length + LANES - 1, LANES):
            at = min(i, length - LANES)
            a, b = load(x, even + at), load(x, odd + at)
            for part in range(3):
                high_a, high_b = nearest_bfloat16(a), nearest_bfloat16(b)
                store(words, (part * pairs + p) * length + at, paired(high_a, high_b))
                a, b = fma(minus, high_a, a), fma(minus, high_b, b)


@compiled
def blocks_of_cells(grid: Grid) -> int:
    """Return how many blocks of 32 cells cover what is swept; half of the last may lie in the border behind."""
    return (grid.blocks * BLOCK + CELLS - 1) // CELLS


@compiled
def gather(words, filters, first, cells, quick):  # type: ignore[no-untyped-def]
    """Write the tiles of 32 cells from `first` on, a place in a plane; without their low parts if `quick`."""
    for tile in range(len(filters.sources) // LANES):
        if quick and tile < 3 * filters.full and tile % 3 == 2:
            continue
        for row in range(LANES):
            at, to = first + item(filters.sources, tile * LANES + row), 2 * TILE * tile + LANES * row
            store(cells, to, load(words, at))
            store(cells, to + TILE, load(words, at + LANES))


@partial(compiled, forceinline=True)
def multiply(filters, work, first, length, outputs, at, quick):  # type: ignore[no-untyped-def]
    """Write the products of 32 outputs with 32 cells, [32, 32] from `at` on.

    Args:
        filters: `TileFilters`.
        work: `TileWork` with the words of all planes and the gathered tiles of these cells.
        first: The first of the cells, a place in a plane.
        length: Of a plane.
        outputs: Outputs from 32 times this on.
        at: Where to write in the products of `work`.
        quick: Whether the three largest products will do.
    """
    both, tiles = filters.outputs - outputs * OUTPUTS > LANES, len(filters.starts) + filters.full
    w, x = outputs * (3 * tiles + filters.rest) * 2 * TILE, 0
    _clear()
    for i in range(len(filters.starts)):
        place = first + item(filters.starts, i)
        _add_parts(filters.words, w, work.words, place, filters.pairs * length, LANES, length, quick, both)
        w += 6 * TILE
    for _ in range(filters.full):
        _add_parts(filters.words, w, work.cells, x, 2 * TILE, TILE, LANES, quick, both)
        w, x = w + 6 * TILE, x + 6 * TILE
    for i in range(filters.rest - filters.quick_rest if quick else 0, filters.rest):
        _load_filters(filters.words, w + i * 2 * TILE)
        _add_products(work.cells, x + i * 2 * TILE, x + i * 2 * TILE + TILE, LANES, both)
    _keep(work.products, at)


@compiled
def convolve(x, channels, filters, bias, grid, work, quick, add, out):  # type: ignore[no-untyped-def]
    """Write bias + W * x, or add that, into planes `out`, garbage into their border.

    Args:
        x: Planes [C x length], borders set.
        channels: C.
        filters: `TileFilters`.
        bias: [O].
        grid: Layout.
        work: Of `begin_tiles`.
        quick: Whether three products will do.
        add: Whether to add to what is there.
        out: [O x length].
    """
    split(x, channels, grid, work.words)
    products, batches = work.products, (filters.outputs + OUTPUTS - 1) // OUTPUTS
    for block in range(blocks_of_cells(grid)):
        first = grid.origin + block * CELLS
        gather(work.words, filters, first, work.cells, quick)
        for turn in range(batches + 1):
            if turn < batches:
                multiply(filters, work, first, grid.length, turn, turn % 2 * TILES, quick)
            # What was just written is not looked at before the next products are under way.
            for o in range((turn - 1) * OUTPUTS, min(turn * OUTPUTS, filters.outputs)) if turn > 0 else range(0):
                at, to = o % (2 * OUTPUTS) * CELLS, o * grid.length + first
                more = broadcast(bias, o)
                q0, q1 = plus(load(products, at), more), plus(load(products, at + LANES), more)
                if add:
                    q0, q1 = plus(q0, load(out, to)), plus(q1, load(out, to + LANES))
                store(out, to, q0), store(out, to + LANES, q1)
