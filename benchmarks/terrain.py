"""Costs of terrain learned through plans, beside others: `python -m benchmarks.terrain`, at most four numbers after it.

They are maps, updates, seed and unseen maps: 1000 300 0 200. One image network for all, which makes a cost of each
tile of a picture; beside ours (core `shortest_path`, the cross-entropy of the expert's moves on one way of each map)
the losses of PyEPO (`pip install "idp[bench]"`), and a network that marks the cells of the way itself, without a
planner. Equal updates of 32 maps by Adam with one schedule; of three step sizes each has the one that does best on
maps kept for that. Measured on unseen maps of 12x12: share of exactly cheapest ways, their cost over the least (start
not counted), Spearman's rank correlation of the costs of all tiles, and processor time of an update, in turns, on one
core. PyEPO's losses ask a solver, ours does not: they learn with a compiled Dijkstra's algorithm of our own, and are
timed with it and with a linear program by HiGHS (SciPy), which PyEPO's own models of shortest paths are.
"""

from __future__ import annotations

import heapq
import sys
import time
from functools import cache
from importlib.util import find_spec
from itertools import count, islice

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array
from torch import nn
from torch.nn import functional

from datagen.jit import kernel
from datagen.problem import EIGHT
from datagen.tasks.registry import TASKS, DatasetSpec
from planners import PlannerSpec, build_planner
from planners.mappers import Tiles
from planners.options import TilesOptions
from planners.path_loss import path_loss
from planners.training.costs import rank_correlation
from planners.training.denormals import flushed_denormals
from planners.training.evaluation import Inputs
from planners.training.paths import path_cells

SIZE, BATCH, VALID = 12, 32, 200
STEP_SIZES = (0.02, 0.01, 0.003)
ROUNDS = 30
OFFSETS = np.array(EIGHT.offsets)
LEAST = 1e-6
"""Costs below count as this: losses ask for ways over costs that they have lowered, and none may gain by a detour."""


@kernel
def cheapest_way(costs, start, goal, offsets):
    """Return the cells that the cheapest way enters, 1.0 each, float32 [h, w]: Dijkstra's algorithm."""
    height, width = costs.shape
    distance, towards = np.full((height, width), np.inf), np.full((height, width), -1, np.int64)
    distance[goal[0], goal[1]] = 0.0
    heap = [(0.0, np.int64(goal[0] * width + goal[1]))]
    while len(heap) > 0:
        reached, cell = heapq.heappop(heap)
        row, column = cell // width, cell % width
        if row == start[0] and column == start[1]:
            break
        if reached > distance[row, column]:
            continue
        longer = reached + max(costs[row, column], LEAST)
        for action in range(len(offsets)):
            i, j = row - offsets[action, 0], column - offsets[action, 1]
            if 0 <= i < height and 0 <= j < width and longer < distance[i, j]:
                distance[i, j], towards[i, j] = longer, action
                heapq.heappush(heap, (longer, np.int64(i * width + j)))
    way, row, column = np.zeros((height, width), np.float32), start[0], start[1]
    while row != goal[0] or column != goal[1]:
        action = towards[row, column]
        row, column = row + offsets[action, 0], column + offsets[action, 1]
        way[row, column] = 1.0
    return way


def ways(problems, costs):
    """Return the cells that the cheapest ways of problems enter, [n, h, w], over costs of one's own."""
    found = zip(costs.astype(np.float64), problems.start.astype(np.int64), problems.goal.astype(np.int64), strict=True)
    return np.stack([cheapest_way(*one, OFFSETS) for one in found])


class CostNetwork(nn.Module):
    """The image network of all: what entering each tile costs, [n, h, w]."""

    def __init__(self):
        super().__init__()
        self.tiles = Tiles(TilesOptions(), wrap=False)

    def forward(self, image):
        size = (SIZE, image.shape[3] * SIZE // image.shape[2])
        return functional.softplus(-self.tiles(image, size)).squeeze(1)


class PathNetwork(nn.Module):
    """Without a planner: the same levels, then convolutions that see all of the map, and how likely a way is there."""

    def __init__(self):
        super().__init__()
        self.levels = CostNetwork().tiles.levels
        layers = []
        for before, spacing in ((34, 1), (64, 2), (64, 4), (64, 8), (64, 1)):
            layers += [nn.Conv2d(before, 64, 3, padding=spacing, dilation=spacing), nn.ReLU()]
        self.way = nn.Sequential(*layers, nn.Conv2d(64, 1, 1))

    def forward(self, image):
        x = self.levels(image.float().div(255).sub(0.5))
        rows = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1).expand(len(x), 1, -1, x.shape[3])
        columns = torch.linspace(-1, 1, x.shape[3]).view(1, 1, 1, -1).expand(len(x), 1, x.shape[2], -1)
        return self.way(torch.cat([x, rows, columns], 1)).squeeze(1)


class Ours:
    """The planner of the sweep `terrain`, by its own loss."""

    def begin(self, share):
        """Be told which share of the updates is done."""
        self.network.core.set_progress(share)

    def __init__(self):
        self.network = build_planner(
            PlannerSpec(
                core="shortest_path",
                mapper="tiles",
                adjoint="implicit",
                solver="best_first",
                solver_bwd="best_first",
            ),
            actions=len(EIGHT.names),
        )

    def loss(self, inputs, way, costs):
        """Return `planners.training.paths.path_cross_entropy`, for ways that are known already."""
        logits = self.network.plan(None, inputs.goal, inputs.observation).logits
        left = way.bool() ^ (inputs.goal[:, 0] > 0)
        left[torch.arange(len(left)), inputs.start[:, 0], inputs.start[:, 1]] = True
        return functional.cross_entropy(logits.permute(0, 2, 3, 1)[left], inputs.label[left])

    def costs(self, image):
        return functional.softplus(-self.network.mapper(image, (SIZE, SIZE))).squeeze(1)


class OnePass(Ours):
    """The same planner and the same loss, in one compiled loop from costs to gradient."""

    def loss(self, inputs, way, costs):
        left = way.bool() ^ (inputs.goal[:, 0] > 0)
        left[torch.arange(len(left)), inputs.start[:, 0], inputs.start[:, 1]] = True
        return path_loss(self.network.core, self.costs(inputs.observation), inputs.goal, inputs.label, left)


class NetworkAlone:
    """The image network by a loss that costs nothing: what all updates share."""

    def __init__(self):
        self.network = CostNetwork()

    def loss(self, inputs, way, costs):
        return self.network(inputs.observation).mean()


class Plain:
    """A network without a planner, by the cross-entropy of the cells of the way."""

    def begin(self, share):
        """Nothing changes."""

    def __init__(self):
        self.network = PathNetwork()

    def loss(self, inputs, way, costs):
        return functional.binary_cross_entropy_with_logits(self.network(inputs.observation), way)

    def costs(self, image):
        """Return costs by which a way within the cells that it marks is found, where there is one."""
        return torch.where(self.network(image) > 0, 1.0, 1e6)


class Peer(Plain):
    """A loss of PyEPO behind the image network.

    Args:
        make: Model of the problem -> PyEPO's module.
        loss: What becomes of its solutions, of the expert's way, the predicted and the true costs; a scalar.
    """

    def __init__(self, make, loss):
        self.network, self._loss = CostNetwork(), loss
        self.problem = _problem_model()
        self.module = make(self.problem)

    def loss(self, inputs, way, costs):
        found = self.network(inputs.observation).flatten(1)
        return self._loss(self.module, found, way.flatten(1), costs.flatten(1))

    def costs(self, image):
        return self.network(image)


def _problem_model():
    from pyepo.model.opt import optModel

    class CheapestWay(optModel):
        """From corner to corner, a cost for each cell."""

        def _getModel(self):
            return None, list(range(SIZE * SIZE))

        def setObj(self, c):
            self.given = np.asarray(c, np.float64).reshape(SIZE, SIZE)

        def solve(self):
            way = self.way(self.given).ravel()
            return way, float(way @ self.given.ravel())

        way = staticmethod(by_dijkstra)

    return CheapestWay()


def by_dijkstra(costs):
    """Return the cells that the cheapest way from corner to corner enters, float32 [h, w]."""
    return cheapest_way(costs, np.zeros(2, np.int64), np.full(2, SIZE - 1), OFFSETS)


@cache
def _arcs():
    """Return the arcs of the grid, as pairs of cells, and what each adds to and takes from the cells, sparse."""
    places = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    ends = []
    for down, right in OFFSETS:
        rows, columns = (slice(max(0, -step), SIZE - max(0, step)) for step in (down, right))
        here = places[rows, columns].ravel()
        ends.append((here, here + down * SIZE + right))
    tail, head = (np.concatenate(part) for part in zip(*ends, strict=True))
    number, one = np.arange(len(tail)), np.ones(len(tail))
    return head, coo_array((np.r_[one, -one], (np.r_[head, tail], np.r_[number, number])))


def by_linear_program(costs):
    """Do what `by_dijkstra` does as a flow of one from the first cell to the last, by HiGHS."""
    head, balance = _arcs()
    asked = np.zeros(SIZE * SIZE)
    asked[0], asked[-1] = -1, 1
    found = linprog(np.maximum(costs, LEAST).ravel()[head], A_eq=balance, b_eq=asked, bounds=(0, 1), method="highs")
    return np.bincount(head, found.x.round(), SIZE * SIZE).astype(np.float32).reshape(SIZE, SIZE)


def _hamming(found, way):
    return (found * (1 - way) + (1 - found) * way).sum(1).mean()


def _by_hamming(module, found, way, costs):
    return _hamming(module(found), way)


def _normed(found):
    """Return costs in units of the map's mean: by these two losses they would all shrink to nothing."""
    return found / found.mean(1, keepdim=True)


def _normed_by_hamming(module, found, way, costs):
    return _hamming(module(_normed(found)), way)


def _normed_by_squares(module, found, way, costs):
    return (module(_normed(found)) - way).square().sum(1).mean()


def _by_way(module, found, way, costs):
    return module(found, way)


def _by_costs(module, found, way, costs):
    """The one that is told all true costs, in units of their mean."""
    costs = costs / costs.mean()
    return module(found, costs, way, (costs * way).sum(1, keepdim=True))


def methods():
    """Return a function by name that makes each; those of PyEPO where it is installed."""
    found = {"shortest_path (ours)": Ours, "no planner": Plain}
    if find_spec("pyepo") is None:
        return found
    from pyepo.func import SPOPlus, blackboxOpt, implicitMLE, perturbedFenchelYoung, perturbedOpt

    return found | {
        "DBB": lambda: Peer(lambda model: blackboxOpt(model, lambd=20), _normed_by_hamming),
        "perturbed (DPO)": lambda: Peer(lambda model: perturbedOpt(model, n_samples=10, sigma=0.5), _normed_by_squares),
        "perturbed (PFY)": lambda: Peer(lambda model: perturbedFenchelYoung(model, n_samples=10, sigma=0.5), _by_way),
        "SPO+ (true costs)": lambda: Peer(SPOPlus, _by_costs),
        "I-MLE": lambda: Peer(lambda model: implicitMLE(model, n_samples=10, sigma=0.5, lambd=20), _by_hamming),
    }


def trained(make, problems, updates, step_size, seed):
    """Return a method after so many updates."""
    torch.manual_seed(seed)
    method = make()
    adam = torch.optim.Adam(method.network.parameters(), step_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, step_size, total_steps=updates)
    batches = (batch for epoch in count() for batch in problems.batches(BATCH, seed, epoch))
    for number, batch in enumerate(islice(batches, updates)):
        method.begin(number / updates)
        inputs = Inputs.of(batch)
        update(method, adam, (inputs, entered(inputs, batch), torch.from_numpy(batch.costs)))
        schedule.step()
    return method


@flushed_denormals()
def update(method, adam, given):
    loss = method.loss(*given)
    adam.zero_grad()
    loss.backward()
    adam.step()


def update_times(found, problems, rounds=ROUNDS):
    """Return each method's median processor time of an update, ms, in turns; the image network's alone is None's."""
    batch = problems[:BATCH]
    inputs = Inputs.of(batch)
    given = inputs, entered(inputs, batch), torch.from_numpy(batch.costs)
    methods = found | {None: NetworkAlone()}
    steps = {name: torch.optim.Adam(method.network.parameters(), 1e-6) for name, method in methods.items()}
    seconds = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            before = time.process_time()
            update(method, steps[name], given)
            seconds[name].append(time.process_time() - before)
    return {name: 1000 * float(np.median(taken[1:])) for name, taken in seconds.items()}


def entered(inputs, batch):
    """Return the cells that the expert's way enters, float32 [n, h, w]: without the start, with the goal."""
    goal = torch.from_numpy(batch.goal).long()
    on = path_cells(inputs.label, inputs.start, goal, EIGHT)
    every = torch.arange(len(on))
    on[every, inputs.start[:, 0], inputs.start[:, 1]] = False
    on[every, goal[:, 0], goal[:, 1]] = True
    return on.float()


@torch.no_grad()
def measured(method, problems):
    """Return the share of exactly cheapest ways, their mean cost over the least, and the costs' rank correlation."""
    costs = torch.cat([method.costs(torch.from_numpy(part.observation)) for part in problems.in_order(50)])
    way = ways(problems, costs.numpy())
    taken = (way * problems.costs).sum((1, 2), dtype=np.float64)
    least = problems.distance[np.arange(len(problems)), problems.start[:, 0], problems.start[:, 1]].astype(np.float64)
    possible = (way * costs.numpy()).sum((1, 2)) < 1e6  # else the cells that a network marks are no way
    exact = possible & (taken <= least * (1 + 1e-6))
    ratio = (taken / least)[possible]
    rank = None if type(method) is Plain else rank_correlation(costs, torch.from_numpy(problems.costs))
    return float(exact.mean()), float(ratio.mean()) if len(ratio) else float("nan"), rank


def main():
    given = [*sys.argv[1:], *("1000", "300", "0", "200")[len(sys.argv) - 1 :]]
    maps, updates, seed, tests = (int(word) for word in given)
    torch.set_num_threads(1)
    spec = DatasetSpec(task="terrain", map_size=SIZE, train=maps, valid=VALID, test=tests, seed=seed)
    draw = TASKS["terrain"].draw()
    train, valid, test = (draw(spec, split, 0, spec.count(split)) for split in ("train", "valid", "test"))
    print(f"{maps} maps, {updates} updates, seed {seed}")
    print(f"{'':22} exact %  cost ratio    rank  step size")
    best = {}
    for name, make in methods().items():
        tried = [(trained(make, train, updates, size, seed), size) for size in STEP_SIZES]
        best[name], size = max(tried, key=lambda one: measured(one[0], valid)[0])
        exact, ratio, rank = measured(best[name], test)
        told = "-" if rank is None else f"{rank:.4f}"
        print(f"{name:22} {100 * exact:7.1f} {ratio:11.4f} {told:>7} {size:10}", flush=True)
    times = update_times(best | {"ours, in one pass": OnePass()}, train)
    peers = {name: method for name, method in best.items() if isinstance(method, Peer)}
    for method in peers.values():
        method.problem.way = by_linear_program
    programs = update_times(peers, train, rounds=2)
    print(f"\nms of processor time an update, in turns; the image network alone {times.pop(None):.1f}")
    print(f"{'':22} all of it, with a linear program")
    for name, milliseconds in times.items():
        print(f"{name:22} {milliseconds:9.1f} {programs.get(name, milliseconds):22.1f}")


if __name__ == "__main__":
    main()
