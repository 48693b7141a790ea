"""How far published or trained reachability weights find the way: `python -m benchmarks.far [TRIAL] [LARGEST]`.

For kinds and sizes of maze: starts that do not arrive, the share of actions that are optimal, the longest way, and the
processor time of one plan beside a compiled breadth-first search of the same map in the same process.
"""

import sys
import time
from functools import partial

import numpy as np
import torch

from datagen.expert.grid import breadth_first, neighbours
from datagen.options import MazeOptions
from datagen.problem import FOUR
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import load_planner
from planners.edge import plan_walled
from planners.training.evaluation import Inputs, evaluate


def searched(problems):
    """Return the processor seconds of one breadth-first search of the first map, the least of five."""
    size = problems.map.shape[1]
    cells, goal = problems.map[0].ravel(), int(problems.goal[0, 0]) * size + int(problems.goal[0, 1])
    sources, queue, distance = (
        neighbours(size, size, FOUR, -1),
        np.empty(size * size, np.int32),
        np.empty(size * size, np.float32),
    )
    return least(lambda: breadth_first(cells, goal, sources, queue, distance))


def least(run, times=5):
    found = []
    for _ in range(times):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


SIZES = {
    "thinned": ((15, 2000), (27, 500), (49, 200), (99, 100)),
    "noise": ((99, 50), (401, 5)),
    "opened": ((99, 50), (401, 5), (1001, 1)),
    "perfect": ((33, 20), (59, 20), (99, 20), (201, 20), (401, 5), (513, 5), (1001, 1)),
}


def judged(planner, kind, size, count):
    """Return one line of the table."""
    spec = DatasetSpec(task="mazes", map_size=size, test=count, seed=7, options=MazeOptions(kinds=(kind,)))
    problems = mazes.draw(spec, "test", 0, count)
    found = evaluate(planner, problems, moves=FOUR, batch_size=4)
    distance = problems.distance[np.isfinite(problems.distance)]
    starts, arrived = sum(found.cells_by_distance), sum(found.arrivals_by_distance)
    one = Inputs.of(problems[:1])
    with torch.no_grad():
        seconds = least(partial(plan_walled, planner, one.map, one.goal, moves=FOUR), 3)
    search = searched(problems)
    return (
        f"{kind:8} {size:5} x {count:4}: {starts:8} starts, {starts - arrived} lost, accuracy {found.accuracy}, "
        f"longest {int(distance.max()):6}, plan {seconds * 1e3:.1f} ms, search {search * 1e3:.2f} ms, "
        f"{seconds / search:.0f} times"
    )


def main():
    planner = load_planner(sys.argv[1] if len(sys.argv) > 1 else "reachability").planner
    largest = int(sys.argv[2]) if len(sys.argv) > 2 else 1001
    torch.set_num_threads(1)
    for kind, sizes in SIZES.items():
        for size, count in sizes:
            if size <= largest:
                print(judged(planner, kind, size, count), flush=True)


if __name__ == "__main__":
    main()
