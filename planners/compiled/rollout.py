"""Roll-outs compiled for the CPU: every cell is walked through once, and the measures are summed in the same pass.

Legend: n maps, S cells of a map.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel

_UNKNOWN, _ARRIVES, _FAILS, _ON_THE_WAY = 0, 1, 2, 3


class Policies(NamedTuple):
    """What is rolled out: int64 actions [n, h, w] on the maps, with what is known of them.

    free: uint8 [n, h, w]; goal: int64 [n, 2]; distance: float32 [n, h, w]; optimal_actions: uint8 [n, h, w].
    """

    actions: NDArray[np.int64]
    free: NDArray[np.uint8]
    goal: NDArray[np.int64]
    distance: NDArray[np.float32]
    optimal_actions: NDArray[np.uint8]


class Rules(NamedTuple):
    """What actions do, and in which bins of distance is counted.

    offsets: int64 [actions, 2]; costs: float32 [actions]; wrap: whether the map is a torus; ends: float32 [bins],
    upper ends.
    """

    offsets: NDArray[np.int64]
    costs: NDArray[np.float32]
    wrap: bool
    ends: NDArray[np.float32]


@kernel
def _add_maps(policies: Policies, rules: Rules, shares: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Add success, optimality, SPL, accuracy and success squared, each of a map, and cells and arrivals per bin.

    Args:
        policies: What is rolled out.
        rules: What actions do.
        shares: float64 [5], added to.
        counts: int64 [2, bins], added to.
    """
    actions, free, goal, distance, optimal_actions = policies
    offsets, costs, wrap, ends = rules
    n, height, width = actions.shape
    state, cost = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
    way = np.empty((height * width, 2), np.int64)
    for m in range(n):
        state[:] = _UNKNOWN
        state[goal[m, 0], goal[m, 1]] = _ARRIVES
        cost[goal[m, 0], goal[m, 1]] = 0
        reachable = away = arrivals = optimal = accurate = 0
        spl = 0.0
        for row in range(height):
            for column in range(width):
                best = distance[m, row, column]
                if not np.isfinite(best):
                    continue
                i, j, length = row, column, 0
                while state[i, j] == _UNKNOWN:
                    state[i, j] = _ON_THE_WAY
                    way[length, 0], way[length, 1] = i, j
                    length += 1
                    a = actions[m, i, j]
                    to_row, to_column = i + offsets[a, 0], j + offsets[a, 1]
                    if wrap:
                        to_row, to_column = to_row % height, to_column % width
                    if 0 <= to_row < height and 0 <= to_column < width and free[m, to_row, to_column]:
                        i, j = to_row, to_column
                arrives, taken = state[i, j] == _ARRIVES, cost[i, j]
                for at in range(length - 1, -1, -1):
                    i, j = way[at, 0], way[at, 1]
                    taken += costs[actions[m, i, j]]
                    cost[i, j] = taken
                    state[i, j] = _ARRIVES if arrives else _FAILS
                arrives, taken = state[row, column] == _ARRIVES, cost[row, column]
                reachable += 1
                arrivals += arrives
                if arrives:
                    optimal += taken <= best + min(np.float32(1e-5) * (best + np.float32(1)), np.float32(0.5))
                    spl += 1.0 if best == 0 else best / max(taken, np.float32(1e-9))
                if optimal_actions[m, row, column]:
                    away += 1
                    accurate += (optimal_actions[m, row, column] >> actions[m, row, column]) & 1
                    b = 0
                    while best > ends[b]:
                        b += 1
                    counts[0, b] += 1
                    counts[1, b] += arrives
        shares[0] += arrivals / max(reachable, 1)
        shares[1] += optimal / max(reachable, 1)
        shares[2] += spl / max(reachable, 1)
        shares[3] += accurate / away if away else 1.0
        shares[4] += (arrivals / max(reachable, 1)) ** 2


def sums_over_maps(
    policies: Policies,
    offsets: tuple[tuple[int, int], ...],
    costs: tuple[float, ...],
    wrap: bool,
    ends: tuple[float, ...],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sums of `_add_maps`: shares float64 [5], cells and arrivals per bin int64 [2, bins]; see `Rules`."""
    shares, counts = np.zeros(5), np.zeros((2, len(ends)), np.int64)
    rules = Rules(np.array(offsets, np.int64), np.array(costs, np.float32), wrap, np.array(ends, np.float32))
    _add_maps(policies, rules, shares, counts)
    return shares, counts
