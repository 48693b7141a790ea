"""Reachability solved on one map: best first where every latent action has one destination, by sweeps where it mixes.

Legend: u = log v, D = -u >= 0 the cost of arriving; A latent actions, T neighbours (the cell itself first), h and w rows
and columns; P where an action leads. Rows and columns are those of a map with a frame of one cell, where the copies
across the seam lie when the map is a torus and the floor otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from datagen.kernel import kernel


@kernel
def settle(cost: Any, free_of: Any, rows: Any, columns: Any, goal: Any, wrap: bool, width: float, limit: float) -> Any:
    """Settle cells in the order of their cost of arriving, from the goal outwards (Dijkstra with buckets, after Dial).

    Every move costs at least `width` = -log gamma, the width of a bucket, so nothing in the bucket at hand can be
    improved by what comes later: a cell is settled once, and its cost is that of the fixed point.

    Args:
        cost: float64 [T, h, w], what the best latent action to each neighbour costs, inf where none survives.
        free_of: int64 [T, h, w], the latent action that costs it.
        rows: int64 [T], rows to the neighbour.
        columns: int64 [T], columns to the neighbour.
        goal: bool [h, w].
        wrap: Whether the map is a torus.
        width: Least cost of a move, above 0.
        limit: Cost from which a cell has no way to the goal.

    Returns:
        D [h, w] (`limit` where there is no way), the action taken [h, w] (-1 at the goal and where there is no way), and
        the cells in the order in which they were settled.
    """
    directions, height, breadth = cost.shape
    n = height * breadth
    dearest = width
    for value in cost.flat:
        if value > dearest and value < limit:
            dearest = value
    buckets = int(dearest / width) + 2
    head = np.full(buckets, -1, np.int64)
    following = np.full(n, -1, np.int64)
    preceding = np.full(n, -1, np.int64)
    place = np.full(n, -1, np.int64)
    arriving = np.full(n, limit)
    action = np.full(n, -1, np.int64)
    done = np.zeros(n, np.bool_)
    order = np.empty(n, np.int64)
    settled = 0
    waiting = 0
    for cell in range(n):
        if goal[cell // breadth, cell % breadth]:
            arriving[cell] = 0.0
            place[cell] = 0
            following[cell] = head[0]
            if head[0] >= 0:
                preceding[head[0]] = cell
            head[0] = cell
            waiting += 1
    number = 0
    while waiting > 0:
        bucket = number % buckets
        cell = head[bucket]
        if cell < 0:
            number += 1
            continue
        head[bucket] = following[cell]
        if following[cell] >= 0:
            preceding[following[cell]] = -1
        place[cell] = -1
        waiting -= 1
        if not done[cell]:
            done[cell] = True
            order[settled] = cell
            settled += 1
        y, x = cell // breadth, cell % breadth
        for t in range(1, directions):
            i, j = y - rows[t], x - columns[t]
            if wrap:
                i, j = i % height, j % breadth
            elif i < 0 or i >= height or j < 0 or j >= breadth:
                continue
            if goal[i, j]:
                continue
            total = arriving[cell] + cost[t, i, j]
            other = i * breadth + j
            if total < arriving[other]:
                arriving[other] = total
                action[other] = free_of[t, i, j]
                target = int(total / width) % buckets
                if place[other] >= 0:
                    if place[other] == target:
                        continue
                    if preceding[other] >= 0:
                        following[preceding[other]] = following[other]
                    else:
                        head[place[other]] = following[other]
                    if following[other] >= 0:
                        preceding[following[other]] = preceding[other]
                    waiting -= 1
                place[other] = target
                following[other] = head[target]
                preceding[other] = -1
                if head[target] >= 0:
                    preceding[head[target]] = other
                head[target] = other
                waiting += 1
    return arriving.reshape(height, breadth), action.reshape(height, breadth), order[:settled]


@kernel
def sweep(moves: Any, taps: Any, rows: Any, columns: Any, goal: Any, wrap: bool, floor: float, most: int) -> Any:
    """Iterate u' = max(goal, max_a log Q_a) in place, cell by cell, there and back, until nothing changes.

    The operator is monotone and starts below its fixed point, so any order of updates rises to the same fixed point.

    Args:
        moves: float64 [A, h, w], log(gamma m), -inf where the action is blocked.
        taps: float64 [A, T], P.
        rows: int64 [T], rows to each neighbour.
        columns: int64 [T].
        goal: bool [h, w].
        wrap: Whether the map is a torus.
        floor: Value of what has no way.
        most: Most sweeps.

    Returns:
        u [h, w], the action taken [h, w] (-1 at the goal and where there is no way), the largest change in the last
        sweep and the number of sweeps.
    """
    actions, height, breadth = moves.shape
    u = np.full((height, breadth), floor)
    taken = np.full((height, breadth), -1, np.int64)
    for i in range(height):
        for j in range(breadth):
            if goal[i, j]:
                u[i, j] = 0.0
    odds = np.empty(len(rows))
    change = np.inf
    sweeps = 0
    while sweeps < most and change > 0.0:
        change = 0.0
        sweeps += 1
        for place in range(height * breadth):
            cell = place if sweeps % 2 == 1 else height * breadth - 1 - place
            y, x = cell // breadth, cell % breadth
            if goal[y, x]:
                continue
            top = floor
            for t in range(len(rows)):
                i, j = y + rows[t], x + columns[t]
                if wrap:
                    i, j = i % height, j % breadth
                near = u[i, j] if wrap or (0 <= i < height and 0 <= j < breadth) else floor
                odds[t] = near
                top = max(top, near)
            if top <= floor:
                continue
            best, by = u[y, x], taken[y, x]
            for a in range(actions):
                if moves[a, y, x] + top <= best:
                    continue
                # Relative to this action's own best neighbour: the overall best one may lie behind a wall.
                own = -np.inf
                for t in range(len(rows)):
                    if taps[a, t] > 0.0:
                        own = max(own, odds[t])
                total = 0.0
                for t in range(len(rows)):
                    if taps[a, t] > 0.0:
                        total += taps[a, t] * np.exp(odds[t] - own)
                q = moves[a, y, x] + own + np.log(total)
                if q > best:
                    best, by = q, a
            if best > u[y, x]:
                rise = best - u[y, x]
                # What is left of a rise shrinks geometrically; below a part in 10^12 of the value it is rounding.
                if rise > 1e-12 * max(1.0, -best):
                    change = max(change, rise)
                u[y, x] = best
                taken[y, x] = by
    return u, taken, change, sweeps


@kernel
def flow(
    u: Any, taken: Any, taps: Any, rows: Any, columns: Any, wrap: bool, gradient: Any, order: Any, most: int
) -> Any:
    """Carry the gradient of u down the best moves to the goal: solve (I - du'/du)^T w = g, Eq. 6, in u = log v.

    du'(x)/du(x + t) = P_a,t v(x + t) / sum_s P_a,s v(x + s) for the action a taken at x. Where each action has one
    destination that is a tree, and one pass over the settled order, farthest cell first, is exact. Where actions mix,
    what flows uphill is taken along by further passes, until nothing does.

    Args:
        u: float64 [h, w].
        taken: int64 [h, w], the action taken; -1 passes nothing on.
        taps: float64 [A, T], P.
        rows: int64 [T].
        columns: int64 [T].
        wrap: Whether the map is a torus.
        gradient: float64 [h, w], g.
        order: int64 [n], cells from the farthest to the nearest.
        most: Most passes.

    Returns:
        Gradients of log(gamma m), by cell for the action taken [h, w], and of log P [A, T]; what was left to pass on.
    """
    height, breadth = u.shape
    waiting = gradient.copy()
    total = np.zeros((height, breadth))
    of_taps = np.zeros(taps.shape)
    share = np.empty(len(rows))
    left = 0.0
    for _ in range(most):
        for cell in order:
            y, x = cell // breadth, cell % breadth
            g, a = waiting[y, x], taken[y, x]
            if g == 0.0 or a < 0:
                continue
            waiting[y, x] = 0.0
            own = -np.inf
            for t in range(len(rows)):
                if taps[a, t] > 0.0:
                    i, j = y + rows[t], x + columns[t]
                    if wrap:
                        i, j = i % height, j % breadth
                    share[t] = u[i, j] if wrap or (0 <= i < height and 0 <= j < breadth) else -np.inf
                    own = max(own, share[t])
                else:
                    share[t] = -np.inf
            whole = 0.0
            for t in range(len(rows)):
                share[t] = taps[a, t] * np.exp(share[t] - own)
                whole += share[t]
            g /= 1.0 - share[0] / whole  # what stays comes back at once: a geometric series
            total[y, x] += g
            for t in range(len(rows)):
                if share[t] > 0.0:
                    part = g * share[t] / whole
                    of_taps[a, t] += part
                    if t > 0:
                        waiting[(y + rows[t]) % height, (x + columns[t]) % breadth] += part
        left = 0.0
        for cell in order:
            if taken[cell // breadth, cell % breadth] >= 0:
                left += abs(waiting[cell // breadth, cell % breadth])
        if left == 0.0:
            break
    return total, of_taps, left
