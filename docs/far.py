"""The picture of `reachability`: `python docs/far.py` draws docs/images/far.png again, from the published weights.

A perfect maze of 201x201 that the planner has never seen, its value as colour (bright near the goal), and the way that
its policy takes from the cell that is farthest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datagen.options import MazeOptions
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import load_planner

PICTURE = Path(__file__).parent / "images" / "far.png"
SIZE, SEED, TRIED = 201, 7, 8
INCHES, DOTS = 6.7, 150


def farthest_problem() -> tuple[np.ndarray, tuple[int, int], tuple[int, int], int]:
    """Return map, goal, farthest cell and its distance, of the maze with the longest way among a few."""
    spec = DatasetSpec(task="mazes", map_size=SIZE, test=TRIED, seed=SEED, options=MazeOptions(kinds=("perfect",)))
    problems = mazes.draw(spec, "test", 0, TRIED)
    distance = np.where(np.isfinite(problems.distance), problems.distance, -1)
    number, row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    goal = int(problems.goal[number, 0]), int(problems.goal[number, 1])
    return problems.map[number], goal, (int(row), int(column)), int(distance.max())


def draw(path: Path) -> str:
    """Write the picture; return what it shows."""
    grid, goal, start, distance = farthest_problem()
    route = load_planner("reachability").solve(grid, goal=goal, start=start)
    assert route.arrives and route.cost == distance, "the published weights are proven to"
    figure = Figure(figsize=(INCHES, INCHES), dpi=DOTS)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.ma.masked_where(grid == 0, route.values), cmap="YlGnBu_r", vmin=1.15 * route.values[start])
    axes.set_facecolor("#1b1b1f")
    axes.plot(route.cells[:, 1], route.cells[:, 0], color="#e4572e", linewidth=1.4, solid_joinstyle="miter")
    axes.plot(start[1], start[0], "o", color="white", markeredgecolor="#e4572e", markersize=9, markeredgewidth=2)
    axes.plot(goal[1], goal[0], "*", color="#f0e442", markeredgecolor="black", markersize=18)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5))
    figure.savefig(path, metadata={"Software": None})
    return f"{path}: {SIZE}x{SIZE}, a way of {distance:,} steps"


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE))
