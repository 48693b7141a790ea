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
        weights: [patterns, T, actions], by which logits take the advantage of neighbour t.
        rest: [patterns, actions], what they take of actions that do not survive.
        least: The least advantage.
    """

    step: float
    ways: Any
    shut: Any
    weights: Any
    rest: Any
    least: float


@compiled
def spread_batch(
    first: int, last: int, pattern: Any, waves: Any, leads: Any, goal: Any, floor: float, out: Any
) -> None:
    """Settle the samples first..last-1, of maps that do not wrap.

    Args:
        first: First sample.
        last: One past the last sample.
        pattern: int16 [B, h, w], the row of each cell.
        waves: `Waves`.
        leads: `Leads`.
        goal: bool [B, h, w].
        floor: Value of what has no way.
        out: u [B, h, w], last change [B] and sweeps [B], written.
    """
    u, changes, sweeps = out
    for b in range(first, last):
        _spread(pattern[b], waves.ways, leads, goal[b], waves.step, floor, u[b])
        changes[b], sweeps[b] = 0.0, 1


@compiled
def _spread(pattern: Any, ways: Any, leads: Any, goal: Any, step: float, floor: float, u: Any) -> None:
    height, breadth = pattern.shape
    stride = breadth + 2  # a ring that nothing leads out of
    left = np.zeros((height + 2) * stride, np.uint8)  # the moves by which a cell may yet be reached from
    wave = np.full(len(left), -1, np.int32)
    queue = np.empty(height * breadth + 1, np.int32)
    offsets = np.empty(len(leads.rows) - 1, np.int64)
    for t in range(len(offsets)):
        offsets[t] = leads.rows[t + 1] * stride + leads.columns[t + 1]
    tail: Any = 0
    for y in range(height):
        start = (y + 1) * stride + 1
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
    for y in range(height):
        start = (y + 1) * stride + 1
        for x in range(breadth):
            number = wave[start + x]
            u[y, x] = -(number * step) if number >= 0 else floor


@compiled
def look_up_batch(
    first: int, last: int, pattern: Any, waves: Any, leads: Any, floor: float, u: Any, logits: Any
) -> None:
    """Read the policy of the samples first..last-1; arguments as `read_batch` and `spread_batch` take them."""
    _, rows, columns, _ = leads
    height, breadth = u.shape[1:]
    count, actions = len(rows), logits.shape[1]
    padded = np.empty((3, breadth + 2))
    near, out = np.empty(count), np.empty(actions, logits.dtype)
    for b in range(first, last):
        for y in range(height):
            padded[:] = floor
            for i in range(max(0, y - 1), min(height, y + 2)):
                padded[i - y + 1, 1:-1] = u[b, i]
            for x in range(breadth):
                row = pattern[b, y, x]
                best = -np.inf
                for t in range(count):
                    near[t] = padded[1 + rows[t], 1 + x + columns[t]] + waves.shut[row, t]
                    best = near[t] if near[t] > best else best
                if best <= floor:  # nothing leads anywhere, or nowhere that has a way
                    for k in range(actions):
                        logits[b, k, y, x] = 0.0
                    continue
                for k in range(actions):
                    out[k] = waves.rest[row, k]
                for t in range(count):
                    up = near[t] - best
                    advantage = logits.dtype.type(up if up > waves.least else waves.least)
                    for k in range(actions):
                        out[k] += waves.weights[row, t, k] * advantage
                for k in range(actions):
                    logits[b, k, y, x] = out[k]
