"""The policy of reachability read off its values, where each latent action has one destination.

Legend: u = log v; B samples, A latent actions, T neighbours (the cell itself first), Q action values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planners.compiled.layout import compiled


class Reading(NamedTuple):
    """How a policy is read off values.

    Attributes:
        leads: `Leads`.
        destination: int64 [A], the neighbour that each action leads to.
        head: [actions, A], in the type of the logits.
        scale: What log Q_a - max log Q is scaled by.
        least: The least of it.
    """

    leads: Any
    destination: Any
    head: Any
    scale: Any
    least: float


@compiled
def value_at(u: Any, y: int, x: int, wrap: bool, outside: float) -> float:
    """Return u at a cell, which may lie beyond the edge."""
    height, breadth = u.shape
    if wrap:
        return u[y % height, x % breadth]
    return u[y, x] if 0 <= y < height and 0 <= x < breadth else outside


@compiled
def work_space(reading: Any) -> Any:
    """Return arrays for neighbours [T], action values [A], advantages [A] and logits [actions] of one cell."""
    _, actions = reading.head.shape
    dtype = reading.head.dtype
    return (
        np.empty(len(reading.leads.rows)),
        np.empty(actions),
        np.empty(actions, dtype),
        np.empty(len(reading.head), dtype),
    )


@compiled
def weigh(difference: Any, reading: Any, advantage: Any, logits: Any) -> None:
    """Write the logits [actions] of log Q_a - max log Q [A]; `advantage` is work space."""
    for a in range(len(difference)):
        advantage[a] = max(reading.least, difference[a])
    for action in range(len(reading.head)):
        logits[action] = 0.0
        for a in range(len(difference)):
            logits[action] += reading.head[action, a] * (reading.scale * advantage[a])


@compiled
def read_cell(u: Any, y: int, x: int, moves: Any, floor: float, reading: Any, space: Any) -> None:
    """Write the logits of one cell, whose log(gamma m) are given, [A], to the last of its `work_space`."""
    near, q, advantage, logits = space
    _, rows, columns, wrap = reading.leads
    inside = 0 < y < u.shape[0] - 1 and 0 < x < u.shape[1] - 1
    for t in range(len(rows)):
        i, j = y + rows[t], x + columns[t]
        near[t] = u[i, j] if inside else value_at(u, i, j, wrap, floor)
    best = floor
    for a in range(len(q)):
        q[a] = max(floor, moves[a] + near[reading.destination[a]])
        best = max(best, q[a])
    for a in range(len(q)):
        q[a] -= best
    weigh(q, reading, advantage, logits)


@compiled
def read_batch(first: int, last: int, pattern: Any, table: Any, floor: Any, reading: Any, u: Any, logits: Any) -> None:
    """Read the policy of the samples first..last-1.

    Args:
        first: First sample.
        last: One past the last sample.
        pattern: int16 [B, h, w], the row of each cell.
        table: float64 [patterns, A], log(gamma m).
        floor: The least log Q.
        reading: `Reading`.
        u: float64 [B, h, w].
        logits: [B, actions, h, w], written.
    """
    space = work_space(reading)
    for b in range(first, last):
        for y in range(u.shape[1]):
            for x in range(u.shape[2]):
                read_cell(u[b], y, x, table[pattern[b, y, x]], floor, reading, space)
                for action in range(logits.shape[1]):
                    logits[b, action, y, x] = space[3][action]
