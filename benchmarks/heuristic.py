"""What a learned value spares A*: `python -m benchmarks.heuristic [MAPS]`, 20 of each kind and size unless told.

The value of the published weights as heuristic, beside Manhattan distance, a weight of 2 on it, and none. In two
fields' measures, averaged over problems: of Neural A*, Opt (% of ways that are shortest), Exp (100 max(0, 1 -
expansions / those of A*)) and their harmonic mean; of TransPath, the share of shortest ways (Opt again), cost over the
shortest, and expansions over those of A*, in %.
"""

import sys

import numpy as np
import torch

from datagen.options import MazeOptions
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import SearchPlanner, load_planner
from planners.search import learned_heuristic

KINDS = ("thinned", "perfect", "noise", "rooms", "blocks")
SIZES = (33, 65)
WAYS = {
    "A*": SearchPlanner(),
    "A*, weight 2": SearchPlanner(weight=2.0),
    "Dijkstra": SearchPlanner("dijkstra"),
    "A*, learned value": SearchPlanner(),
}


def problems(kind, size, count, costly):
    """Yield maps, starts, goals and costs; starts are cells at least as far as half of those with a way."""
    spec = DatasetSpec(task="mazes", map_size=size, test=count, seed=11, options=MazeOptions(kinds=(kind,)))
    drawn = mazes.draw(spec, "test", 0, count)
    chance = np.random.default_rng([11, size])
    for map_, goal, distance in zip(drawn.map, drawn.goal, drawn.distance, strict=True):
        away = np.isfinite(distance) & (distance > 0)
        costs = 1 + 9 * chance.random(map_.shape) if costly else None
        if away.any():
            far = away & (distance >= np.median(distance[away]))
            yield map_, tuple(map(int, chance.choice(np.argwhere(far)))), tuple(goal.tolist()), costs


def compared(planner, kind, size, count, costly):
    """Return what each way of searching costs and expands, [problems, ways, 2]."""
    found = []
    for map_, start, goal, costs in problems(kind, size, count, costly):
        learned = learned_heuristic(planner, map_, goal=goal, costs=costs)
        given = {"A*, learned value": learned}
        routes = [
            search.solve(map_, start=start, goal=goal, costs=costs, heuristic=given.get(name))
            for name, search in WAYS.items()
        ]
        assert all(route.arrives for route in routes)
        found.append([(route.cost, route.steps) for route in routes])
    return np.array(found)


def measures(found):
    """Return a line for each way: Opt, Exp, their harmonic mean, cost ratio, expansions ratio, all in %."""
    best = found[:, 0, 0]  # A*'s, whose heuristic is admissible
    for number, name in enumerate(WAYS):
        cost, expanded = found[:, number].T
        ratio = expanded / found[:, 0, 1]
        optimal, fewer = 100 * (cost <= best * (1 + 1e-6)).mean(), 100 * np.maximum(0, 1 - ratio).mean()
        both = 2 * optimal * fewer / (optimal + fewer) if optimal + fewer else 0.0
        yield name, (optimal, fewer, both, 100 * (cost / best).mean(), 100 * ratio.mean())


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    planner = load_planner("reachability")
    print(f"{'maps':22} {'search':18}   Opt    Exp  Hmean  cost %  expansions %")
    for costly in (False, True):
        for kind in KINDS:
            for size in SIZES:
                for name, row in measures(compared(planner, kind, size, count, costly)):
                    numbers = " ".join(f"{number:6.1f}" for number in row[:3]) + f" {row[3]:7.2f} {row[4]:13.1f}"
                    print(f"{kind:8} {size}{' costs' if costly else '':9} {name:20} {numbers}", flush=True)


if __name__ == "__main__":
    main()
