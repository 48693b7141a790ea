"""Reachability where every move that survives costs the same: a breadth-first search, and a policy by a small table.

With weights that are fully trained, a latent action survives with gamma or not at all. Cells n moves away then have
u = n log gamma, so waves from the goal settle them, with nothing to compare; and what the actions that lead to one
neighbour say can be added up beforehand, in each pattern.

Legend: u = log v; B samples, A latent actions, T neighbours (the cell itself first).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planners.compiled.layout import compiled


class Waves(NamedTuple):
    """What a table of patterns comes to where every move that survives costs the same.

    Attributes:
        step: The cost of a move, -log gamma.
        ways: uint8 [patterns], bit t - 1 tells whether a move to neighbour t survives.
        shut: float64 [patterns, T], -inf where no action leads to neighbour t, 0 elsewhere.
        weights: [patterns, actions, T], by which logits take the advantage of neighbour t.
        rest: [patterns, actions], what they take of actions that do not survive.
        least: The least advantage.
    """

    step: float
    ways: Any
    shut: Any
    weights: Any
    rest: Any
    least: float


def offsets_of(leads: Any, width: int) -> tuple[int, ...]:
    """Return where each neighbour lies from a cell of a map with a ring round it, row after row.

    A tuple, so that kernels are compiled for its length, and loops over it unrolled.
    """
    return tuple((leads.rows * (width + 2) + leads.columns).tolist())


@compiled
def spread_batch(
    first: int, last: int, pattern: Any, waves: Any, offsets: Any, goal: Any, floor: float, out: Any
) -> None:
    """Settle the samples first..last-1, of maps that do not wrap.

    Args:
        first: First sample.
        last: One past the last sample.
        pattern: int16 [B, h, w], the row of each cell.
        waves: `Waves`.
        offsets: `offsets_of`, the cell itself left out.
        goal: bool [B, h, w].
        floor: Value of what has no way.
        out: u [B, h, w], last change [B] and sweeps [B], written.
    """
    u, changes, sweeps = out
    height, breadth = goal.shape[1:]
    stride = breadth + 2  # a ring that nothing leads out of
    left = np.zeros((height + 2) * stride, np.uint8)  # the moves by which a cell may yet be reached from
    wave, queue = np.empty(len(left), np.int32), np.empty(height * breadth + 1, np.int32)
    for b in range(first, last):
        wave[:] = -1
        _spread(pattern[b], waves.ways, offsets, goal[b], left, wave, queue)
        changes[b], sweeps[b] = 0.0, 1
        for y in range(height):
            start = (y + 1) * stride + 1
            for x in range(breadth):
                number = wave[start + x]
                u[b, y, x] = -(number * waves.step) if number >= 0 else floor


@compiled
def _spread(pattern: Any, ways: Any, offsets: Any, goal: Any, left: Any, wave: Any, queue: Any) -> None:
    """Number the cells by waves from the goal; left, wave and queue are work space, wave is -1 where none comes."""
    height, breadth = pattern.shape
    tail: Any = 0
    for y in range(height):
        start = (y + 1) * (breadth + 2) + 1
        for x in range(breadth):
            left[start + x] = ways[pattern[y, x]]
        for x in range(breadth):
            if goal[y, x]:
                queue[tail] = start + x
                left[start + x], wave[start + x] = 0, 0
                tail += 1
    head: Any = 0
    number: Any = 0
    while head < tail:
        end, number = tail, number + 1
        for place in range(head, end):
            cell = queue[place]
            for t in range(len(offsets)):
                other = cell - offsets[t]
                reached = (left[other] >> t) & 1  # no branch: which it will be can't be guessed
                left[other] = left[other] * (1 - reached)
                wave[other] = number if reached else wave[other]
                queue[tail] = other
                tail += reached
        head = end


@compiled
def look_up_batch(
    first: int, last: int, pattern: Any, waves: Any, offsets: Any, floor: float, u: Any, logits: Any
) -> None:
    """Read the policy of the samples first..last-1, with an action for each neighbour.

    Args:
        first: First sample.
        last: One past the last sample.
        pattern: int16 [B, h, w], the row of each cell.
        waves: `Waves`.
        offsets: `offsets_of`.
        floor: Value of what has no way.
        u: float64 [B, h, w].
        logits: [B, actions, h, w], written.
    """
    height, breadth = u.shape[1:]
    stride = breadth + 2
    rows, near = np.empty(3 * stride), np.empty(len(offsets))
    advantage = np.empty(len(offsets), logits.dtype)
    for b in range(first, last):
        for y in range(height):
            rows[:] = floor
            for i in range(max(0, y - 1), min(height, y + 2)):
                start = (i - y + 1) * stride + 1
                rows[start : start + breadth] = u[b, i]
            for x in range(breadth):
                row, cell = pattern[b, y, x], stride + 1 + x
                best = -np.inf
                for t in range(len(offsets)):
                    near[t] = rows[cell + offsets[t]] + waves.shut[row, t]
                    best = near[t] if near[t] > best else best
                if best <= floor:  # nothing leads anywhere, or nowhere that has a way
                    for k in range(len(offsets) - 1):
                        logits[b, k, y, x] = 0.0
                    continue
                for t in range(len(offsets)):
                    up = near[t] - best
                    advantage[t] = up if up > waves.least else waves.least
                for k in range(len(offsets) - 1):
                    total = waves.rest[row, k]
                    for t in range(len(offsets)):
                        total += waves.weights[row, k, t] * advantage[t]
                    logits[b, k, y, x] = total
