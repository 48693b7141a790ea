"""How often a robot can plan anew on one core: `python -m benchmarks.replanning [SIZE] [ROUNDS]`, 512 and 50 by itself.

Each round moves an obstacle on an occupancy grid, reads the map (thresholds, inflation), plans from one corner to the
other with the published weights and turns the way into metres. Rounds are taken in turns by a planner that plans all
anew and by one that repairs its last plan. Hz are of processor time, which beside other work is what a core of one's
own would give.
"""

import sys
import time

import numpy as np
import torch

from planners import load_planner
from planners.replanning import Replanner
from planners.robot import Navigator, OccupancyGrid, Rules

RESOLUTION = 0.05


def drawn(size, chance):
    """A floor with walls, doors and boxes; corners are free."""
    data = np.zeros((size, size), np.int8)
    for at in range(64, size - 16, 64):
        data[at, :] = 100
        for door in chance.integers(8, size - 24, 8):
            data[at, door : door + 16] = 0
    for row, column in chance.integers(0, size - 8, (size // 2, 2)):
        data[row : row + 6, column : column + 6] = 100
    data[:12, :12] = data[-12:, -12:] = 0
    return data


def rounds(rules, size, count):
    """Return processor seconds of each round, anew and repaired [count, 2], and how many of each found a path."""
    chance = np.random.default_rng(0)
    planner, floor = load_planner("reachability"), drawn(size, chance)
    navigators = Navigator(planner, rules), Navigator(Replanner(planner), rules)
    ends = [(at * RESOLUTION, at * RESOLUTION) for at in (4.5, size - 4.5)]
    seconds, found = np.zeros((count, 2)), np.zeros(2, int)
    for number in range(-2, count):  # the first ones compile and make tables
        data = floor.copy()
        row, column = chance.integers(16, size - 32, 2)
        data[row : row + 8, column : column + 8] = 100
        paths = []
        for which, navigator in enumerate(navigators):
            began = time.process_time()
            assert navigator.see(OccupancyGrid(data, RESOLUTION))
            paths.append(navigator.plan(*ends))
            if number >= 0:
                seconds[number, which] = time.process_time() - began
                found[which] += len(paths[-1].points) > size
        assert np.array_equal(paths[0].cells, paths[1].cells)
    return seconds, found


def main():
    size, count = (int(word) for word in [*sys.argv[1:], *("512", "50")[len(sys.argv) - 1 :]])
    torch.set_num_threads(1)
    for name, rules in (
        ("shortest", Rules()),
        ("robot of 0.1 m", Rules(radius=0.1)),
        ("inflated to 0.5 m", Rules(radius=0.1, inflation=0.5)),
    ):
        seconds, found = rounds(rules, size, count)
        for which, how in enumerate(("anew", "repaired")):
            taken = seconds[:, which]
            print(
                f"{name:18} {how:8} {size}x{size}: {found[which]} paths, median {1 / np.median(taken):.1f} Hz "
                f"({1e3 * np.median(taken):.1f} ms), worst {1 / taken.max():.1f} Hz ({1e3 * taken.max():.1f} ms)",
                flush=True,
            )


if __name__ == "__main__":
    main()
