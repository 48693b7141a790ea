"""Value iteration on irregular road graphs: a second family of cores through the same solvers and adjoints.

A graph has no convolution; what is left of a planner is a step that contracts by construction, as in Convergent Graph
Solvers (Park et al., 2021): here v'_c(s) = max_d r_c(s, d) + gamma v_c(n(s, d)), over the roads d of node s.
Run: python examples/graph_planning.py
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from planners import PlannerSpec, build_planner, fixed_point
from planners.solution import Solution

ROADS = 8
"""Most roads that leave a node; nodes with fewer have free slots."""


@dataclass(frozen=True)
class Graphs:
    """A batch of road graphs of one size, each with a goal.

    Attributes:
        neighbour: int64 [B, N, ROADS], where each road leads; the node itself where there is none.
        cost: float [B, N, ROADS], what it costs; inf where there is none.
        goal: int64 [B].
        distance: float [B, N], cost of the cheapest way to the goal; inf where there is none.
    """

    neighbour: Tensor
    cost: Tensor
    goal: Tensor
    distance: Tensor

    def take(self, indices: Tensor) -> Graphs:
        """Return the graphs `indices` alone."""
        return Graphs(self.neighbour[indices], self.cost[indices], self.goal[indices], self.distance[indices])


def draw_graphs(count: int, nodes: int, seed: int) -> Graphs:
    """Draw towns in the unit square, roads to near ones, fast and slow, some of them one-way.

    Args:
        count: Number of graphs, B.
        nodes: Towns per graph, N.
        seed: Seed of all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, nodes, 2, generator=generator)
    length = torch.cdist(place, place) + 10 * torch.eye(nodes)
    degree = torch.randint(2, ROADS + 1, (count, nodes, 1), generator=generator)
    length, neighbour = length.topk(ROADS, dim=2, largest=False)
    slowness = 1 + 3 * torch.rand(count, nodes, ROADS, generator=generator) ** 2
    none = torch.arange(ROADS) >= degree
    cost = (length * slowness * nodes**0.5).masked_fill(none, torch.inf)
    neighbour = torch.where(none, torch.arange(nodes).view(1, nodes, 1), neighbour)
    goal = torch.randint(nodes, (count,), generator=generator)
    distance = torch.full((count, nodes), torch.inf).scatter(1, goal[:, None], 0.0)
    for _ in range(nodes):  # Bellman and Ford
        distance = torch.minimum(distance, (cost + at(distance, neighbour)).amin(2))
    return Graphs(neighbour, cost, goal, distance)


def at(values: Tensor, neighbour: Tensor) -> Tensor:
    """Return the values [B, N] of the neighbours, [B, N, ROADS]."""
    return values.gather(1, neighbour.flatten(1)).view(neighbour.shape)


@dataclass(frozen=True)
class GraphStep:
    """The step on one batch; converged graphs leave it by `take`, as samples of grids do."""

    reward: Tensor
    neighbour: Tensor
    discount: float

    def q(self, v: Tensor) -> Tensor:
        """Return action values [B, C, N, ROADS] at v [B, C, N]."""
        index = self.neighbour.flatten(1).unsqueeze(1).expand(-1, v.shape[1], -1)
        return self.reward + self.discount * v.gather(2, index).view(self.reward.shape)

    def __call__(self, v: Tensor) -> Tensor:
        """Return v' [B, C, N]."""
        return self.q(v).amax(3)

    def take(self, indices: Tensor) -> GraphStep:
        """Return the step of the graphs `indices` alone."""
        return GraphStep(self.reward[indices], self.neighbour[indices], self.discount)


class GraphPlanner(nn.Module):
    """Learned rewards per road, a contraction over the graph, and a policy over the roads of each node."""

    def __init__(self, spec: PlannerSpec, values: int = 2, width: int = 32, discount: float = 0.95) -> None:
        super().__init__()
        grid = build_planner(spec)  # for its solver and adjoint: they know nothing of grids
        self.solver, self.adjoint, self.discount = grid.solver, grid.adjoint, discount
        self.encoder = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, values))
        self.head = nn.Linear(values, 1)

    def step(self, graphs: Graphs) -> GraphStep:
        """Return the step on a batch: its rewards, from what a road costs and whether the goal is at an end of it."""
        is_goal = torch.zeros_like(graphs.distance).scatter(1, graphs.goal[:, None], 1.0)
        none = graphs.cost.isinf()
        cost = graphs.cost.masked_fill(none, 0.0)
        seen = torch.stack([cost, is_goal.unsqueeze(2).expand_as(cost), at(is_goal, graphs.neighbour)], 3)
        reward = self.encoder(seen.to(self.head.weight.dtype)).permute(0, 3, 1, 2)
        # a road that is not there is never the best, and stays finite: -1e3 is below any discounted sum learned here
        return GraphStep(reward.masked_fill(none.unsqueeze(1), -1e3), graphs.neighbour, self.discount)

    def forward(self, graphs: Graphs) -> tuple[Tensor, Solution]:
        """Return logits [B, N, ROADS] and the fixed point that they are read from."""
        step = self.step(graphs)
        v0 = step.reward.new_zeros(step.reward.shape[:3])
        solution = fixed_point(step, v0, solver=self.solver, adjoint=self.adjoint)
        q = step.q(solution.value)
        advantage = 10 * (q - q.amax(3, keepdim=True)).clamp(min=-50)
        logits = self.head(advantage.permute(0, 2, 3, 1)).squeeze(3)
        return logits.masked_fill(graphs.cost.isinf(), -1e3), solution


def optimal_roads(graphs: Graphs) -> Tensor:
    """Return which roads begin a cheapest way, bool [B, N, ROADS]; none at the goal and where there is no way."""
    reached = graphs.cost + at(graphs.distance, graphs.neighbour)
    away = (graphs.distance > 0) & graphs.distance.isfinite()
    return (reached <= graphs.distance.unsqueeze(2) * (1 + 1e-5)) & away.unsqueeze(2)


def success_rate(logits: Tensor, graphs: Graphs) -> float:
    """Return the share of nodes with a way to the goal from which the greedy policy arrives."""
    after = graphs.neighbour.gather(2, logits.argmax(2, keepdim=True)).squeeze(2)
    after = after.scatter(1, graphs.goal[:, None], graphs.goal[:, None])
    for _ in range(after.shape[1].bit_length()):
        after = after.gather(1, after)
    return float((after == graphs.goal[:, None])[graphs.distance.isfinite()].float().mean())


def train(spec: PlannerSpec, graphs: Graphs, epochs: int, batch: int = 32, seed: int = 0) -> GraphPlanner:
    """Train a planner to take optimal roads, and return it."""
    torch.manual_seed(seed)
    planner = GraphPlanner(spec)
    optimizer = torch.optim.Adam(planner.parameters(), lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(graphs.goal)).split(batch):
            part = graphs.take(rows)
            optimal = optimal_roads(part)
            logits, _ = planner(part)
            log_share = functional.log_softmax(logits, 2).masked_fill(~optimal, -torch.inf).logsumexp(2)
            loss = -log_share[optimal.any(2)].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return planner


def main(count: int = 256, nodes: int = 40, epochs: int = 8) -> dict[str, tuple[float, float]]:
    """Print and return the success on fresh graphs, of the size trained on and of four times that size."""
    graphs = draw_graphs(count, nodes, seed=1)
    fresh, larger = draw_graphs(100, nodes, seed=2), draw_graphs(50, 4 * nodes, seed=3)
    specs = {
        "unrolled": PlannerSpec(adjoint="unrolled", k_fwd=30),
        "implicit": PlannerSpec(adjoint="implicit", k_fwd=30, k_bwd=30, solver_bwd="forward"),
        "implicit, anderson": PlannerSpec(adjoint="implicit", solver="anderson", k_fwd=30, k_bwd=30),
        "one step": PlannerSpec(adjoint="one_step", k_fwd=30),
    }
    found = {}
    print(f"{'adjoint':<20}{'success %':>10}{f'{4 * nodes} nodes':>12}{'residual':>10}{'seconds':>9}")
    for name, spec in specs.items():
        started = time.perf_counter()
        planner = train(spec, graphs, epochs)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            logits, solution = planner(fresh)
            found[name] = success_rate(logits, fresh), success_rate(planner(larger)[0], larger)
        same, other = (100 * rate for rate in found[name])
        print(f"{name:<20}{same:>10.1f}{other:>12.1f}{float(solution.residual.mean()):>10.1e}{seconds:>9.1f}")
    return found


if __name__ == "__main__":
    main()
