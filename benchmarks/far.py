"""How far published or trained reachability weights find the way: `python -m benchmarks.far [TRIAL] [LARGEST]`.

For kinds and sizes of maze: starts that do not arrive, the share of actions that are optimal, the longest way, and the
processor time of one plan beside a compiled breadth-first search of the same map in the same process. Both are of the
first map from most of which there is a way. Sizes above 1001 take minutes and some GiB: LARGEST is 1001 unless told.
The last lines are of training: a solve that keeps what a gradient needs, and the adjoint system of a random gradient.
"""

import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from datagen.expert.grid import breadth_first, neighbours, solve
from datagen.options import MazeOptions
from datagen.problem import FOUR
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import load_planner
from planners.compiled.reachability import best_first
from planners.compiled.solvers import BestFirst
from planners.edge import plan_walled
from planners.fixed_points import Implicit
from planners.training.evaluation import Inputs, evaluate


def searched(problems):
    """Return the processor seconds of one breadth-first search of the one map, the least of five."""
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
    "open": ((99, 50), (512, 5)),
    "opened": ((99, 50), (401, 5), (1001, 1)),
    "perfect": ((33, 20), (59, 20), (99, 20), (201, 20), (401, 5), (513, 5), (1001, 5), (2001, 5)),
}


def drawn(kind, size, first, end):
    """Return problems of a kind of `mazes`; "open" has a wall round and obstacles in a fifth of its cells."""
    if kind != "open":
        spec = DatasetSpec(task="mazes", map_size=size, test=end, seed=7, options=MazeOptions(kinds=(kind,)))
        return mazes.draw(spec, "test", first, end)
    maps, goals = np.zeros((end - first, size, size), np.uint8), np.empty((end - first, 2), np.int16)
    for number, map_ in enumerate(maps):
        chance = np.random.default_rng([7, size, first + number])
        map_[1:-1, 1:-1] = chance.random((size - 2, size - 2)) > 0.2
        goals[number] = chance.choice(np.argwhere(map_))
    return solve(maps, goals, FOUR, np.arange(first, end, dtype=np.uint64))


def judged(planner, kind, size, count):
    """Return one line of the table."""
    starts = arrived = longest = 0
    accuracy = seconds = search = 0.0
    step = count if size <= 1001 else 1  # maps of four million cells one at a time
    for first in range(0, count, step):
        problems = drawn(kind, size, first, first + step)
        found = evaluate(planner, problems, moves=FOUR, batch_size=4)
        starts, arrived = starts + sum(found.cells_by_distance), arrived + sum(found.arrivals_by_distance)
        has_way = np.isfinite(problems.distance)
        longest = max(longest, int(problems.distance[has_way].max()))
        accuracy += found.accuracy * step / count
        whole = np.flatnonzero(has_way.sum((1, 2)) > 0.5 * problems.map.sum((1, 2)))
        if not seconds and len(whole):
            one = problems[whole[0] : whole[0] + 1]
            inputs = Inputs.of(one)
            with torch.no_grad():
                seconds = least(partial(plan_walled, planner, inputs.map, inputs.goal, moves=FOUR))
            search = searched(one)
    return (
        f"{kind:8} {size:5} x {count:4}: {starts:8} starts, {starts - arrived} lost, accuracy {accuracy}, "
        f"longest {longest:7}, plan {seconds * 1e3:.1f} ms, search {search * 1e3:.2f} ms, "
        f"{seconds / search:.0f} times"
    )


def adjoint_beside_solve(planner, kind, size, count):
    """Return one line of what a gradient costs."""
    inputs = Inputs.of(drawn(kind, size, 0, count))
    with torch.no_grad():
        step = plan_walled(planner, inputs.map, inputs.goal, moves=FOUR).step
    step = replace(step, given=step.moves.detach().requires_grad_())
    solved = partial(best_first.fixed_point, step, BestFirst(), Implicit(BestFirst()))
    u, _ = solved()
    gradient = torch.randn(u.shape, dtype=u.dtype, generator=torch.Generator().manual_seed(0))
    solve = least(solved, 20)
    adjoint = least(partial(torch.autograd.grad, u, step.moves, gradient, retain_graph=True), 20)
    return (
        f"{kind:8} {size:5} x {count:4}: solve {solve * 1e3:.2f} ms, adjoint {adjoint * 1e3:.2f} ms, "
        f"{adjoint / solve:.2f} times"
    )


def main():
    planner = load_planner(sys.argv[1] if len(sys.argv) > 1 else "reachability").planner
    largest = int(sys.argv[2]) if len(sys.argv) > 2 else 1001
    torch.set_num_threads(1)
    for kind, sizes in SIZES.items():
        for size, count in sizes:
            if size <= largest:
                print(judged(planner, kind, size, count), flush=True)
    for kind, size, count in (("thinned", 15, 32), ("perfect", 99, 1), ("perfect", 513, 1), ("open", 512, 1)):
        print(adjoint_beside_solve(planner, kind, size, count), flush=True)


if __name__ == "__main__":
    main()
