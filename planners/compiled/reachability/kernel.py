"""Reachability solved on one map: best first where every latent action has one destination, by sweeps where it mixes.

Legend: u = log v, D = -u >= 0 the cost of arriving; B samples, A latent actions, T neighbours (the cell itself first),
    h and w rows and columns; P where an action leads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planners.compiled.layout import compiled


class _Buckets(NamedTuple):
    """Doubly linked lists of cells: the first of each bucket, and each cell's neighbours in its list and its bucket."""

    head: Any
    following: Any
    preceding: Any
    place: Any


@compiled
def _put(queue: Any, cell: int, bucket: int) -> None:
    """Put a cell that is in no bucket first in one."""
    queue.place[cell] = bucket
    queue.following[cell] = queue.head[bucket]
    queue.preceding[cell] = -1
    if queue.head[bucket] >= 0:
        queue.preceding[queue.head[bucket]] = cell
    queue.head[bucket] = cell


@compiled
def _remove(queue: Any, cell: int) -> None:
    """Take a cell out of its bucket."""
    before, after = queue.preceding[cell], queue.following[cell]
    if before >= 0:
        queue.following[before] = after
    else:
        queue.head[queue.place[cell]] = after
    if after >= 0:
        queue.preceding[after] = before
    queue.place[cell] = -1


class Leads(NamedTuple):
    """Where latent actions lead: P [A, T] in float64, rows and columns to the neighbours [T], and whether maps wrap."""

    p: Any
    rows: Any
    columns: Any
    wrap: bool


@compiled
def settle(row: Any, moves: Any, leads: Any, goal: Any, limit: float, u: Any, action: Any) -> None:
    """Settle cells in the order of their cost of arriving, from the goal outwards (Dijkstra with buckets, after Dial).

    A bucket is as wide as the least cost of a move, so nothing in the bucket at hand can be improved by what comes
    later: a cell is settled once (but for rounding, which a second visit mends), and its cost is that of the fixed
    point.

    Args:
        row: integer [h, w], where in the tables of `moves` a cell's are.
        moves: What the best latent action to each neighbour costs, float64 [cells or patterns, T], inf where none
            survives; and which action that is.
        leads: `Leads`.
        goal: bool [h, w].
        limit: Cost from which a cell has no way to the goal.
        u: float64 [h, w], written: -D, -limit where there is no way.
        action: int64 [h, w], written: the action taken, -1 at the goal and where there is no way.
    """
    cost, by = moves
    _, rows, columns, wrap = leads
    height, breadth = row.shape
    n = height * breadth
    width, dearest = limit, 0.0
    for value in cost.flat:
        if value < limit:
            width, dearest = min(width, value), max(dearest, value)
    queue = _Buckets(
        np.full(int(dearest / width) + 2, -1, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.full(n, -1, np.int32),
    )
    buckets = len(queue.head)
    arriving, taken = u.reshape(-1), action.reshape(-1)  # D until the end
    arriving[:], taken[:] = limit, -1
    waiting = number = 0
    for cell in range(n):
        if goal[cell // breadth, cell % breadth]:
            arriving[cell] = 0.0
            _put(queue, cell, 0)
            waiting += 1
    while waiting > 0:
        cell = queue.head[number % buckets]
        if cell < 0:
            number += 1
            continue
        _remove(queue, cell)
        waiting -= 1
        y, x = cell // breadth, cell % breadth
        for t in range(1, len(rows)):
            i, j = y - rows[t], x - columns[t]
            if wrap:
                i, j = i % height, j % breadth
            elif i < 0 or i >= height or j < 0 or j >= breadth:
                continue
            place, other = row[i, j], i * breadth + j
            total = arriving[cell] + cost[place, t]
            if total < arriving[other]:
                arriving[other] = total
                taken[other] = by[place, t]
                target = int(total / width) % buckets
                if queue.place[other] == target:
                    continue
                if queue.place[other] >= 0:
                    _remove(queue, other)
                    waiting -= 1
                _put(queue, other, target)
                waiting += 1
    for cell in range(n):
        arriving[cell] = -arriving[cell]


@compiled
def sweep(moves: Any, p: Any, rows: Any, columns: Any, goal: Any, wrap: bool, floor: float, rule: Any) -> Any:
    """Iterate u' = max(goal, max_a log Q_a) in place, from the goal outwards, until nothing changes.

    The operator is monotone and starts below its fixed point, so any order of updates rises to the same fixed point. It
    takes few sweeps where cells follow those that their value comes from: first as a flood from the goal reaches them,
    then by the values of the sweep before.

    Args:
        moves: [A, h, w], log(gamma m), -inf where the action is blocked.
        p: float64 [A, T].
        rows: int64 [T], rows to each neighbour.
        columns: int64 [T].
        goal: bool [h, w].
        wrap: Whether the map is a torus.
        floor: Value of what has no way.
        rule: Most sweeps, and the rise below which nothing changes, relative to max(1, |u|).

    Returns:
        u [h, w], the action taken [h, w] (-1 at the goal and where there is no way), the largest rise of the last
        sweep, and the number of sweeps.
    """
    most, tolerance = rule
    survival = np.exp(moves.astype(np.float64))
    u = np.where(goal, 0.0, floor)
    taken = np.full(goal.shape, -1, np.int64)
    near, odds = np.empty(len(rows)), np.empty(len(rows))
    order = _flood(survival, p, rows, columns, goal, wrap)
    change, sweeps = np.inf, 0
    while sweeps < most and change > 0.0:
        change = 0.0
        sweeps += 1
        for cell in order:
            y, x = cell // goal.shape[1], cell % goal.shape[1]
            top = floor
            for t in range(len(rows)):
                near[t] = _value(u, y + rows[t], x + columns[t], wrap, floor)
                top = max(top, near[t])
            if goal[y, x] or top <= floor:
                continue
            for t in range(len(rows)):
                odds[t] = np.exp(near[t] - top)
            best, by, behind = 0.0, -1, floor
            for a in range(len(p)):
                total = 0.0
                for t in range(len(rows)):
                    total += p[a, t] * odds[t]
                total *= survival[a, y, x]
                if total > best:
                    best, by = total, a
            if best > 1e-200:
                best = top + np.log(best)
            else:
                for a in range(len(p)):
                    behind = max(behind, moves[a, y, x] + _mean(p[a], near))
                    by = a if behind == moves[a, y, x] + _mean(p[a], near) else by
                best = behind
            rise = best - u[y, x]
            if rise > 0.0:
                # What is left of a rise shrinks geometrically; below the tolerance it is rounding.
                if rise > tolerance * max(1.0, -best):
                    change = max(change, rise)
                u[y, x], taken[y, x] = best, by
        if sweeps % 2 == 1:
            order = order[np.argsort(-u.ravel()[order], kind="mergesort")]
    return u, taken, change, sweeps


@compiled
def _flood(survival: Any, p: Any, rows: Any, columns: Any, goal: Any, wrap: bool) -> Any:
    """Return the cells from which some chain of surviving actions leads to the goal, in the order of its length."""
    height, breadth = goal.shape
    order = np.empty(goal.size, np.int64)
    seen = goal.copy()
    found = 0
    for cell in range(goal.size):
        if goal[cell // breadth, cell % breadth]:
            order[found] = cell
            found += 1
    place = 0
    while place < found:
        y, x = order[place] // breadth, order[place] % breadth
        place += 1
        for t in range(1, len(rows)):
            i, j = y - rows[t], x - columns[t]
            if wrap:
                i, j = i % height, j % breadth
            elif i < 0 or i >= height or j < 0 or j >= breadth:
                continue
            if seen[i, j]:
                continue
            for a in range(len(p)):
                if p[a, t] > 0.0 and survival[a, i, j] > 0.0:
                    seen[i, j] = True
                    order[found] = i * breadth + j
                    found += 1
                    break
    return order[:found]


@compiled
def _value(u: Any, y: int, x: int, wrap: bool, floor: float) -> float:
    """Return u at a cell, which may lie beyond the edge."""
    height, breadth = u.shape
    if wrap:
        return u[y % height, x % breadth]
    return u[y, x] if 0 <= y < height and 0 <= x < breadth else floor


@compiled
def _mean(p: Any, near: Any) -> float:
    """Return log sum_t p_t exp(near_t), where the best neighbour of all is too far above this action's."""
    own, total = -np.inf, 0.0
    for t in range(len(p)):
        if p[t] > 0.0:
            own = max(own, near[t])
    for t in range(len(p)):
        if p[t] > 0.0:
            total += p[t] * np.exp(near[t] - own)
    return own + np.log(total)


@compiled
def cheapest(moves: Any, leads: Any, directions: int) -> Any:
    """Return the least cost of a move to each neighbour, inf where none survives, and its action.

    Args:
        moves: [A, cells or patterns], log(gamma m).
        leads: integer [A], the neighbour that each action leads to.
        directions: T.

    Returns:
        float64 and int16, [cells or patterns, T].
    """
    actions, places = moves.shape
    cost = np.full((places, directions), np.inf)
    by = np.full((places, directions), -1, np.int16)
    for a in range(actions):
        t = leads[a]
        for i in range(places):
            if -moves[a, i] < cost[i, t]:
                cost[i, t] = -moves[a, i]
                by[i, t] = a
    return cost, by


@compiled
def solve_batch(
    first: int,
    last: int,
    moves: Any,
    leads: Any,
    goal: Any,
    sharp: bool,
    rule: Any,
    out: Any,
) -> None:
    """Solve the samples first..last-1.

    Args:
        first: First sample.
        last: One past the last sample.
        moves: [B, A, h, w], log(gamma m).
        leads: `Leads`.
        goal: bool [B, h, w].
        sharp: Whether each action has one destination.
        rule: Most sweeps, and the relative rise below which nothing changes.
        out: u [B, h, w], action taken [B, h, w], last change [B] and sweeps [B], written.
    """
    u, taken, changes, sweeps = out
    p, rows, columns, wrap = leads
    height, breadth = goal.shape[1:]
    floor = _floor(goal)
    destinations = np.empty(len(p), np.int64)
    for a in range(len(p)):
        destinations[a] = np.argmax(p[a])
    own = np.arange(height * breadth).reshape(height, breadth)
    for b in range(first, last):
        if sharp:
            costs = cheapest(moves[b].reshape(len(p), height * breadth), destinations, len(rows))
            settle(own, costs, leads, goal[b], -floor, u[b], taken[b])
            changes[b], sweeps[b] = 0.0, 1
        else:
            u[b], taken[b], changes[b], sweeps[b] = sweep(moves[b], p, rows, columns, goal[b], wrap, floor, rule)


@compiled
def settle_batch(first: int, last: int, pattern: Any, moves: Any, leads: Any, goal: Any, out: Any) -> None:
    """Settle the samples first..last-1, whose moves are looked up by each cell's pattern, int16 [B, h, w]."""
    u, taken, changes, sweeps = out
    for b in range(first, last):
        settle(pattern[b], moves, leads, goal[b], -_floor(goal), u[b], taken[b])
        changes[b], sweeps[b] = 0.0, 1


@compiled
def _floor(goal: Any) -> float:
    return -np.log(4.0) * (goal.shape[1] * goal.shape[2] + 1)


@compiled
def read_batch(
    first: int,
    last: int,
    pattern: Any,
    table: Any,
    leads: Any,
    floor: float,
    head: Any,
    rule: Any,
    u: Any,
    logits: Any,
) -> None:
    """Read the policy of the samples first..last-1 off their values, where each action has one destination.

    Args:
        first: First sample.
        last: One past the last sample.
        pattern: int16 [B, h, w], the row of each cell.
        table: float64 [patterns, A], log(gamma m).
        leads: `Leads`.
        floor: The least log Q.
        head: [actions, A], in the type of the logits.
        rule: What log Q_a - max log Q is scaled by, and its least.
        u: float64 [B, h, w].
        logits: [B, actions, h, w], written.
    """
    p, rows, columns, wrap = leads
    scale, least = rule
    destination = np.empty(len(p), np.int64)
    for a in range(len(p)):
        destination[a] = np.argmax(p[a])
    near, q, advantage = np.empty(len(rows)), np.empty(len(p)), np.empty(len(p), head.dtype)
    height, breadth = u.shape[1:]
    for b in range(first, last):
        value = u[b]
        for y in range(height):
            for x in range(breadth):
                inside = 0 < y < height - 1 and 0 < x < breadth - 1
                for t in range(len(rows)):
                    i, j = y + rows[t], x + columns[t]
                    near[t] = value[i, j] if inside else _value(value, i, j, wrap, floor)
                best, row = floor, pattern[b, y, x]
                for a in range(len(p)):
                    q[a] = max(floor, table[row, a] + near[destination[a]])
                    best = max(best, q[a])
                for a in range(len(p)):
                    advantage[a] = max(least, q[a] - best)
                for action in range(len(head)):
                    logits[b, action, y, x] = 0.0
                    for a in range(len(p)):
                        logits[b, action, y, x] += head[action, a] * (scale * advantage[a])
