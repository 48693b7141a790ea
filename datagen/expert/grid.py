"""The expert: exact goal distances, all optimal actions, and the literature's one-hot label."""

from __future__ import annotations

import heapq
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel
from datagen.problem import Moves, Problems
from datagen.sampling.splitmix import GAMMA, mix
from datagen.shapes import shaped_last

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer, UInt8, UInt64

_S32 = np.uint64(32)
_TIE = 1e-6
"""Relative difference under which two costs are a tie: above float32's rounding, exact for up to 500,000 unit costs."""


@cache
def neighbours(height: int, width: int, moves: Moves, sign: int) -> NDArray[np.int32]:
    """Return where each move leads (sign 1) or comes from (-1), int32 [h * w, actions]; outside is the cell itself."""
    offsets = sign * np.array(moves.offsets, np.int64)
    here = np.arange(height * width).reshape(height, width, 1)
    rows = np.arange(height)[:, None, None] + offsets[:, 0]
    columns = np.arange(width)[None, :, None] + offsets[:, 1]
    if moves.wrap:
        rows, columns = rows % height, columns % width
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    table = np.where(inside, rows * width + columns, here).reshape(height * width, -1).astype(np.int32)
    table.flags.writeable = False
    return table


@cache
def _choices(actions: int) -> NDArray[np.uint8]:
    """Return the k-th action of every set of actions, uint8 [2^actions, actions + 1]; last column: the set's size."""
    table = np.zeros((1 << actions, actions + 1), np.uint8)
    for bits in range(1 << actions):
        members = [action for action in range(actions) if bits >> action & 1]
        table[bits, : len(members)] = members
        table[bits, actions] = len(members)
    table.flags.writeable = False
    return table


@kernel
def breadth_first(
    cells: NDArray[np.uint8],
    goal: int,
    sources: NDArray[np.int32],
    queue: NDArray[np.int32],
    distance: NDArray[np.float32],
) -> int:
    """Write the number of steps to cell `goal` into `distance` [h * w]; inf where there is no path.

    Args:
        cells: uint8 [h * w], 1 = free.
        goal: Flat index of the goal, a free cell.
        sources: int32 [h * w, actions], the cell each action comes from, itself where that is outside.
        queue: int32 [h * w + 1], work space: the cells that reach the goal, nearest first.
        distance: float32 [h * w], the result.

    Returns:
        Number of cells that reach the goal, the goal included.
    """
    # Infinity marks cells to be reached, -1 obstacles, so one comparison tells; the writes need no branch.
    for cell in range(len(cells)):
        distance[cell] = np.float32(np.inf) if cells[cell] != 0 else np.float32(-1.0)
    distance[goal] = 0.0
    queue[0] = goal
    head: Any = 0
    tail: Any = 1
    while head < tail:
        cell = queue[head]
        head += 1
        further = distance[cell] + np.float32(1.0)
        for action in range(sources.shape[1]):
            source = sources[cell, action]
            before = distance[source]
            is_new = before == np.float32(np.inf)
            distance[source] = further if is_new else before
            queue[tail] = source
            tail += np.int64(is_new)
    for cell in range(len(cells)):
        distance[cell] = np.float32(np.inf) if distance[cell] < 0 else distance[cell]
    return tail


@kernel
def _breadth_first_all(
    maps: NDArray[np.uint8], goals: NDArray[np.int64], sources: NDArray[np.int32]
) -> NDArray[np.float32]:
    distance = np.empty(maps.shape, np.float32)
    queue = np.empty(maps.shape[1] + 1, np.int32)
    for i in range(len(maps)):
        breadth_first(maps[i], goals[i], sources, queue, distance[i])
    return distance


@kernel
def _dijkstra_all(
    maps: NDArray[np.uint8],
    goals: NDArray[np.int64],
    sources: NDArray[np.int32],
    costs: NDArray[np.float64],
) -> NDArray[np.float32]:
    result = np.empty(maps.shape, np.float32)
    distance = np.empty(maps.shape[1], np.float64)
    for i in range(len(maps)):
        distance[:] = np.inf
        distance[goals[i]] = 0.0
        heap = [(0.0, goals[i])]
        while len(heap) > 0:
            reached, cell = heapq.heappop(heap)
            if reached > distance[cell]:
                continue
            for action in range(sources.shape[1]):
                source = sources[cell, action]
                if maps[i, source] == 0:
                    continue
                longer = reached + costs[action]
                if longer < distance[source]:
                    distance[source] = longer
                    heapq.heappush(heap, (longer, np.int64(source)))
        result[i] = distance
    return result


@kernel
def _optimal_all(
    distance: NDArray[np.float32], targets: NDArray[np.int32], costs: NDArray[np.float64]
) -> NDArray[np.uint8]:
    optimal = np.empty(distance.shape, np.uint8)
    for i in range(len(distance)):
        for cell in range(distance.shape[1]):
            here = distance[i, cell]
            bound = np.float64(here) * (1.0 + _TIE)
            bits: Any = 0
            # Obstacles are infinitely far and a bump is no nearer than here, so neither needs a test of its own.
            for action in range(len(costs)):
                reached = np.float64(distance[i, targets[cell, action]]) + costs[action]
                bits |= np.int64(reached <= bound) << action
            optimal[i, cell] = bits if here < np.float32(np.inf) else 0
    return optimal


@kernel
def _tied(
    map_: NDArray[np.uint8],
    distance: NDArray[np.float32],
    cell: int,
    targets: NDArray[np.int32],
    costs: NDArray[np.float64],
) -> int:
    """Return the actions that share the least c_a + d(next state), as bits; a blocked move stays."""
    best = np.inf
    for action in range(len(costs)):
        target = targets[cell, action]
        target = target if map_[target] != 0 else cell
        best = min(best, np.float64(distance[target]) + costs[action])
    bound = best * (1.0 + _TIE)
    ties: Any = 0
    for action in range(len(costs)):
        target = targets[cell, action]
        target = target if map_[target] != 0 else cell
        ties |= np.int64(np.float64(distance[target]) + costs[action] <= bound) << action
    return ties


@kernel
def _tied_all(
    maps: NDArray[np.uint8],
    distance: NDArray[np.float32],
    targets: NDArray[np.int32],
    costs: NDArray[np.float64],
) -> NDArray[np.uint8]:
    ties = np.empty(maps.shape, np.uint8)
    for i in range(len(maps)):
        for cell in range(maps.shape[1]):
            ties[i, cell] = _tied(maps[i], distance[i], cell, targets, costs)
    return ties


@kernel
def _label_all(
    maps: NDArray[np.uint8],
    distance: NDArray[np.float32],
    optimal: NDArray[np.uint8],
    targets: NDArray[np.int32],
    costs: NDArray[np.float64],
    choices: NDArray[np.uint8],
    seeds: NDArray[np.uint64],
) -> NDArray[np.uint8]:
    label = np.empty(maps.shape, np.uint8)
    for i in range(len(maps)):
        for cell in range(maps.shape[1]):
            ties = np.int64(optimal[i, cell])
            if ties == 0:
                ties = _tied(maps[i], distance[i], cell, targets, costs)
            # Keyed by the cell, so a cell's draw depends on no other cell.
            draw = mix(seeds[i] + GAMMA * np.uint64(cell + 1)) >> _S32
            label[i, cell] = choices[ties, (draw * np.uint64(choices[ties, len(costs)])) >> _S32]
    return label


def _flat(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(array).reshape(len(array), array.shape[1] * array.shape[2])


def _check(map_: NDArray[np.uint8], moves: Moves) -> None:
    if map_.ndim != 3 or map_.dtype != np.uint8:
        raise ValueError(f"map: expected uint8 [n, h, w], got {map_.dtype} {list(map_.shape)}")
    if len(moves.offsets) > 8:
        raise ValueError(f"moves: a bit mask holds at most 8 actions, got {len(moves.offsets)}")
    if moves.links:
        raise ValueError("moves: where every problem has roads of its own, datagen.expert.graph makes the labels")


@shaped_last
def goal_distances(
    map_: UInt8[NDArray[np.uint8], "n h w"], goal: Integer[NDArray[np.int16], "n 2"], moves: Moves
) -> Float32[NDArray[np.float32], "n h w"]:
    """Return the cost of the cheapest path from every cell to the goal.

    d(s) = min_a c_a + d(s + a), d(goal) = 0, over moves that end on a free cell: breadth-first search where all moves
    cost 1, Dijkstra's algorithm otherwise.

    Args:
        map_: uint8 [n, h, w], 1 = free.
        goal: Integers [n, 2], row and column, free cells.
        moves: What the agent can do; costs positive.

    Returns:
        float32 [n, h, w]; inf on obstacles and where no path leads to the goal.

    Raises:
        ValueError: An array has another shape or type, or a goal lies on an obstacle.
    """
    _check(map_, moves)
    n, height, width = map_.shape
    goal = np.asarray(goal, np.int64)
    if goal.shape != (n, 2):
        raise ValueError(f"goal: expected [{n}, 2], got {list(goal.shape)}")
    outside = ((goal < 0) | (goal >= (height, width))).any(axis=1)
    if outside.any():
        raise ValueError(f"goal: problem {int(outside.argmax())} has its goal outside the map")
    if n and not map_[np.arange(n), goal[:, 0], goal[:, 1]].all():
        blocked = int((map_[np.arange(n), goal[:, 0], goal[:, 1]] == 0).argmax())
        raise ValueError(f"goal: problem {blocked} has its goal on an obstacle")
    sources = neighbours(height, width, moves, -1)
    flat_goal = goal[:, 0] * width + goal[:, 1]
    if all(cost == 1.0 for cost in moves.costs):
        distance = _breadth_first_all(_flat(map_), flat_goal, sources)
    else:
        distance = _dijkstra_all(_flat(map_), flat_goal, sources, np.array(moves.costs, np.float64))
    return distance.reshape(map_.shape)


@shaped_last
def optimal_actions(
    map_: UInt8[NDArray[np.uint8], "n h w"], distance: Float32[NDArray[np.float32], "n h w"], moves: Moves
) -> UInt8[NDArray[np.uint8], "n h w"]:
    """Return all optimal actions of every cell as a bit mask.

    Args:
        map_: uint8 [n, h, w], 1 = free.
        distance: float32 [n, h, w] from `goal_distances`.
        moves: The moves that the distances were made with.

    Returns:
        uint8 [n, h, w]: bit a is set where c_a + d(s + a) = d(s); 0 at the goal, on obstacles and where no path
        leads to the goal.
    """
    _check(map_, moves)
    targets = neighbours(map_.shape[1], map_.shape[2], moves, 1)
    optimal = _optimal_all(_flat(distance), targets, np.array(moves.costs, np.float64))
    return optimal.reshape(map_.shape)


@shaped_last
def one_hot_label(
    map_: UInt8[NDArray[np.uint8], "n h w"],
    distance: Float32[NDArray[np.float32], "n h w"],
    moves: Moves,
    seeds: UInt64[NDArray[np.uint64], " n"],
) -> UInt8[NDArray[np.uint8], "n h w"]:
    """Return one action per cell, every cell: the literature's label, ties drawn once.

    The action with the least c_a + d(next state), where a blocked move stays and no path is infinitely far. So an
    obstacle is labelled as if the agent could leave it, cells with no way out draw any action, and the goal's label
    is a bump where a wall is near, any action otherwise.

    Args:
        map_: uint8 [n, h, w], 1 = free.
        distance: float32 [n, h, w] from `goal_distances`.
        moves: The moves that the distances were made with.
        seeds: uint64 [n], from which the problem's ties are drawn.

    Returns:
        uint8 [n, h, w], numbers of actions.
    """
    _check(map_, moves)
    if seeds.shape != (len(map_),):
        raise ValueError(f"seeds: expected [{len(map_)}], got {list(seeds.shape)}")
    return _labelled(map_, distance, optimal_actions(map_, distance, moves), moves, seeds)


@shaped_last
def tied_actions(
    map_: UInt8[NDArray[np.uint8], "n h w"], distance: Float32[NDArray[np.float32], "n h w"], moves: Moves
) -> UInt8[NDArray[np.uint8], "n h w"]:
    """Return the actions among which `one_hot_label` draws, every cell: the literature's "full" label.

    On cells that reach the goal, the goal left out, these are the optimal actions.

    Args:
        map_: uint8 [n, h, w], 1 = free.
        distance: float32 [n, h, w] from `goal_distances`.
        moves: The moves that the distances were made with.

    Returns:
        uint8 [n, h, w], bit masks.
    """
    _check(map_, moves)
    targets = neighbours(map_.shape[1], map_.shape[2], moves, 1)
    ties = _tied_all(_flat(map_), _flat(distance), targets, np.array(moves.costs, np.float64))
    return ties.reshape(map_.shape)


def _labelled(
    map_: NDArray[np.uint8],
    distance: NDArray[np.float32],
    optimal: NDArray[np.uint8],
    moves: Moves,
    seeds: NDArray[np.uint64],
) -> NDArray[np.uint8]:
    targets = neighbours(map_.shape[1], map_.shape[2], moves, 1)
    costs, choices = np.array(moves.costs, np.float64), _choices(len(moves.costs))
    flat = (_flat(map_), _flat(distance), _flat(optimal))
    label = _label_all(*flat, targets, costs, choices, seeds.astype(np.uint64))
    return label.reshape(map_.shape)


@shaped_last
def solve(
    map_: UInt8[NDArray[np.uint8], "n h w"],
    goal: Integer[NDArray[np.int16], "n 2"],
    moves: Moves,
    seeds: UInt64[NDArray[np.uint64], " n"],
) -> Problems:
    """Return maps and goals with all their expert labels, as one batch of problems.

    Args:
        map_: uint8 [n, h, w], 1 = free.
        goal: int16 [n, 2].
        moves: What the agent can do.
        seeds: uint64 [n], from which ties are drawn.
    """
    distance = goal_distances(map_, goal, moves)
    optimal = optimal_actions(map_, distance, moves)
    label = _labelled(map_, distance, optimal, moves, seeds)
    return Problems(map=map_, goal=goal.astype(np.int16), distance=distance, optimal_actions=optimal, label=label)
