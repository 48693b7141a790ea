"""Costs of cells that are given: the core `reachability` then plans as Dijkstra's algorithm does, differentiably."""

import heapq

import numpy as np
import pytest
import torch

from datagen.problem import FOUR, Moves
from planners import PlannerSpec, build_planner, load_planner
from planners.certificate import pattern_of
from planners.inference import PlannerError, RoutePlanner

FLOWS = {"solver": "best_first", "solver_bwd": "best_first"}


def dijkstra(free, costs, goal, wrap=False):
    """The least sum of costs of the cells entered, from each cell to the goal; inf where there is no way."""
    least, heap = np.full(free.shape, np.inf), [(0.0, goal)]
    least[goal] = 0.0
    while heap:
        at, cell = heapq.heappop(heap)
        if at > least[cell]:
            continue
        for dy, dx in FOUR.offsets:
            i, j = cell[0] + dy, cell[1] + dx
            if wrap:
                i, j = i % free.shape[0], j % free.shape[1]
            if not (0 <= i < free.shape[0] and 0 <= j < free.shape[1]) or not free[i, j]:
                continue
            if at + costs[cell] < least[i, j]:
                least[i, j] = at + costs[cell]
                heapq.heappush(heap, (least[i, j], (i, j)))
    return least


def terrain(seed, size=20):
    """A map with walls, and costs of three kinds: any, some of them nothing, and a few numbers of any size."""
    chance = np.random.default_rng(seed)
    free = chance.random((size, size)) > 0.25
    costs = chance.random((size, size))
    if seed % 3 == 1:
        costs *= chance.random(costs.shape) > 0.5
    elif seed % 3 == 2:
        costs = chance.choice([0.0, 0.8, 9.2, 1e4], costs.shape)
    goal = tuple(chance.choice(np.argwhere(free)).tolist())
    return free.astype(np.uint8), costs, goal


@pytest.mark.parametrize("seed", range(6))
def test_every_route_is_one_of_least_cost(seed):
    free, costs, goal = terrain(seed)
    planner = load_planner("reachability")
    least = dijkstra(free, costs, goal)
    starts = np.argwhere(np.isfinite(least))
    for start in starts[:: max(1, len(starts) // 12)].tolist():
        route = planner.solve(free, goal=goal, start=tuple(start), costs=np.where(free, costs, np.inf))
        assert route.arrives, route.advice
        assert route.cost == pytest.approx(least[tuple(start)], rel=1e-6, abs=1e-6 * costs.max())
    found = -route.values[np.isfinite(least)]
    np.testing.assert_allclose(found, least[np.isfinite(least)], rtol=1e-5, atol=1e-5 * costs.max())


def test_what_costs_nothing_anywhere_is_planned_by_steps():
    free, costs, goal = terrain(0)
    planner = load_planner("reachability")
    steps = dijkstra(free, np.ones(free.shape), goal)
    start = tuple(np.argwhere(np.isfinite(steps))[-1].tolist())
    route = planner.solve(free, goal=goal, start=start, costs=0 * costs)
    assert route.arrives and route.cost == 0 and len(route.cells) == 1 + steps[start]


def test_the_published_weights_know_walls_from_free_cells_in_every_pattern():
    core = load_planner("reachability").planner.core
    with torch.no_grad():
        survival, leads = core.patterns_survival().clamp(0, 1), core.taps().argmax(1)
    moves = range(1, len(core.neighbours))
    best = torch.stack([survival[:, leads == t].amax(1) for t in moves], 1)
    patterns = [pattern_of(row) for row in range(len(survival))]
    agents = [n for n, p in enumerate(patterns) if p.free[4]]
    free = torch.tensor([[patterns[n].free[core.neighbours[t]] for t in moves] for n in agents])
    assert len(agents) == 256 and torch.equal(best[agents], free.float())


def planner_of(progress=1.0, wrap=False, **fields):
    torch.manual_seed(1)
    options = {"hidden_channels": 16, "q_channels": 8, "group": "D4", "decided": False}
    planner = build_planner(PlannerSpec(core="reachability", options=options, wrap=wrap, **fields))
    with torch.no_grad():
        planner.core.tap_logits.mul_(0.3)
        planner.core.tap_logits[:, 1] += 1.0
    planner.core.progress.fill_(progress)
    return planner.double()


def problem(height=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    map = 0.5 + 0.5 * torch.rand(2, 1, height, width, generator=generator, dtype=torch.double)  # no two ways tie
    costs = 0.1 + torch.rand(map.shape, generator=generator, dtype=torch.double)
    goal = torch.zeros_like(map)
    goal[:, 0, 2, 1] = 1
    return map, goal, costs


@pytest.mark.slow
@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("wrap", [False, True])
def test_best_first_solves_the_reference_and_its_adjoint(progress, wrap):
    map, goal, costs = problem()
    found = []
    for fields in ({"adjoint": "unrolled", "k_fwd": 200}, FLOWS | {"tolerance": 0.0, "tolerance_bwd": 0.0}):
        planner, given = planner_of(progress, wrap, **fields), [x.clone().requires_grad_() for x in (map, costs)]
        plan = planner.plan(given[0], goal, costs=given[1])
        u, generator = plan.solution.value, torch.Generator().manual_seed(1)
        loss = (torch.randn(u.shape, dtype=u.dtype, generator=generator) * u).sum() + plan.logits.sin().sum()
        (loss + planner.core.penalty(plan.step, u, map[:, 0] > 0.3)).backward()
        parameters = [torch.zeros_like(p) if p.grad is None else p.grad for p in planner.parameters()]
        found.append([u.detach(), plan.logits.detach(), *(x.grad for x in given), *parameters])
    assert plan.kernel == "compiled"
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-8 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("progress", [0.6, 1.0])
def test_gradients_of_costs_are_those_of_differences(progress):
    map, goal, costs = problem(3, 4)
    planner = planner_of(progress, tolerance=0.0, tolerance_bwd=0.0, **FLOWS)
    costs.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: planner.plan(map, goal, costs=c).solution.value, costs)
    assert torch.autograd.gradcheck(lambda c: planner.plan(map, goal, costs=c).logits, costs)


def test_costs_take_the_place_of_the_discount():
    map, goal, _ = problem()
    planner = planner_of(**FLOWS)
    alike = torch.full_like(map, -np.log(planner.core.discount))
    with torch.no_grad():
        values = [planner.plan(map, goal, costs=costs).solution.value for costs in (None, alike)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)


def test_a_sample_does_not_depend_on_the_costs_of_another():
    map, goal, costs = problem()
    for planner in (planner_of(**FLOWS), planner_of(solver="forward", k_fwd=200)):
        with torch.no_grad():
            both = planner.plan(map, goal, costs=costs * torch.tensor([1.0, 1e3]).view(2, 1, 1, 1))
            alone = planner.plan(map[:1], goal[:1], costs=costs[:1])
            part = both.step.take(torch.tensor([0]))
            assert torch.equal(part(alone.solution.value), alone.step(alone.solution.value))
        torch.testing.assert_close(both.solution.value[:1], alone.solution.value, rtol=0, atol=1e-12)
        torch.testing.assert_close(both.logits[:1], alone.logits, rtol=0, atol=1e-9)


def test_costs_on_the_torus_and_by_the_table():
    chance = np.random.default_rng(3)
    costs = chance.random((66, 65))
    planner = planner_of(wrap=True, **FLOWS).float()
    with torch.no_grad():
        planner.core.survival_bias[:] = 99.0  # nothing hinders anyone
        map = torch.ones(1, 1, 66, 65)
        goal = torch.zeros_like(map)
        goal[0, 0, 65, 3] = 1
        plan = planner.plan(map, goal, costs=torch.from_numpy(costs)[None, None])
        assert not isinstance(plan.step.given, torch.Tensor)
    least = dijkstra(map[0, 0].numpy() > 0, costs, (65, 3), wrap=True)
    np.testing.assert_allclose(-plan.solution.value[0, 0].numpy(), least, rtol=1e-6, atol=1e-6)


def test_costs_are_refused_where_they_mean_nothing():
    map, goal, costs = (x.float() for x in problem())
    with pytest.raises(ValueError, match="costs: core VIN learns what moves cost"):
        build_planner(PlannerSpec(core="vin")).plan(map, goal, costs=costs)
    with pytest.raises(ValueError, match="costs and goal must have one shape"):
        planner_of().float().plan(map, goal, costs=costs[:1])
    free = np.ones((5, 6), np.uint8)
    free[0, 0] = 0
    ends = {"goal": (2, 1), "start": (4, 4)}
    planner = load_planner("reachability")
    hidden = np.ma.masked_array(np.ones((5, 6)), np.zeros((5, 6)))
    hidden[3, 3] = np.ma.masked
    negative, endless = np.ones((5, 6)), np.ones((5, 6))
    negative[1, 2], endless[1, 2] = -0.5, np.inf
    refused = (
        (negative, r"costs: expected finite ones from 0 to 1e\+30 on free cells, got -0.5 at \(1, 2\)"),
        (endless, r"from 0 to 1e\+30 on free cells, got inf at \(1, 2\)"),
        (1e39 * np.ones((5, 6)), r"from 0 to 1e\+30 on free cells, got 1e\+39 at"),
        (hidden, r"got nan at \(3, 3\)"),
        (np.ones((6, 5)), r"costs: expected one per cell of the \(5, 6\) map, got \(6, 5\)"),
        ("dear", "costs: expected numbers"),
        (np.ones((5, 6), complex), "costs: expected numbers .* complex128"),
        (np.full((5, 6), "1"), "costs: expected numbers"),
    )
    for given, message in refused:
        with pytest.raises(PlannerError, match=message):
            planner.solve(free, costs=given, **ends)
    others = (
        RoutePlanner(build_planner(PlannerSpec(core="vin"))),
        RoutePlanner(planner.planner, Moves(offsets=((1, 0),) * 4)),
    )
    for other in others:
        with pytest.raises(PlannerError, match="only a planner with core 'reachability' and the four moves"):
            other.solve(free, costs=np.ones((5, 6)), **ends)


def test_cells_cost_what_they_cost_beside_a_dear_one():
    """A cheap rim round a plain, and lava in a corner: the way goes by the rim, however dear the lava is."""
    free, costs = np.ones((9, 30), np.uint8), np.ones((9, 30))
    costs[0] = costs[:, 0] = costs[:, -1] = 0.001
    costs[4, 15] = 1e4
    ends = {"goal": (8, 29), "start": (8, 0)}
    planner = load_planner("reachability")
    rim = 0.001 * (8 + 29 + 8)
    assert planner.solve(free, costs=costs, **ends).cost == pytest.approx(rim)
    costs[4, 15] = 1e7  # a hundred-millionth of it is a hundred times what a cell of the rim costs
    with pytest.warns(UserWarning, match="costs: those from 0.001 to 0.1, a hundred-millionth of the largest, all"):
        route = planner.solve(free, costs=costs, **ends)
    assert route.cost == pytest.approx(rim) and -route.values[8, 0] == pytest.approx(45 * 0.1, rel=1e-5)


def test_costs_of_obstacles_do_not_count_and_those_of_free_cells_are_looked_at():
    """A cost below 0 could be saved again and again: best first would have no end."""
    planner = load_planner("reachability").planner
    map, goal = torch.ones(2, 1, 5, 7), torch.zeros(2, 1, 5, 7)
    map[:, 0, 1:4, 3], goal[:, 0, 2, 6] = 0, 1
    costs = torch.rand(map.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plan = planner.plan(map, goal, costs=costs)
    plan.solution.value.sum().backward()
    assert (costs.grad[map == 0] == 0).all() and (costs.grad[map > 0] <= 0).all() and costs.grad.abs().sum() > 0
    for nothing in (torch.inf, torch.nan, -1.0):
        given = torch.where(map > 0, costs.detach(), nothing)
        assert torch.equal(planner.plan(map, goal, costs=given).logits, plan.logits)
    for wrong in (-1e-3, torch.nan, torch.inf):
        given = costs.detach().clone()
        given[1, 0, 4, 2] = wrong
        with pytest.raises(ValueError, match=r"costs: .* from 0 to 1e\+30 on free cells, got .* at \(4, 2\) of map 1"):
            planner.plan(map, goal, costs=given)
