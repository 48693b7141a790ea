"""Implicit differentiation of a shortest-path value function found by Dijkstra's algorithm.

V(s) = cost(s) + min over neighbours V(s'), V(goal) = 0; the gradient of V(start) by cost marks the shortest path.
Run: python examples/implicit_shortest_path.py
"""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from planners.fixed_points import root

MOVES = ((-1, 0), (0, -1), (1, 0), (0, 1))
START, GOAL = (6, 0), (0, 6)


def dijkstra(cost: np.ndarray) -> np.ndarray:
    """Return the least cost to the goal from every cell, [7, 7]; leaving a cell costs its entry of `cost`."""
    value = np.full(cost.shape, np.inf)
    value[GOAL] = 0.0
    queue = [(0.0, GOAL)]
    while queue:
        distance, (i, j) = heapq.heappop(queue)
        for cell in ((i + di, j + dj) for di, dj in MOVES if 0 <= i + di < 7 and 0 <= j + dj < 7):
            if distance + cost[cell] < value[cell]:
                value[cell] = distance + cost[cell]
                heapq.heappush(queue, (value[cell], cell))
    return value


def main() -> tuple[Tensor, Tensor]:
    """Print and return dV(start)/dcost, implicit and by finite differences, [7, 7] each."""
    cost = torch.rand(7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).add(0.2).requires_grad_()
    away = torch.ones(7, 7, dtype=torch.float64)
    away[GOAL] = 0.0

    def bellman_error(v: Tensor) -> Tensor:  # [1, 7, 7]
        padded = pad(v, (1, 1, 1, 1), value=torch.inf)
        neighbours = [padded[:, 1 + di : 8 + di, 1 + dj : 8 + dj] for di, dj in MOVES]
        return v - away * (cost + torch.stack(neighbours).amin(dim=0))

    solution = root(bellman_error, solution=torch.from_numpy(dijkstra(cost.detach().numpy()))[None])
    (implicit,) = torch.autograd.grad(solution.value[0][START], cost)
    differences = torch.zeros(7, 7, dtype=torch.float64)
    for cell, change in zip(np.ndindex(7, 7), 1e-6 * np.eye(49).reshape(49, 7, 7), strict=True):
        above, below = (dijkstra(cost.detach().numpy() + sign * change)[START] for sign in (1, -1))
        differences[cell] = (above - below) / 2e-6
    print(f"dV(start)/dcost, implicit:\n{implicit.round().int()}\nfinite differences:\n{differences.round().int()}")
    return implicit, differences


if __name__ == "__main__":
    main()
