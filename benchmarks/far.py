"""How far published or trained reachability weights find the way: `python benchmarks/far.py [TRIAL] [LARGEST]`.

For kinds and sizes of maze: starts that arrive, actions that are not optimal, the longest way, and the processor time of
one plan beside a compiled breadth-first search of the same map in the same process.
"""

import sys
import time

import numpy as np
import torch

from datagen import mazes
from datagen.expert import breadth_first
from datagen.problem import FOUR
from datagen.task import DatasetSpec, MazeOptions
from planners import load_planner
from planners.edge import plan_walled
from planners.evaluation import Inputs, evaluate
from datagen.expert import neighbours


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


def main():
    planner = load_planner(sys.argv[1] if len(sys.argv) > 1 else "reachability").planner
    largest = int(sys.argv[2]) if len(sys.argv) > 2 else 1001
    torch.set_num_threads(1)
    sizes = {
        "thinned": ((15, 2000), (27, 500), (49, 200), (99, 100)),
        "noise": ((99, 50), (401, 5)),
        "opened": ((99, 50), (401, 5), (1001, 1)),
    }
    sizes["perfect"] = ((33, 20), (59, 20), (99, 20), (201, 20), (401, 5), (513, 5), (1001, 1), (2001, 1))
    for kind, each in sizes.items():
        for size, count in each:
            if size > largest:
                continue
            options = MazeOptions(kinds=(kind,))
            spec = DatasetSpec.model_construct(
                task="mazes",
                map_size=size,
                train=0,
                valid=0,
                test=count,
                seed=7,
                options=options,
                imported=None,
                distinct="maps",
            )
            problems = mazes.draw(spec, "test", 0, count)
            found = evaluate(planner, problems, moves=FOUR, batch_size=4)
            distance = problems.distance[np.isfinite(problems.distance)]
            lost = sum(found.cells_by_distance) - sum(found.arrivals_by_distance)
            one = Inputs.of(problems[:1])
            with torch.no_grad():
                seconds = least(lambda: plan_walled(planner, one.map, one.goal, moves=FOUR), 3)
            bfs = searched(problems)
            print(
                f"{kind:8} {size:5} x {count:4}: {len(distance):9} starts, lost {lost}, success {found.success_rate}, optimality {found.optimality}, accuracy {found.accuracy}, longest {int(distance.max())}, plan {seconds * 1e3:.1f} ms, search {bfs * 1e3:.2f} ms, ratio {seconds / bfs:.0f}",
                flush=True,
            )


main()
