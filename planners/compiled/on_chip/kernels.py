"""The kernels, in Triton: one program a map, which iterates until its sample has settled or diverged.

v stays in the registers; a step reads its neighbours by a gather through the multiprocessor's own memory, and nothing
else leaves or enters it but what all steps share. Each sample stops at its own step, by the residual rule of
`planners.fixed_points.stopping`, and no launch or look of the host's lies between two steps.

*Roofline of value iteration* (A actions, T taps, B maps of S cells): a step computes 2 A T S flops a map and reads its
A S rewards, 4 A S bytes, from the second-level cache, where they stay from the first step on (B A S 4 bytes: 2.9 MB for
VIN at 15x15 and B = 32, of 50 MB on an H100). That is T / 2 = 4.5 flops a byte with 3x3 taps. A multiprocessor of an
H100 does 128 fused multiply-adds a clock and takes in 64 bytes from that cache, 4 flops a byte: the two bounds meet,
A S T / 128 = 1,582 clocks, 0.9 us a step of VIN at 15x15 (A = 100), and 32 of the 132 multiprocessors are at work. In
torch's own operations a step is some 20 launches, at 3 to 5 us of the host's time each. Measured on an H100: 12 us a
step, 40 times as fast as those operations and 13 times as slow as the bound; docs/gpu.md has more.

*Of reachability* (A latent actions, T = 5 or 9 neighbours): 4 A S bytes a map again, and A T S additions, while taps
are not sharp with an exponential each (16 a clock): A S T / 16 clocks. With sharp taps, A S comparisons only; then the
reads bound it, A S / 16 clocks, and the gather's two barriers, some 60 clocks, count on small maps.
"""

# Kernels are another language in Python's syntax: what a parameter is, Triton finds out at each call.
# mypy: disable-error-code="no-untyped-def,assignment,misc"

from __future__ import annotations

import triton
import triton.language as tl

from planners.fixed_points import Result
from planners.fixed_points.solvers import GROWTH as _GROWTH
from planners.fixed_points.solvers import RESIDUAL_OFFSET

SETTLED = tl.constexpr(int(Result.SETTLED))
MAX_STEPS = tl.constexpr(int(Result.MAX_STEPS))
DIVERGED = tl.constexpr(int(Result.DIVERGED))
OFFSET = tl.constexpr(RESIDUAL_OFFSET)
GROWTH = tl.constexpr(_GROWTH)


@triton.jit
def _neighbour(z, cell, tap, H, W, FILTER: tl.constexpr, WRAP: tl.constexpr, beyond):
    """Return z at the tap's place around each cell, `beyond` outside the map."""
    row = cell // W + tap // FILTER - FILTER // 2
    column = cell % W + tap % FILTER - FILTER // 2
    if WRAP:
        row, column = (row + FILTER * H) % H, (column + FILTER * W) % W
    inside = (cell < H * W) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.where(inside, tl.gather(z, tl.where(inside, row * W + column, 0), 0), beyond)


@triton.jit
def _judged(z, fz, limit, first):
    """Return the residual of z, whether it has diverged, and the limit, known from the first step on."""
    change, size = tl.sqrt(tl.sum((fz - z) * (fz - z))), tl.sqrt(tl.sum(fz * fz))
    if first:
        start = tl.sqrt(tl.sum(z * z))
        largest = tl.maximum(tl.maximum(start, size, propagate_nan=tl.PropagateNan.ALL), 1.0)
        limit = GROWTH * tl.where(size != size, size, largest)
    finite = (change < float("inf")) & (size < float("inf"))
    residual = tl.where(finite, change / (OFFSET + size), float("inf"))
    diverged = (residual == float("inf")) | (residual != residual) | (size > limit)
    return residual, diverged, limit


@triton.jit
def _stopped(residual, diverged, tolerance):
    """Return how the sample would end here, and whether it goes on."""
    settled = (residual <= tolerance) & (tolerance > 0.0)
    result = tl.where(diverged, DIVERGED, tl.where(settled, SETTLED, MAX_STEPS)).to(tl.int32)
    return result, tl.where(diverged | settled, 0, 1).to(tl.int32)


@triton.jit
def _tell(residuals, steps, results, sample, residual, k, result):
    """Store how the sample ended."""
    tl.store(residuals + sample, residual)
    tl.store(steps + sample, k.to(tl.int64))
    tl.store(results + sample, result.to(tl.int8))


@triton.jit
def value_iteration(
    start, reward, taps, value, residuals, steps, results, action,
    H, W, A, K, tolerance,
    FILTER: tl.constexpr, WRAP: tl.constexpr, ARGMAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Iterate v' = max_a (R_a + W_a * v) from start [B, S]; reward [B, A, S], taps [A, FILTER^2], all contiguous.

    Leaves the value [B, S] with residual, steps and result [B], and with ARGMAX the first maximal action [B, S] of the
    last step.
    """
    sample = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    S = H * W
    on_map = cell < S
    z = tl.load(start + sample * S + cell, mask=on_map, other=0.0)
    rewards = reward + sample * A * S
    best_action = tl.zeros([BLOCK], dtype=tl.int32)
    limit, residual = tl.full([], 0.0, tl.float32), tl.full([], float("inf"), tl.float32)
    result, k, live = tl.full([], MAX_STEPS, tl.int32), tl.full([], 0, tl.int32), tl.full([], 1, tl.int32)
    while (live != 0) & (k < K):
        near = ()
        for t in tl.static_range(FILTER * FILTER):
            near = near + (_neighbour(z, cell, t, H, W, FILTER, WRAP, 0.0),)  # noqa: RUF005 (Triton knows no other way)
        fz = tl.full([BLOCK], float("-inf"), tl.float32)
        for a in range(A):
            q = tl.load(rewards + a * S + cell, mask=on_map, other=0.0)
            for t in tl.static_range(FILTER * FILTER):
                q += tl.load(taps + a * FILTER * FILTER + t) * near[t]
            if ARGMAX:
                best_action = tl.where(q > fz, a, best_action)
            fz = tl.maximum(fz, q, propagate_nan=tl.PropagateNan.ALL)
        fz = tl.where(on_map, fz, 0.0)
        residual, diverged, limit = _judged(z, fz, limit, k == 0)
        z = tl.where(diverged, z, fz)
        result, live = _stopped(residual, diverged, tolerance)
        k += 1
    tl.store(value + sample * S + cell, z, mask=on_map)
    _tell(residuals, steps, results, sample, residual, k, result)
    if ARGMAX:
        tl.store(action + sample * S + cell, best_action, mask=on_map)


@triton.jit
def reachability(
    goal, moves, taps, leads, value, residuals, steps, results,
    H, W, A, K, tolerance, floor,
    NEIGHBOURS: tl.constexpr, WRAP: tl.constexpr, SHARP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Iterate u' = max(goal, max_a (moves_a + log sum_t exp(taps_a,t + u(t)))) from goal [B, S], at least the floor.

    moves [B, A, S] and taps [A, T] are logarithms, T the NEIGHBOURS' number; with SHARP, leads [A] int32 says which of
    them each action leads to. Leaves what `value_iteration` leaves.
    """
    sample = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    S = H * W
    on_map = cell < S
    fixed = tl.load(goal + sample * S + cell, mask=on_map, other=0.0)
    z = fixed
    given = moves + sample * A * S
    COUNT: tl.constexpr = len(NEIGHBOURS)
    limit, residual = tl.full([], 0.0, tl.float32), tl.full([], float("inf"), tl.float32)
    result, k, live = tl.full([], MAX_STEPS, tl.int32), tl.full([], 0, tl.int32), tl.full([], 1, tl.int32)
    while (live != 0) & (k < K):
        near = ()
        for t in tl.static_range(COUNT):
            near = near + (_neighbour(z, cell, NEIGHBOURS[t], H, W, 3, WRAP, floor),)  # noqa: RUF005
        best = tl.full([BLOCK], 0.0, tl.float32) + floor
        for a in range(A):
            arriving = near[0]
            if SHARP:
                lead = tl.load(leads + a)
                for t in tl.static_range(1, COUNT):
                    arriving = tl.where(lead == t, near[t], arriving)
            else:
                top = near[0] + tl.load(taps + a * COUNT)
                for t in tl.static_range(1, COUNT):
                    entered = near[t] + tl.load(taps + a * COUNT + t)
                    top = tl.maximum(top, entered, propagate_nan=tl.PropagateNan.ALL)
                top = tl.where(top == float("-inf"), 0.0, top)
                total = tl.zeros([BLOCK], dtype=tl.float32)
                for t in tl.static_range(COUNT):
                    total += tl.exp(near[t] + tl.load(taps + a * COUNT + t) - top)
                arriving = top + tl.log(total)
            q = tl.load(given + a * S + cell, mask=on_map, other=float("-inf")) + arriving
            best = tl.maximum(best, q, propagate_nan=tl.PropagateNan.ALL)
        fz = tl.where(on_map & (fixed != 0.0), best, 0.0)
        residual, diverged, limit = _judged(z, fz, limit, k == 0)
        z = tl.where(diverged, z, fz)
        result, live = _stopped(residual, diverged, tolerance)
        k += 1
    tl.store(value + sample * S + cell, z, mask=on_map)
    _tell(residuals, steps, results, sample, residual, k, result)
