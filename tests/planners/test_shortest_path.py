"""The core that is the costs of cells and nothing else: exact values, policies and gradients, whatever solves it."""

import numpy as np
import pytest
import torch

from datagen.expert.cells import cell_links, solve_cells
from datagen.expert.graph import link_distances
from datagen.problem import EIGHT, FOUR, FOUR_WRAP, Moves
from planners import PlannerSpec, RoutePlanner, build_planner
from planners.training.rollout import exact_ways

BEST_FIRST = {"solver": "best_first", "solver_bwd": "best_first"}
GENERIC = {"k_fwd": 80, "tolerance": 0.0, "solver_bwd": "forward", "k_bwd": 80, "tolerance_bwd": 1e-12}


def planner_of(moves=EIGHT, own=0.0, **fields):
    """A planner whose moves cost next to nothing beside cells, or what is told."""
    planner = build_planner(PlannerSpec(core="shortest_path", wrap=moves.wrap, **fields), actions=len(moves.names))
    with torch.no_grad():
        planner.core.log_costs.fill_(np.log(own) if own else -40.0)
    return planner


def world(seed=0, count=4, height=6, width=7):
    """Maps whose cells are likely to be survived, some walls, and free goals."""
    chance = np.random.default_rng(seed)
    map_ = np.where(chance.random((count, height, width)) < 0.8, chance.uniform(0.05, 0.95, (count, height, width)), 0)
    goal = np.array([chance.permutation(np.argwhere(cells > 0))[0] for cells in map_])
    there = torch.zeros(count, 1, height, width)
    there[torch.arange(count), 0, goal[:, 0], goal[:, 1]] = 1
    return torch.from_numpy(map_).float().unsqueeze(1), there, goal.astype(np.int16)


@pytest.mark.parametrize("fields", [BEST_FIRST, GENERIC], ids=["best first", "forward"])
@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP, EIGHT], ids=["four", "torus", "eight"])
def test_the_value_is_what_the_cheapest_way_costs(moves, fields):
    map_, there, goal = world()
    plan = planner_of(moves, **fields).plan(map_, there)
    free = (map_[:, 0] > 0).numpy().astype(np.uint8)
    costs = np.where(free == 1, -np.log(map_[:, 0].numpy().clip(1e-9)), 1).astype(np.float32)
    links = cell_links(free, costs, moves)
    expected = link_distances(goal, links, free.shape[2]).reshape(free.shape)
    value, way = plan.solution.value[:, 0].detach().numpy(), np.isfinite(expected)
    np.testing.assert_allclose(-value[way], expected[way], rtol=1e-4, atol=1e-5)
    assert (-value[~way] > expected[way].max() + 1).all()
    solved = solve_cells(free, goal, costs, moves, np.zeros(len(free), np.uint64))
    roads = (torch.from_numpy(links.target), torch.from_numpy(links.cost))
    facts = (torch.from_numpy(goal), torch.from_numpy(solved.distance), torch.from_numpy(solved.optimal_actions))
    assert exact_ways(plan.logits.max(1).indices, *facts, roads).all()


@pytest.mark.parametrize("moves", [FOUR, EIGHT], ids=["four", "eight"])
def test_gradients_of_the_flow_are_those_of_the_generic_adjoint(moves):
    found = []
    for fields in (BEST_FIRST, GENERIC):
        map_, there, _ = world(1)
        map_ = map_.double().requires_grad_()
        planner = planner_of(moves, own=0.1, **fields).double()
        plan = planner.plan(map_, there.double())
        assert (plan.kernel == "compiled") == (fields is BEST_FIRST)
        weights = torch.linspace(-1, 1, plan.logits.numel(), dtype=torch.float64).reshape(plan.logits.shape).sin()
        on = (map_ > 0) & (there < 1)
        (plan.logits * weights * on).sum().backward()
        found.append((plan.logits.detach() * on, map_.grad, planner.core.log_costs.grad))
    for compiled, generic in zip(*found, strict=True):
        torch.testing.assert_close(compiled, generic, rtol=1e-6, atol=1e-6)
    assert found[0][1].abs().max() > 0.1 and found[0][2].abs().min() > 0


def test_costs_may_be_given_for_eight_moves():
    costs = np.random.default_rng(3).random((40, 40))
    grid = np.ones((40, 40))
    grid[20, :39] = 0
    route = RoutePlanner(planner_of(**BEST_FIRST), EIGHT).solve(grid, goal=(0, 0), start=(39, 0), costs=costs)
    given = (grid[None].astype(np.uint8), np.zeros((1, 2), np.int16), costs[None].astype(np.float32))
    solved = solve_cells(*given, EIGHT, np.zeros(1, np.uint64))
    assert route.arrives and [20, 39] in route.cells.tolist()
    assert route.cost == pytest.approx(float(solved.distance[0, 39, 0]), rel=1e-4)


def test_far_ways_keep_their_order():
    """Thousands of cells away neighbours differ in the fifth digit: advantages are taken in the value's precision."""
    planner = planner_of(**BEST_FIRST)
    there = torch.zeros(1, 1, 3, 4000)
    there[0, 0, 1, 0] = 1
    with torch.no_grad():
        plan = planner.plan(torch.full((1, 1, 3, 4000), 0.4), there)
    best = plan.logits[0, :, :, 2:].max(0).indices
    assert all(EIGHT.offsets[int(action)][1] == -1 for action in best.unique())


def test_moves_that_it_cannot_take_are_told():
    options = PlannerSpec(core="shortest_path").options
    for moves in (FOUR, FOUR_WRAP, EIGHT):
        options.check_moves(moves)
    turned = Moves(EIGHT.names, EIGHT.offsets[::-1], EIGHT.costs)
    for moves in (turned, Moves(("on",), ((0, 1),), (1.0,))):
        with pytest.raises(ValueError, match=r"core 'shortest_path' moves to the 4 neighbours"):
            options.check_moves(moves)
    with pytest.raises(ValueError, match="got 4 moves and 3 channels"):
        build_planner(PlannerSpec(core="shortest_path", channels=1))
