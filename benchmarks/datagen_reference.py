"""The tasks' definitions as plainly as they are told, in Python and numpy: what datagen's speed is compared to.

Independent of the package: another random generator, no compiled code, one problem at a time.
"""

from __future__ import annotations

import random
from collections import deque

import numpy as np

MOVES = ((-1, 0), (0, -1), (1, 0), (0, 1))


def maze(size: int, rng: random.Random) -> tuple[np.ndarray, tuple[int, int]]:
    """Carve a perfect maze, thin it out, place a goal."""
    map_ = np.zeros((size, size), np.uint8)
    map_[1, 1] = 1
    path = [(1, 1)]
    while path:
        row, column = path[-1]
        ways = [
            (dr, dc)
            for dr, dc in MOVES
            if 0 < row + 2 * dr < size and 0 < column + 2 * dc < size and not map_[row + 2 * dr, column + 2 * dc]
        ]
        if not ways:
            path.pop()
            continue
        dr, dc = rng.choice(ways)
        map_[row + dr, column + dc] = map_[row + 2 * dr, column + 2 * dc] = 1
        path.append((row + 2 * dr, column + 2 * dc))
    probability = rng.random()
    for row in range(1, size - 1):
        for column in range(1, size - 1):
            if rng.random() < probability:
                map_[row, column] = 1
    goal = (1, 1)
    while goal == (1, 1):
        goal = (rng.randrange(1, size - 1), rng.randrange(1, size - 1))
    map_[goal] = 1
    return map_, goal


def labels(
    map_: np.ndarray, goal: tuple[int, int], wrap: bool, rng: random.Random
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return distances, optimal actions and one-hot labels."""
    height, width = map_.shape

    def move(cell: tuple[int, int], step: tuple[int, int]) -> tuple[int, int]:
        row, column = cell[0] + step[0], cell[1] + step[1]
        if wrap:
            row, column = row % height, column % width
        inside = 0 <= row < height and 0 <= column < width
        return (row, column) if inside and map_[row, column] else cell

    distance = np.full(map_.shape, np.inf, np.float32)
    distance[goal] = 0
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for step in MOVES:
            before = move(cell, step)
            if distance[before] == np.inf:
                distance[before] = distance[cell] + 1
                queue.append(before)
    optimal = np.zeros(map_.shape, np.uint8)
    label = np.zeros(map_.shape, np.uint8)
    for cell in np.ndindex(height, width):
        reached = [distance[move(cell, step)] for step in MOVES]
        best = min(reached)
        ties = [action for action in range(4) if reached[action] == best]
        label[cell] = rng.choice(ties)
        if 0 < distance[cell] < np.inf:
            optimal[cell] = sum(1 << action for action in ties)
    return distance, optimal, label
