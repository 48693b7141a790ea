"""How often a robot can plan anew on one core: `python -m benchmarks.replanning [SIZE] [ROUNDS]`, 512 and 50 by itself.

Each round moves an obstacle on an occupancy grid, reads the whole map (thresholds, inflation), plans from one corner to
the other with the published weights and turns the way into metres. Hz are of processor time, which beside other work
is what a core of one's own would give.
"""

import sys
import time

import numpy as np
import torch

from planners import load_planner
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
    """Return processor seconds of each round, and how many found a path."""
    chance = np.random.default_rng(0)
    floor, navigator = drawn(size, chance), Navigator(load_planner("reachability"), rules)
    ends = [(at * RESOLUTION, at * RESOLUTION) for at in (4.5, size - 4.5)]
    seconds, found = [], 0
    for number in range(count + 2):
        data = floor.copy()
        row, column = chance.integers(16, size - 32, 2)
        data[row : row + 8, column : column + 8] = 100
        began = time.process_time()
        assert navigator.see(OccupancyGrid(data, RESOLUTION))
        path = navigator.plan(*ends)
        if number > 1:  # the first ones compile and make tables
            seconds.append(time.process_time() - began)
            found += len(path.points) > size
    return np.array(seconds), found


def main():
    size, count = (int(word) for word in [*sys.argv[1:], *("512", "50")[len(sys.argv) - 1 :]])
    torch.set_num_threads(1)
    for name, rules in (
        ("shortest", Rules()),
        ("robot of 0.1 m", Rules(radius=0.1)),
        ("inflated to 0.5 m", Rules(radius=0.1, inflation=0.5)),
    ):
        seconds, found = rounds(rules, size, count)
        print(
            f"{name:18} {size}x{size}: {found} paths, median {1 / np.median(seconds):.1f} Hz "
            f"({1e3 * np.median(seconds):.1f} ms), worst {1 / seconds.max():.1f} Hz ({1e3 * seconds.max():.1f} ms)",
            flush=True,
        )


if __name__ == "__main__":
    main()
