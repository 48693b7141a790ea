"""The tasks' definitions as plainly as they are told, in Python and numpy: what datagen's speed is compared to.

Independent of the package: another random generator, no compiled code, one problem at a time. As a program it writes
mazes in the layout that other codes exchange, a foreign test set for planners that were trained on ours:

python -m benchmarks.datagen_reference mazes.npz --size 15 --test 2000
idp import mazes.npz --task navigation --out foreign
idp evaluate STORAGE/trials/TRIAL_ID foreign/DATASET
"""

from __future__ import annotations

import argparse
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


def scene(rng: random.Random) -> list[np.ndarray]:
    """Draw 0 to 5 star-shaped polygons around the arm's base."""
    widths = np.array([rng.uniform(3, 5) for _ in range(5)])
    angles = 2 * np.pi * (rng.random() + np.cumsum(widths / widths.sum()))
    radii = np.cumsum([rng.uniform(3, 5) for _ in range(5)])
    radii = 2.5 + 2.5 * (radii - radii[0]) / (radii[-1] - radii[0])
    rng.shuffle(radii)
    polygons = []
    for slot in rng.sample(range(5), rng.randrange(6)):
        around = np.sort([rng.uniform(0, 2 * np.pi) for _ in range(rng.randrange(4, 8))])
        size = radii[slot] - 1.75
        away = np.array([rng.uniform(0.3 * size, size) for _ in around])
        centre = 5 + radii[slot] * np.array([np.cos(angles[slot]), np.sin(angles[slot])])
        polygons.append(centre + away[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1))
    return polygons


def configuration_space(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """Return the free configurations: no link crosses an edge; all edges at once for each configuration."""
    map_ = np.ones((size, size), np.uint8)
    if not polygons:
        return map_
    a = np.concatenate(polygons)
    b = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])

    def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    for i in range(size):
        for j in range(size):
            first = 2 * np.pi * i / size
            second = first + 2 * np.pi * j / size
            elbow = np.array([5 + 2.1 * np.cos(first), 5 + 2.1 * np.sin(first)])
            hand = elbow + 2.1 * np.array([np.cos(second), np.sin(second)])
            for p, q in ((np.array([5.0, 5.0]), elbow), (elbow, hand)):
                sides = cross(q - p, a - p) * cross(q - p, b - p) <= 0
                ends = cross(b - a, p - a) * cross(b - a, q - a) <= 0
                if (sides & ends).any():
                    map_[i, j] = 0
                    break
    return map_


def arm_problem(size: int, rng: random.Random) -> tuple[np.ndarray, tuple[int, int]]:
    """Draw a scene whose configuration space joins a random start and goal; return map and goal."""
    while True:
        map_ = configuration_space(scene(rng), size)
        free = [tuple(int(x) for x in cell) for cell in np.argwhere(map_)]
        if len(free) < 2:
            continue
        start, goal = rng.sample(free, 2)
        if np.isfinite(labels(map_, goal, True, rng)[0][start]):
            return map_, goal


def mazes(count: int, size: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return maps [n, m, m], goal maps [n, 1, m, m] and policies [n, 4, 1, m, m]."""
    maps, goals = np.zeros((count, size, size)), np.zeros((count, 1, size, size))
    policies = np.zeros((count, 4, 1, size, size))
    for number in range(count):
        maps[number], goal = maze(size, rng)
        goals[number, 0][goal] = 1
        _, _, label = labels(maps[number].astype(np.uint8), goal, False, rng)
        policies[number, :, 0] = label == np.arange(4)[:, None, None]
    return maps, goals, policies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--size", type=int, default=15)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    train, valid, test = (mazes(count, options.size, rng) for count in (1, 1, options.test))
    np.savez_compressed(options.file, *train, *valid, *test)


if __name__ == "__main__":
    main()
