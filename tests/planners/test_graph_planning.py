"""The example on irregular graphs: does what holds for grids hold there, through the same solvers and adjoints?"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from planners import PlannerSpec

PATH = Path(__file__).parents[2] / "examples" / "graph_planning.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("graph_planning", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["graph_planning"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["graph_planning"]


def test_the_step_contracts_on_any_graph(example):
    planner = example.GraphPlanner(PlannerSpec()).double()
    step = planner.step(example.draw_graphs(5, 17, seed=0))
    u, v = 10 * torch.randn(2, 5, 2, 17, dtype=torch.float64)
    difference = (step(u) - step(v)).abs().amax((1, 2))
    assert (difference <= planner.discount * (u - v).abs().amax((1, 2)) * (1 + 1e-12)).all()
    torch.testing.assert_close(step.take(torch.tensor([3, 1]))(v[[3, 1]]), step(v)[[3, 1]])


def test_unrolled_and_implicit_gradients_meet(example):
    graphs = example.draw_graphs(3, 15, seed=0)
    found = []
    exact = {"solver_bwd": "forward", "k_bwd": 500, "tolerance": 0.0, "tolerance_bwd": 0.0}
    for spec in (PlannerSpec(adjoint="unrolled", k_fwd=500), PlannerSpec(adjoint="implicit", k_fwd=500, **exact)):
        torch.manual_seed(0)
        planner = example.GraphPlanner(spec).double()
        logits, _ = planner(graphs)
        logits.clamp(min=-100).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in planner.parameters()]))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


def test_optimal_roads_lead_to_the_goal(example):
    graphs = example.draw_graphs(6, 20, seed=1)
    assert (graphs.cost.isinf().sum(2).unique()).numel() > 2  # irregular: nodes have different numbers of roads
    optimal = example.optimal_roads(graphs)
    assert example.success_rate(optimal.float(), graphs) == 1.0
    assert example.success_rate(-optimal.float() - graphs.cost.isinf().float(), graphs) < 0.7
    chosen = optimal.float().argmax(2, keepdim=True)
    onwards = example.at(graphs.distance, graphs.neighbour).gather(2, chosen) + graphs.cost.gather(2, chosen)
    away = optimal.any(2)
    torch.testing.assert_close(onwards.squeeze(2)[away], graphs.distance[away])


@pytest.mark.parametrize("adjoint", ["unrolled", "implicit"])
def test_it_learns_and_plans_on_larger_graphs(example, adjoint):
    graphs, fresh = example.draw_graphs(128, 20, seed=1), example.draw_graphs(40, 30, seed=2)
    before = example.GraphPlanner(PlannerSpec(adjoint=adjoint, k_fwd=20))
    planner = example.train(PlannerSpec(adjoint=adjoint, k_fwd=20), graphs, epochs=6, batch=16)
    with torch.no_grad():
        assert example.success_rate(planner(fresh)[0], fresh) > 0.75 > example.success_rate(before(fresh)[0], fresh)
