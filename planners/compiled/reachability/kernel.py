"""Reachability solved on one map: best first where every latent action has one destination, by sweeps where it mixes.

Legend: u = log v, D = -u >= 0 the cost of arriving; B samples, A latent actions, T neighbours (the cell itself first),
    h and w rows and columns; P where an action leads.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np

from planners.compiled.layout import compiled
from planners.compiled.reachability.policy import value_at


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
def settle_by_heap(row: Any, moves: Any, costs: Any, leads: Any, goal: Any, limit: float, u: Any, action: Any) -> None:
    """Settle cells as `settle` does, where entering one costs what it says: costs of any range, which suit no buckets.

    Args:
        row: As `settle` takes it.
        moves: The same.
        costs: float64 [h, w], what entering each cell costs.
        leads: As `settle` takes it.
        goal: The same.
        limit: The same.
        u: The same.
        action: The same.
    """
    cost, by = moves
    _, rows, columns, wrap = leads
    height, breadth = row.shape
    arriving, taken = u.reshape(-1), action.reshape(-1)  # D until the end
    arriving[:], taken[:] = limit, -1
    heap = [(0.0, np.int64(0)) for _ in range(0)]
    for start in range(row.size):
        if goal[start // breadth, start % breadth]:
            arriving[start] = 0.0
            heapq.heappush(heap, (0.0, np.int64(start)))
    while len(heap) > 0:
        reached, cell = heapq.heappop(heap)
        if reached > arriving[cell]:
            continue
        y, x = cell // breadth, cell % breadth
        entered = reached + costs[y, x]
        for t in range(1, len(rows)):
            i, j = y - rows[t], x - columns[t]
            if wrap:
                i, j = i % height, j % breadth
            elif i < 0 or i >= height or j < 0 or j >= breadth:
                continue
            other = i * breadth + j
            total = entered + cost[row[i, j], t]
            if total < arriving[other]:
                arriving[other], taken[other] = total, by[row[i, j], t]
                heapq.heappush(heap, (total, np.int64(other)))
    for start in range(row.size):
        arriving[start] = -arriving[start]


@compiled
def sweep(moves: Any, costs: Any, leads: Any, goal: Any, floor: float, rule: Any) -> Any:
    """Iterate u' = max(goal, max_a log Q_a) in place, from the goal outwards, until nothing changes.

    The operator is monotone and starts below its fixed point, so any order of updates rises to the same fixed point. It
    takes few sweeps where cells follow those that their value comes from: first as a flood from the goal reaches them,
    then by the values of the sweep before.

    Args:
        moves: [A, h, w], log(gamma m), -inf where the action is blocked.
        costs: float64 [h, w], what entering each cell costs beside that.
        leads: `Leads`.
        goal: bool [h, w].
        floor: Value of what has no way.
        rule: Most sweeps, the rise below which nothing changes, relative to max(1, |u|), and the value beyond the edge.

    Returns:
        u [h, w], the action taken [h, w] (-1 at the goal and where there is no way), the largest rise of the last
        sweep, and the number of sweeps.
    """
    most, tolerance, outside = rule
    p, rows, columns, wrap = leads
    survival = np.exp(moves.astype(np.float64))
    u = np.where(goal, 0.0, floor)
    entered = u - costs
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
                near[t] = value_at(entered, y + rows[t], x + columns[t], wrap, outside)
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
                u[y, x], entered[y, x], taken[y, x] = best, best - costs[y, x], by
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
    first: int, last: int, moves: Any, costs: Any, leads: Any, goal: Any, floor: Any, rule: Any, out: Any
) -> None:
    """Solve the samples first..last-1 by sweeps.

    Args:
        first: First sample.
        last: One past the last sample.
        moves: [B, A, h, w], log(gamma m).
        costs: float64 [B, h, w], what entering each cell costs beside that.
        leads: `Leads`.
        goal: bool [B, h, w].
        floor: float64 [B], value of what has no way.
        rule: Most sweeps, the relative rise below which nothing changes, and the value beyond the edge.
        out: u [B, h, w], action taken [B, h, w], last change [B] and sweeps [B], written.
    """
    u, taken, changes, sweeps = out
    for b in range(first, last):
        u[b], taken[b], changes[b], sweeps[b] = sweep(moves[b], costs[b], leads, goal[b], floor[b], rule)


@compiled
def settle_batch(
    first: int, last: int, row: Any, table: Any, costs: Any, leads: Any, goal: Any, floor: Any, out: Any
) -> None:
    """Settle the samples first..last-1, where each action has one destination.

    Args:
        first: First sample.
        last: One past the last sample.
        row: Integer [B, h, w] or [1, h, w], where in the tables a cell's moves are.
        table: [1 or B, A, cells or patterns], log(gamma m), for all samples or each.
        costs: float64 [B, h, w], what entering each cell costs beside that, positive; [0, 0, 0] where nothing.
        leads: `Leads`.
        goal: bool [B, h, w].
        floor: float64 [B], value of what has no way.
        out: As `solve_batch` writes.
    """
    u, taken, changes, sweeps = out
    destinations = np.empty(len(leads.p), np.int64)
    for a in range(len(destinations)):
        destinations[a] = np.argmax(leads.p[a])
    for b in range(first, last):
        if b == first or len(table) > 1:
            cost, by = cheapest(table[min(b, len(table) - 1)], destinations, len(leads.rows))
        rows = row[b if len(row) > 1 else 0]
        if len(costs) > 0:
            settle_by_heap(rows, (cost, by), costs[b], leads, goal[b], -floor[b], u[b], taken[b])
        else:
            settle(rows, (cost, by), leads, goal[b], -floor[b], u[b], taken[b])
        changes[b], sweeps[b] = 0.0, 1
