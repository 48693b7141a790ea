"""The core `reachability`: its theorem, its two solvers, the adjoint as a flow, and what training adds to its loss."""

import heapq
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from datagen.problem import FOUR
from planners import PlannerSpec, build_planner, load_planner
from planners.compiled.reachability import best_first
from planners.compiled.reachability.flow import farthest_first
from planners.compiled.solvers import BestFirst
from planners.cores.patterns import LookedUp, patterns
from planners.cores.reachability import Reachability, ReachabilityStep, floor_of
from planners.edge import plan_walled
from planners.fixed_points import ForwardIteration, Implicit
from planners.options import ReachabilityOptions

FLOWS = {"solver": "best_first", "solver_bwd": "best_first"}


def planner_of(progress, wrap=False, seed=0, kernel="auto", decided=False, **fields):
    torch.manual_seed(seed)
    options = {"hidden_channels": 16, "q_channels": 8, "group": "D4", "decided": decided}
    planner = build_planner(PlannerSpec(core="reachability", options=options, wrap=wrap, **fields), kernel=kernel)
    with torch.no_grad():
        planner.core.tap_logits.mul_(0.3)  # all neighbours above the cut
        planner.core.tap_logits[:, 1] += 1.0  # and the cell itself not the largest
    planner.core.progress.fill_(progress)
    return planner.double()


def maps(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    free = (torch.rand(batch, 1, height, width, generator=generator) > 0.3).double()
    goal = torch.zeros_like(free)
    goal[:, 0, height // 2, width // 3] = 1
    return torch.maximum(free, goal), goal


@pytest.mark.slow
@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("wrap", [False, True])
def test_best_first_finds_the_fixed_point_of_the_reference(progress, wrap):
    fields = {"tolerance": 0.0, "k_fwd": 400}
    reference = planner_of(progress, wrap, **fields)
    compiled = planner_of(progress, wrap, **fields, **FLOWS)
    for height, width in ((7, 9), (1, 6), (5, 3)):
        map, goal = maps(3, height, width)
        found, expected = compiled.plan(map, goal), reference.plan(map, goal)
        assert (found.kernel, expected.kernel.split(":")[0]) == ("compiled", "reference")
        assert torch.allclose(found.solution.value, expected.solution.value, rtol=0, atol=1e-9)
        assert torch.allclose(found.logits, expected.logits, rtol=0, atol=1e-7)
        assert expected.solution.residual.max() < 1e-12
        assert not found.solution.residual.max() > 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("wrap", [False, True])
def test_the_flow_is_the_gradient_of_the_unrolled_reference(progress, wrap):
    map, goal = maps(3, 6, 7)
    map = map * torch.rand(map.shape, dtype=map.dtype, generator=torch.Generator().manual_seed(2))  # no two ways tie
    gradients = []
    for fields in ({"adjoint": "unrolled"}, FLOWS | {"tolerance": 0.0, "tolerance_bwd": 0.0}):
        planner = planner_of(progress, wrap, k_fwd=400, **fields)
        x = map.clone().requires_grad_()
        plan = planner.plan(x, goal)
        u = plan.solution.value
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(u.shape, dtype=u.dtype, generator=generator)
        loss = (weights * u).sum() + plan.logits.sin().sum()
        (loss + planner.core.penalty(plan.step, u, map[:, 0] > 0.3)).backward()
        named = planner.named_parameters()
        gradients.append({"map": x.grad} | {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named})
    assert plan.solution.adjoint.residual.max() < 1e-11
    for name, expected in gradients[0].items():
        scale = max(1.0, float(expected.abs().max()))
        assert torch.allclose(gradients[1][name], expected, rtol=0, atol=1e-8 * scale), name


def test_best_first_serves_every_adjoint_of_the_reference():
    map, goal = maps(2, 6, 5)
    values = []
    for adjoint in ("phantom", "one_step", "implicit"):
        planner = planner_of(1.0, solver="best_first", adjoint=adjoint)
        plan = planner.plan(map, goal)
        assert plan.kernel.startswith("reference: the adjoint system is solved by the generic")
        plan.logits.sum().backward()
        values.append(plan.solution.value)
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_a_step_contracts_by_the_discount_and_is_monotone(progress):
    core = planner_of(progress).core
    map, goal = maps(2, 6, 7)
    r = core.encode(torch.cat([map, goal], 1))
    floor, generator = floor_of(map), torch.Generator().manual_seed(3)
    u, w = (0.3 * floor * torch.rand(map.shape, dtype=map.dtype, generator=generator) for _ in range(2))
    images = [r(z) for z in (u, w)]
    difference = (images[0].exp() - images[1].exp()).abs().amax((1, 2, 3))
    assert (difference <= core.discount * (u.exp() - w.exp()).abs().amax((1, 2, 3)) + 1e-15).all()
    assert (r(torch.maximum(u, w)) >= torch.maximum(*images) - 1e-12).all()


def dijkstra(cost, goal):
    """Costs of arriving by a heap, over moves that cost [4, h, w]."""
    _, height, width = cost.shape
    least, heap = {goal: 0.0}, [(0.0, goal)]
    while heap:
        at, (y, x) = heapq.heappop(heap)
        if at > least[y, x]:
            continue
        for move, (dy, dx) in enumerate(FOUR.offsets):
            i, j = y - dy, x - dx
            if not (0 <= i < height and 0 <= j < width) or (i, j) == goal:
                continue
            total = at + cost[move, i, j]
            if total < least.get((i, j), np.inf):
                least[i, j] = total
                heapq.heappush(heap, (total, (i, j)))
    return least


@pytest.mark.parametrize("seed", range(5))
def test_settled_values_are_the_least_costs(seed):
    planner = planner_of(1.0, seed=seed, **FLOWS)
    map, goal = maps(1, 12, 13, seed)
    with torch.no_grad():
        core = planner.core
        r = core.encode(torch.cat([map, goal], 1))
        u = planner.plan(map, goal).solution.value[0, 0].numpy()
    leads = r.taps.argmax(1) - 1
    moves = r.moves[0].numpy()
    cost = np.stack([np.min([-moves[a] for a in range(8) if leads[a] == t], axis=0) for t in (0, 1, 3, 2)])
    order = [FOUR.offsets.index(o) for o in ((-1, 0), (0, -1), (0, 1), (1, 0))]
    by_move = np.empty_like(cost)
    by_move[order] = cost
    least = dijkstra(by_move, (6, 4))
    expected = np.full(map.shape[2:], floor_of(map))
    for cell, total in least.items():
        expected[cell] = max(expected[cell], -total)
    np.testing.assert_allclose(u, expected, rtol=0, atol=1e-9)


def test_the_table_of_patterns_is_the_encoder():
    for wrap in (False, True):
        planner = planner_of(1.0, wrap, **FLOWS)
        core = planner.core
        map, goal = maps(2, 70, 70)
        x = torch.cat([map, goal], 1)
        with torch.no_grad():
            looked_up, computed = core.encode(x), core.encode(0.9 * x)
            assert isinstance(looked_up.given, LookedUp) and isinstance(computed.given, torch.Tensor)
            expected = (core.discount * core.survival(x)).log()
            torch.testing.assert_close(looked_up.moves, expected, rtol=0, atol=1e-6)
            assert torch.equal(looked_up.take(torch.tensor([1])).moves, looked_up.moves[1:])
            # the same plan by the table and by the generic operations
            quick = planner.plan(map, goal)
            assert quick.kernel == "compiled"
            generic = replace(looked_up, given=looked_up.moves)
            torch.testing.assert_close(quick.logits, generic.policy(quick.solution.value))


def published_maps(height, width, seed=0):
    """Free cells at the edge, islands and a goal on an obstacle included."""
    map, goal = (x.float() for x in maps(4, height, width, seed))
    map[1, :, :, 0] = 0
    goal[2] = 0
    goal[2, 0, 0, 0] = 1
    map[2, 0, 0, 0] = 0
    goal[3] = 0
    return map, goal


@pytest.mark.parametrize(("height", "width"), [(80, 70), (1, 90), (5, 4), (4, 3)])
def test_waves_settle_as_buckets_do_to_the_bit(height, width):
    planner = load_planner("reachability").planner
    map, goal = published_maps(height, width, seed=width)
    with torch.no_grad():
        planner.core.encode(torch.cat(maps(1, 70, 70), 1).float())  # from here on there is a table
        step = planner.core.encode(torch.cat([map, goal], 1))
        assert isinstance(step.given, LookedUp) and best_first._waves(step) is not None
        generic = replace(step, given=step.moves)
        (by_waves, _), (by_buckets, _) = (
            best_first.fixed_point(s, planner.solver, planner.adjoint) for s in (step, generic)
        )
        assert by_waves.dtype == torch.float64
        assert torch.equal(by_waves.view(torch.int64), by_buckets.view(torch.int64))
        torch.testing.assert_close(best_first.policy(step, by_waves), generic.policy(by_waves), rtol=1e-5, atol=1e-4)


def test_moves_that_cost_otherwise_are_settled_by_buckets():
    planner = load_planner("reachability").planner
    with torch.no_grad():
        planner.core.survival_bias -= 0.7
        step = planner.core.encode(torch.cat(published_maps(80, 70), 1))
        assert isinstance(step.given, LookedUp) and best_first._waves(step) is None
        values = [
            best_first.solve(s, torch.float64, planner.solver).value for s in (step, replace(step, given=step.moves))
        ]
        assert torch.equal(*values)
        logits = best_first.policy(step, values[0]), step.policy(values[0])
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("wrap", "actions"), [(True, 4), (False, 8), (True, 8)])
def test_tables_serve_the_torus_and_eight_moves(wrap, actions):
    torch.manual_seed(4)
    spec = PlannerSpec(core="reachability", options={"group": "trivial"}, wrap=wrap, tolerance=0.0, k_fwd=400, **FLOWS)
    quick, reference = (build_planner(spec, actions=actions, kernel=kernel) for kernel in ("auto", "reference"))
    quick.core.progress.fill_(1.0)
    with torch.no_grad():
        quick.core.tap_logits[:, 0] -= 9.0
        quick.core.survival_bias[:] = 9.0  # every move survives, as after training: waves, where there is no torus
        reference.load_state_dict(quick.state_dict())
        reference.solver = ForwardIteration(max_steps=400, tolerance=0.0)
        map, goal = (x.float() for x in maps(1, 70, 64))
        found, expected = (planner.plan(map, goal) for planner in (quick, reference))
        assert isinstance(found.step.given, LookedUp) and found.kernel == "compiled"
        assert (best_first._waves(found.step) is None) == wrap
        torch.testing.assert_close(found.solution.value, expected.solution.value, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.logits, found.step.policy(found.solution.value.double()), rtol=1e-4, atol=1e-3)


def test_no_pattern_tells_what_is_not_of_zeros_and_ones():
    map, goal = maps(2, 5, 6)
    x = torch.cat([map, goal], 1)
    assert patterns(x, False) is not None and patterns(x, True) is not None
    for other in (0.5 * x, x - 1, torch.full_like(x, torch.nan), torch.cat([x, map], 1)):
        assert patterns(other, False) is None


def test_the_table_follows_the_weights():
    core = planner_of(1.0).core
    x = torch.cat(maps(1, 70, 70), 1)
    with torch.no_grad():
        before = core.encode(x).given.table
        assert core.encode(x).given.table is before
        core.head_weight += 0.1  # what loops have made of the table goes with it
        assert core.encode(x).given.table is not before
        core.survival_bias += 0.1
        after = core.encode(x).given.table
        assert not torch.equal(after, before)
        small = core.encode(torch.cat(maps(1, 9, 9), 1))
        assert isinstance(small.given, LookedUp)  # once there is a table, it is quicker at any size
        torch.testing.assert_close(small.moves.exp(), core.discount * core.survival(torch.cat(maps(1, 9, 9), 1)))


def test_taps_sharpen_to_one_neighbour():
    core = planner_of(0.0).core
    counts = []
    for progress in (0.0, 0.5, 0.8, 0.9):
        core.set_progress(progress)
        taps = core.taps()
        assert torch.allclose(taps.sum(1), torch.ones(8, dtype=taps.dtype))
        counts.append(int((taps > 0).sum()))
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 8
    assert core.sharp and torch.equal(core.taps().amax(1), torch.ones(8, dtype=taps.dtype))


def test_what_survives_with_less_than_a_growing_share_counts_for_none():
    core = planner_of(0.0, decided=True).core
    logits = torch.linspace(-6, 6, 101, dtype=torch.float64)
    ramps = []
    for progress in (0.0, 0.25, 0.5, 0.875, 1.0):
        core.set_progress(progress)
        ramps.append(core._ramp(logits))
    assert torch.equal(ramps[0], ramps[1]) and torch.equal(ramps[3], ramps[4])
    for earlier, later in pairwise(ramps[1:]):
        assert torch.equal(earlier >= 1, later >= 1) and (later <= earlier.clamp(max=1) + 1e-12)[earlier < 1].all()
    assert torch.equal(ramps[4] > 0, ramps[0] > 0.8)


@pytest.mark.slow
def test_every_move_in_every_pattern_is_decided_as_it_tends():
    core = planner_of(1.0, decided=True).float().core
    with torch.no_grad():
        core.survival_bias += 1.0
    before = core.patterns_survival().detach().clamp(0, 1)
    assert ((before > 0) & (before < 1)).any()
    core.decide(most_steps=3000)
    after = core.patterns_survival()
    assert torch.equal(after >= 1, before > 0.5) and torch.equal(after <= 0, before <= 0.5)
    assert not after.requires_grad  # what is decided is learned no further
    assert all(parameter.grad is None for parameter in core.parameters())


def test_moves_are_decided_once_when_the_last_eighth_begins():
    core = planner_of(0.5, decided=True).float().core
    with torch.no_grad():
        core.survival_bias += 1.0
    before = core.hidden_weight.detach().clone()
    core.set_progress(7 / 8)
    assert torch.equal(before, core.hidden_weight) and core.patterns_survival().requires_grad
    core.set_progress(0.9)
    decided = core.hidden_weight.detach().clone()
    assert not torch.equal(before, decided)
    core.set_progress(1.0)
    core.finish()
    assert torch.equal(decided, core.hidden_weight)


def test_a_single_epoch_is_for_learning():
    core = build_planner(PlannerSpec(core="reachability")).core
    core.set_progress(1.0)
    assert not core.sharp and core.patterns_survival().requires_grad
    core.finish()
    assert core.sharp


def test_options_and_moves_that_fit_no_group_are_refused():
    with pytest.raises(ValueError, match="q_channels must be a multiple of 4"):
        ReachabilityOptions(q_channels=6)
    with pytest.raises(ValueError, match="solver 'best_first' works with the cores reachability"):
        PlannerSpec(core="vin", solver="best_first")
    with pytest.raises(ValueError, match="8 actions need group 'trivial'"):
        build_planner(PlannerSpec(core="reachability"), actions=8)
    assert isinstance(build_planner(PlannerSpec(core="reachability", group="trivial"), actions=8).core, Reachability)


def serpentine(rows):
    """One way of some rows^2 / 2 steps from corner to corner, and its cells in order."""
    free, way = np.zeros((rows, rows), np.uint8), []
    for number, row in enumerate(range(1, rows - 1, 2)):
        columns = np.arange(1, rows - 1)[:: -1 if number % 2 else 1]
        way.append(np.stack([np.full(len(columns), row), columns], axis=1))
        if row < rows - 2:
            way.append(np.array([[row + 1, columns[-1]]]))
    cells = np.concatenate(way)
    free[tuple(cells.T)] = 1
    return free, cells


def test_a_way_of_a_million_steps_arrives():
    free, cells = serpentine(1419)
    assert len(cells) > 1_000_000
    map = torch.from_numpy(free).float()[None, None]
    goal = torch.zeros_like(map)
    goal[0, 0, 1, 1] = 1
    planner = load_planner("reachability").planner
    with torch.no_grad():
        plan = plan_walled(planner, map, goal, moves=FOUR)
    actions = plan.logits[0].argmax(0).numpy()[tuple(cells[1:].T)]
    assert (cells[1:] + np.array(FOUR.offsets)[actions] == cells[:-1]).all()  # each step leads to the cell before


def test_a_gradient_flows_down_a_way_of_a_million_steps():
    free, cells = serpentine(1419)
    goal = torch.full(free.shape, floor_of(torch.from_numpy(free)))
    goal[1, 1] = 0.0
    open_ = torch.where(torch.from_numpy(free) > 0, np.log(0.99), -np.inf).float()
    moves = open_.expand(1, 4, *free.shape).clone().requires_grad_()
    taps = torch.cat([torch.zeros(4, 1), torch.eye(4)], 1).log()
    rule = {"neighbours": (4, 1, 3, 7, 5), "wrap": False, "sharp": True, "head": torch.eye(4), "scale": 1.0}
    floor = {"discount": 0.99, "costs": None, "floor": float(goal.min())}
    step = ReachabilityStep(given=moves, goal=goal[None, None], taps=taps, **rule, **floor)
    u, solution = best_first.fixed_point(step, BestFirst(), Implicit(BestFirst()))
    assert u.dtype == torch.float64 and solution.value.dtype == torch.float32
    last = tuple(cells[-1].tolist())
    assert float(u.detach()[0, 0][last]) == pytest.approx((len(cells) - 1) * np.log(0.99), rel=1e-6)
    u[0, 0][last].backward()
    assert (moves.grad.sum(1)[0].numpy()[tuple(cells[1:].T)] == 1.0).all() and float(moves.grad.sum()) == len(cells) - 1


@pytest.mark.parametrize("count", [7, 5000])
def test_cells_are_sorted_by_digits_as_by_comparing(count):
    generator = np.random.default_rng(0)
    for u in (
        -1e5 * generator.random(count),
        generator.standard_normal(count) * 10.0 ** generator.integers(-300, 300, count),
        -0.01 * generator.integers(0, 50, count),
        np.where(generator.random(count) < 0.1, -np.inf, -1.5),
        np.zeros(count),
    ):
        order = farthest_first(u)
        assert (u[order] == np.sort(u)).all() and sorted(order) == list(range(count))


@pytest.mark.parametrize("size", [5, 70])
def test_no_map_is_no_plan(size):
    """A batch of none, by the encoder and by the table of patterns."""
    planner = load_planner("reachability").planner
    nothing = torch.zeros(0, 1, size, size)
    assert planner.plan(nothing, nothing).logits.shape == (0, 4, size, size)
    with torch.no_grad():
        assert planner.plan(nothing, nothing).logits.shape == (0, 4, size, size)
