"""How far one gets without looking: a search on the mean of the training maps, the same for every test map.

python -m benchmarks.blind STORAGE SWEEP [SWEEP ...] [--profile laptop] [--out docs/results/blind.json]

Where maps resemble one another (an arm's obstacles always lie around it), much of a success rate needs no map at all. A
planner whose mapper has not learned to see is at most as good as this. The storage has the datasets (`idp datagen`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from datagen.expert.grid import neighbours
from datagen.problem import Moves, Problems
from datagen.storage.dataset import read_split
from datagen.tasks.registry import TASKS, dataset_id
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from planners.training.rollout import evaluate_policy

_NEVER_FREE = 1e-3  # the chance given to cells that no training map has free
_A_STEP = 1e-3  # what a step costs, so that among ways as likely the shortest is taken


def likeliest_ways(free: NDArray[np.float64], goal: NDArray[np.int16], moves: Moves) -> NDArray[np.int64]:
    """Return the first action of the way to the goal that is likeliest to be free, were cells free independently.

    Args:
        free: [h, w], each cell's chance of being free.
        goal: [n, 2], row and column.
        moves: What the agent can do; costs are not looked at.

    Returns:
        int64 [n, h, w].
    """
    height, width = free.shape
    cost = _A_STEP - np.log(np.clip(free, _NEVER_FREE, 1)).ravel()
    leads = neighbours(height, width, moves, 1)
    start, end = np.repeat(np.arange(cost.size), leads.shape[1]), leads.ravel()
    graph = csr_array((cost[end], (end, start)), shape=(cost.size,) * 2)  # backwards, from the goal
    _, following = dijkstra(graph, indices=goal[:, 0] * width + goal[:, 1], return_predecessors=True)
    return (leads == following[:, :, None]).argmax(2).reshape(len(goal), height, width)


def success(problems: Problems, free: NDArray[np.float64], moves: Moves) -> float:
    """Return the success rate, 0..1, of one average map's ways on each of the problems."""
    actions = torch.from_numpy(likeliest_ways(free, problems.goal, moves))
    facts = (problems.map, problems.goal, problems.distance, problems.optimal_actions)
    return evaluate_policy(actions, *map(torch.from_numpy, facts), moves).success_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--profile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    trials = [trial for sweep in options.sweeps for trial in expand(load_sweep(sweep, options.profile))]
    for spec in dict.fromkeys(trial.spec.data for trial in trials):
        seen, test = (read_split(options.storage / "datasets" / dataset_id(spec), split) for split in ("train", "test"))
        moves = TASKS[spec.task].moves
        rates = {"empty map": np.ones(test.map.shape[1:]), "mean map": seen.map.mean(0)}
        row = {"task": spec.task, "map_size": spec.map_size, "train": spec.train, "test": spec.test, "seed": spec.seed}
        row |= {name: round(100 * success(test, free, moves), 2) for name, free in rates.items()}
        print(row, flush=True)
        found.append(row)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
