"""The gradient of reachability's fixed point: a flow down the tree of best moves, to the goal.

Legend: u = log v; B samples, A latent actions, T neighbours (the cell itself first); P where an action leads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planners.compiled.layout import compiled

_SORTED_BY_DIGITS = 4096
"""Cells from which on sorting by digits is faster than by comparing."""
_DIGITS, _DIGIT_BITS = 6, np.uint64(11)
"""64 bits in digits of eleven."""


@compiled
def flow(u: Any, taken: Any, costs: Any, leads: Any, gradient: Any, rule: Any) -> Any:
    """Carry the gradient of u down the best moves to the goal: solve (I - du'/du)^T w = g, Eq. 6, in u = log v.

    du'(x)/du(x + t) = P_a,t v(x + t) / sum_s P_a,s v(x + s) for the action a taken at x. Where each action has one
    destination that is a tree, and one pass, farthest cell first, is exact. Where actions mix, what flows uphill is
    taken along by further passes, until nothing does.

    Args:
        u: float64 [h, w].
        taken: int64 [h, w], the action taken; -1 passes nothing on.
        costs: float64 [h, w], what entering each cell costs.
        leads: `Leads`.
        gradient: float64 [h, w], g.
        rule: Most passes, and the share of the gradient that may be left to pass on.

    Returns:
        Gradients of log(gamma m), by cell for the action taken [h, w], of -costs [h, w] and of log P [A, T]; what was
        left to pass on.
    """
    most, tolerance = rule
    p, rows, columns, wrap = leads
    height, breadth = u.shape
    waiting = gradient.copy()
    total, entered = np.zeros((height, breadth)), np.zeros((height, breadth))
    of_taps = np.zeros(p.shape)
    share = np.empty(len(rows))
    order = farthest_first(u.ravel())
    ends = np.full(len(p), -1, np.int64)
    for a in range(len(p)):
        if np.count_nonzero(p[a]) == 1 and p[a, 0] == 0.0:
            ends[a] = np.argmax(p[a])
    whole_gradient, left = np.abs(gradient).sum(), 0.0
    for _ in range(most):
        for cell in order:
            y, x = cell // breadth, cell % breadth
            g, a = waiting[y, x], taken[y, x]
            if g == 0.0 or a < 0:
                continue
            waiting[y, x] = 0.0
            if ends[a] > 0:  # one destination: a share of all of it
                t = ends[a]
                part = g * p[a, t] / p[a, t]
                i, j = (y + rows[t]) % height, (x + columns[t]) % breadth
                total[y, x] += g
                of_taps[a, t] += part
                entered[i, j] += part
                waiting[i, j] += part
                continue
            own = -np.inf
            for t in range(len(rows)):
                if p[a, t] > 0.0:
                    i, j = y + rows[t], x + columns[t]
                    if wrap:
                        i, j = i % height, j % breadth
                    inside = 0 <= i < height and 0 <= j < breadth
                    share[t] = u[i, j] - costs[i, j] if inside else -np.inf
                    own = max(own, share[t])
                else:
                    share[t] = -np.inf
            whole = 0.0
            for t in range(len(rows)):
                share[t] = p[a, t] * np.exp(share[t] - own)
                whole += share[t]
            g /= 1.0 - share[0] / whole  # what stays comes back at once: a geometric series
            total[y, x] += g
            for t in range(len(rows)):
                if share[t] > 0.0:
                    part = g * share[t] / whole
                    of_taps[a, t] += part
                    i, j = (y + rows[t]) % height, (x + columns[t]) % breadth
                    entered[i, j] += part
                    if t > 0:
                        waiting[i, j] += part
        left = 0.0
        for cell in order:
            if taken[cell // breadth, cell % breadth] >= 0:
                left += abs(waiting[cell // breadth, cell % breadth])
        if left <= tolerance * whole_gradient:
            break
    return total, entered, of_taps, left


@compiled
def farthest_first(u: Any) -> Any:
    """Return the cells in the order of u, the least first; u is float64 [cells], no NaN.

    Many cells are sorted by the bits of their values, as integers in the same order, eleven at a time (radix sort).
    """
    if len(u) < _SORTED_BY_DIGITS:
        return np.argsort(u)
    bits = u.copy().view(np.uint64)
    keys, sorted_keys = np.empty_like(bits), np.empty_like(bits)
    cells, sorted_cells = np.arange(len(u)), np.empty(len(u), np.int64)
    sign, one_digit = np.uint64(1) << np.uint64(63), (np.uint64(1) << _DIGIT_BITS) - np.uint64(1)
    places = np.zeros((_DIGITS, one_digit + np.uint64(1)), np.int64)
    for cell in range(len(u)):
        key = ~bits[cell] if bits[cell] & sign else bits[cell] | sign
        keys[cell] = key
        for digit in range(_DIGITS):
            places[digit, (key >> (np.uint64(digit) * _DIGIT_BITS)) & one_digit] += 1
    for digit in range(_DIGITS):
        shift, place = np.uint64(digit) * _DIGIT_BITS, places[digit]
        if place.max() == len(u):
            continue
        begin = 0
        for value in range(len(place)):
            place[value], begin = begin, begin + place[value]
        for i in range(len(u)):
            value = (keys[i] >> shift) & one_digit
            sorted_cells[place[value]], sorted_keys[place[value]] = cells[i], keys[i]
            place[value] += 1
        cells, sorted_cells = sorted_cells, cells
        keys, sorted_keys = sorted_keys, keys
    return cells


@compiled
def flow_batch(
    first: int, last: int, u: Any, taken: Any, costs: Any, leads: Any, gradient: Any, rule: Any, out: Any
) -> None:
    """Do `flow` for the samples first..last-1; out: its results [B, h, w] twice, [B, A, T] and [B], written."""
    total, entered, of_taps, left = out
    for b in range(first, last):
        total[b], entered[b], of_taps[b], left[b] = flow(u[b], taken[b], costs[b], leads, gradient[b], rule)
