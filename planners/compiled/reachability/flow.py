"""The gradient of reachability's fixed point: a flow down the tree of best moves, to the goal.

Legend: u = log v; B samples, A latent actions, T neighbours (the cell itself first); P where an action leads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planners.compiled.layout import compiled


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
    order = np.argsort(u.ravel())
    whole_gradient, left = np.abs(gradient).sum(), 0.0
    for _ in range(most):
        for cell in order:
            y, x = cell // breadth, cell % breadth
            g, a = waiting[y, x], taken[y, x]
            if g == 0.0 or a < 0:
                continue
            waiting[y, x] = 0.0
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
def flow_batch(
    first: int, last: int, u: Any, taken: Any, costs: Any, leads: Any, gradient: Any, rule: Any, out: Any
) -> None:
    """Do `flow` for the samples first..last-1; out: its results [B, h, w] twice, [B, A, T] and [B], written."""
    total, entered, of_taps, left = out
    for b in range(first, last):
        total[b], entered[b], of_taps[b], left[b] = flow(u[b], taken[b], costs[b], leads, gradient[b], rule)
