"""What is certified of reachability weights, and the search for a counterexample on maps that can be counted out."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from datagen.expert.grid import solve
from datagen.options import MazeOptions
from datagen.problem import EIGHT, FOUR, FOUR_WRAP, Moves
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, build_planner, load_planner
from planners.certificate import certify, pattern_of
from planners.cores.reachability import MARGIN
from planners.edge import plan_walled
from planners.fixed_points import Anderson, ForwardIteration
from planners.inference import followed
from planners.training.evaluation import Inputs, evaluate


@pytest.fixture(scope="module")
def published():
    return load_planner("reachability").planner


def wrong(planner, maps, goals, moves=FOUR, within=math.inf):
    """Return how many cells with a way of so many moves at most take none of fewest, and how many cells that are."""
    problems = solve(maps, goals.astype(np.int16), moves, np.zeros(len(maps), np.uint64))
    inputs = Inputs.of(problems)
    with torch.no_grad():
        planner.plan(torch.ones(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))  # from here on it looks patterns up
        actions = plan_walled(planner, inputs.map, inputs.goal, moves=moves).logits.argmax(1)
    judged = (inputs.optimal_actions > 0) & (torch.from_numpy(problems.distance) <= within)
    return int((judged & (inputs.optimal_actions >> actions & 1 == 0)).sum()), int(judged.sum())


def detours(planner, maps, goals, moves):
    """Return by which factor each plan costs more than a cheapest one; all must arrive."""
    problems = solve(maps, goals.astype(np.int16), moves, np.zeros(len(maps), np.uint64))
    inputs = Inputs.of(problems)
    actions = plan_walled(planner, inputs.map, inputs.goal, moves=moves).logits.argmax(1).numpy()
    factors = []
    for i, row, column in np.argwhere(np.isfinite(problems.distance) & (problems.distance > 0)):
        way, cost = followed(actions[i], maps[i], tuple(goals[i]), (row, column), moves)
        assert tuple(way[-1]) == tuple(goals[i])
        factors.append(cost / problems.distance[i, row, column])
    return factors


def every_map(height, width):
    """Return all maps of that size, one of those that turns and flips make of each other."""
    cells = height * width
    numbers = np.arange(2**cells)
    maps = (numbers[:, None] >> np.arange(cells) & 1).astype(np.uint8).reshape(-1, height, width)
    flips = [maps, maps[:, ::-1], maps[:, :, ::-1], maps[:, ::-1, ::-1]]
    images = flips + [image.swapaxes(1, 2) for image in flips] * (height == width)
    return maps[np.min([image.reshape(-1, cells) @ (1 << np.arange(cells)) for image in images], 0) == numbers]


def random_maps(count, size, seed):
    generator, size = np.random.default_rng(seed), np.broadcast_to(size, 2)
    maps = (generator.random((count, *size)) < generator.uniform(0.4, 1.0, (count, 1, 1))).astype(np.uint8)
    maps[:, 0, 0] = 1
    return maps


def some_goals(maps, count, seed):
    maps, goals = every_goal(maps)
    chosen = np.random.default_rng(seed).integers(len(maps), size=count)
    return maps[chosen], goals[chosen]


def doubtful(published, discount, survival):
    """Return the published planner with another discount, and a least survival of the moves that are needed."""
    planner = deepcopy(published)
    planner.core.discount = discount
    low, high = 0.0, 4.0
    for _ in range(20):
        with torch.no_grad():
            planner.core.survival_bias.copy_(published.core.survival_bias - (low + high) / 2)
        low, high = ((low + high) / 2, high) if certify(planner).survival > survival else (low, (low + high) / 2)
    return planner


def on_the_torus(published):
    spec = PlannerSpec(core="reachability", solver="best_first", solver_bwd="best_first", wrap=True)
    planner = build_planner(spec)
    planner.load_state_dict(published.state_dict())
    return planner


def by_eight(wrap=False):
    """Return a planner of eight latent actions, one for each move, whose weights are written and not trained."""
    spec = PlannerSpec(
        core="reachability", solver="best_first", solver_bwd="best_first", wrap=wrap,
        group="trivial", q_channels=8, hidden_channels=8,
    )  # fmt: skip
    planner = build_planner(spec, actions=8)
    core = planner.core
    core.progress.fill_(1.0)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.zero_()
        for action, cell in enumerate(core.neighbours[1:]):  # a move survives where the cell that it enters is free
            core.hidden_weight[action, 0, cell] = core.head_weight[action, action] = 1.0
            core.survival_weight[action, action, 0] = 8.0
            core.tap_logits[action, 1 + action] = 1.0
        core.survival_bias.fill_(-4.0)
    return planner


def hesitant(discount, least):
    """Return that planner with moves that survive with `least` to 1, the more the freer the cell beside them."""
    planner = by_eight()
    planner.core.discount = discount
    with torch.no_grad():
        weight, bias = planner.core.survival_weight[:, :, 0], planner.core.survival_bias
        bias.fill_(-5.0)
        uncut = 1 - (1 - least) / planner.core.steepness
        weight.fill_diagonal_(5 + math.log((uncut + MARGIN) / (1 + MARGIN - uncut)))
        weight += 2.0 * torch.eye(8).roll(1, 1)
    return planner


def every_goal(maps):
    """Return each map once for every free cell of it, with that for a goal."""
    number, row, column = np.nonzero(maps)
    return maps[number], np.stack([row, column], 1)


def test_the_published_weights_are_proven_for_any_length(published):
    found = certify(published)
    assert (found.shortest, found.worst, found.reason) == (math.inf, None, "")
    assert (found.patterns, found.survival) == (512, 1.0)
    assert found.decisions == 1040 and found.margin > 0.1
    assert sum(parameter.numel() for parameter in published.parameters()) < 1000


@pytest.mark.slow
def test_no_counterexample_on_any_map_of_4x4_nor_on_thousands_of_5x5(published):
    assert wrong(published, *every_goal(every_map(4, 4))) == (0, 317_562)
    failed, judged = wrong(published, *every_goal(random_maps(1000, 5, seed=0)))
    assert failed == 0 and judged > 150_000


LONG = replace(EIGHT, costs=tuple(math.hypot(*offset) for offset in EIGHT.offsets))
"""Diagonals cost what they are long."""

# What can survive with less than 1, and how far the proof goes then.
FINITE = [(0.5, 0.8, 6), (0.5, 0.7, 4), (0.7, 0.9, 7), (0.9, 0.97, 7), (0.99, 0.999, 18)]


@pytest.mark.slow
@pytest.mark.parametrize(("discount", "survival", "length"), FINITE)
def test_no_counterexample_within_a_finite_length(published, discount, survival, length):
    planner = doubtful(published, discount, survival)
    found = certify(planner)
    assert found.shortest == length and found.worst is not None and 0.6 < found.survival < 1 and found.margin > 0
    assert f"leave the nearer neighbours {length + 1} steps away: needed moves survive with" in found.reason
    for maps, goals in (
        some_goals(every_map(4, 4), 2000, seed=1),
        some_goals(random_maps(1000, 5, seed=2), 2000, seed=3),
        some_goals(random_maps(100, 16, seed=4), 200, seed=5),
    ):
        failed, judged = wrong(planner, maps, goals, within=length)
        assert failed == 0 and judged > 1500


@pytest.mark.slow
def test_beyond_a_finite_length_plans_do_fail(published):
    planner = doubtful(published, 0.9, 0.8)
    maps, goals = some_goals(random_maps(300, 16, seed=0), 600, seed=0)
    assert wrong(planner, maps, goals, within=certify(planner).shortest)[0] == 0
    assert wrong(planner, maps, goals)[0] > 10


@pytest.mark.slow
def test_weights_with_noise_keep_what_is_proven_of_them(published):
    generator, proven = torch.Generator().manual_seed(0), []
    for _ in range(4):
        planner = deepcopy(published)
        planner.core.discount = 0.6
        with torch.no_grad():
            for part in (planner.core.survival_weight, planner.core.hidden_weight):
                part.mul_(1 + 0.1 * torch.randn(part.shape, generator=generator))
        proven.append(certify(planner).shortest)
        if proven[-1] > 0:
            maps, goals = some_goals(random_maps(200, 12, seed=len(proven)), 300, seed=0)
            assert wrong(planner, maps, goals, within=proven[-1])[0] == 0
    assert sum(0 < length < math.inf for length in proven) > 0, proven


def test_the_torus_is_proven_too(published):
    planner = on_the_torus(published)
    found = certify(planner)
    assert found.shortest == math.inf and found.decisions == 2800 and found.margin > 0.1
    for maps in (every_map(3, 3), random_maps(100, 5, seed=0), random_maps(5, 11, seed=1)):
        failed, judged = wrong(planner, *every_goal(maps), FOUR_WRAP)
        assert failed == 0 and judged > 1000


@pytest.mark.parametrize("wrap", [False, True], ids=["flat", "torus"])
def test_eight_moves_are_proven_and_no_map_counters_it(wrap):
    planner, moves = by_eight(wrap), replace(EIGHT, wrap=wrap)
    found = certify(planner, moves)
    assert (found.shortest, found.decisions, found.survival, found.suboptimality) == (math.inf, 14257, 1.0, 1.0)
    assert found.margin == pytest.approx(-30 * math.log(0.99), rel=1e-6)
    for maps in (every_map(3, 3), random_maps(20, 5, seed=0), random_maps(2, 9, seed=1)):
        failed, judged = wrong(planner, *every_goal(maps), moves)
        assert failed == 0 and judged > 500


def test_eight_moves_have_a_finite_length_and_fail_beyond_some():
    planner = hesitant(0.5, 0.8)
    found = certify(planner, EIGHT)
    assert 0 < found.shortest < 5 and found.survival == pytest.approx(0.8, abs=1e-3)
    maps, goals = some_goals(random_maps(200, 9, seed=1), 300, seed=2)
    assert wrong(planner, maps, goals, EIGHT, within=found.shortest)[0] == 0
    assert wrong(planner, maps, goals, EIGHT)[0] > 0


def test_where_diagonals_are_longer_ways_of_fewest_moves_are_proven():
    planner = by_eight()
    found = certify(planner, LONG)
    assert (found.shortest, found.arrives, found.suboptimality) == (math.inf, math.inf, 2**0.5)
    ratios = detours(planner, *some_goals(random_maps(20, 7, seed=3), 40, seed=4), LONG)
    assert 1.1 < max(ratios) < 2**0.5 + 1e-5 and len(ratios) > 300


def going_round(detour):
    """Return that planner with no survival northwest, where the cell north of it is free, or anywhere."""
    planner = by_eight()
    with torch.no_grad():
        planner.core.survival_weight[0, 1, 0] = -8.0
        planner.core.survival_bias[0] -= 0.0 if detour else 8.0
    return planner


def test_moves_that_others_go_round_are_proven_to_arrive():
    planner = going_round(detour=True)
    found = certify(planner, EIGHT)
    assert (found.shortest, found.arrives, found.suboptimality, found.survival) == (0, math.inf, 2.0, 0.0)
    assert found.worst.free[0] and found.worst.free[1] and found.margin > 0.1
    three, nine = every_goal(every_map(3, 3)), some_goals(random_maps(20, 9, seed=3), 20, seed=4)
    ratios = [ratio for maps, goals in (three, nine) for ratio in detours(planner, maps, goals, EIGHT)]
    assert 1.1 < max(ratios) <= 2.0 and len(ratios) > 1000
    without = certify(going_round(detour=False), EIGHT)
    assert (without.arrives, without.margin) == (0, 0.0) and "survives with 0, not 1" in without.reason


def test_a_discount_by_which_long_ways_end_below_the_floor_is_not_certified(published):
    """Once it was proven to arrive, and lost cells of a map that is one long way to and fro."""
    planner = deepcopy(published)
    planner.core.discount = 0.05
    found = certify(planner)
    assert (found.shortest, found.arrives, found.worst) == (0, 0, None) and "discount 0.05" in found.reason
    fro = np.zeros((1, 33, 33), np.uint8)
    fro[0, ::2] = fro[0, 1::4, -1] = fro[0, 3::4, 0] = 1
    assert wrong(planner, fro, np.zeros((1, 2), int))[0] > 0


def test_eight_moves_that_may_err_are_not_certified():
    planner = by_eight()
    with torch.no_grad():
        planner.core.head_weight[0, 1] = 2.0  # what leads northwest speaks for north
    found = certify(planner, EIGHT)
    assert (found.shortest, found.reason) == (0, "the policy may leave the nearer neighbours")
    assert found.margin <= 0 and found.worst.free[4]
    assert wrong(planner, *every_goal(every_map(3, 3)), EIGHT)[0] > 0


@pytest.mark.parametrize("size", [5, 12, 33])
def test_no_counterexample_on_random_maps(published, size):
    failed, judged = wrong(published, *some_goals(random_maps(60, (size, size + 1), seed=size), 200, seed=size))
    assert failed == 0 and judged > 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["perfect", "opened"])
def test_mazes_of_401_are_solved_from_every_start(published, kind):
    spec = DatasetSpec(task="mazes", map_size=401, test=1, options=MazeOptions(kinds=(kind,)))
    problems = mazes.draw(spec, "test", 0, 1)
    longest = problems.distance[np.isfinite(problems.distance)].max()
    found = evaluate(published, problems, moves=FOUR)
    assert (found.success_rate, found.optimality, found.accuracy) == (1.0, 1.0, 1.0)
    assert longest > (5000 if kind == "perfect" else 500)


def test_a_policy_that_may_err_is_not_certified(published):
    broken = deepcopy(published)
    with torch.no_grad():
        broken.core.head_weight.zero_()
    found = certify(broken)
    assert (found.shortest, found.reason) == (0, "the policy may leave the nearer neighbours")
    assert found.worst is not None and found.margin <= 0


@pytest.mark.slow
def test_a_move_that_does_not_survive_is_named_with_its_pattern(published):
    found = certify(doubtful(published, 0.99, 0.2))
    assert found.shortest == 0 and "survives with 0.2, not 1" in found.reason and found.survival < 0.25
    assert found.worst.free[4] and len(str(found.worst).split("/")) == 3


def test_walls_that_let_value_through_are_named(published):
    broken = deepcopy(published)
    with torch.no_grad():
        broken.core.survival_bias += 30.0
    found = certify(broken)
    assert found.shortest == 0 and found.reason == "a move into a wall may survive, and one out of a wall"
    assert not all(found.worst.free)
    broken.core.options = broken.core.options.model_copy(update={"decided": False})
    assert "survive, and one out of a wall (trained with decided: false" in certify(broken).reason


def test_unfinished_training_is_not_certified(published):
    unfinished = deepcopy(published)
    unfinished.core.set_progress(0.0)
    with torch.no_grad():
        unfinished.core.tap_logits.zero_()
    assert certify(unfinished).reason == "a latent action leads to several neighbours: the training was not finished"


def test_other_planners_are_refused():
    for fields in ({"core": "vin"}, {"core": "reachability", "channels": 1}):
        with pytest.raises(ValueError, match="certify: expected a planner with core 'reachability'"):
            certify(build_planner(PlannerSpec(**fields)))
    with pytest.raises(
        ValueError, match="expected a Planner, got RoutePlanner; load_planner's has it as its attribute"
    ):
        certify(load_planner("reachability"))
    with pytest.raises(ValueError, match=r"certify: expected a Planner, got str$"):
        certify("reachability")
    with pytest.raises(ValueError, match="this one's mapper draws it, in probabilities"):
        certify(build_planner(PlannerSpec(core="reachability", mapper="unet")))


def test_plans_that_are_cut_short_are_not_certified(published):
    """The same weights, by a solver that ends early: on an open map their plans go in circles."""
    for solver in (Anderson(max_steps=60), ForwardIteration(max_steps=60)):
        cut = deepcopy(published)
        cut.solver = solver
        with pytest.raises(ValueError, match=rf"solved best first, .* 60 steps at most by {type(solver).__name__}"):
            certify(cut)


@pytest.mark.parametrize(
    "moves",
    [EIGHT, Moves(offsets=((-1, 0), (0, -1), (1, 0), (1, 0))), Moves(offsets=((-2, 0), (0, -1), (1, 0), (0, 1)))],
    ids=["eight", "north twice", "a knight"],
)
def test_moves_that_are_not_the_planners_are_refused(published, moves):
    with pytest.raises(ValueError, match="certify: expected the four moves north, west, south and east, or all eight"):
        certify(published, moves)


def test_four_moves_in_another_order_are_judged_by_it(published):
    turned = Moves(FOUR.names[1:] + FOUR.names[:1], FOUR.offsets[1:] + FOUR.offsets[:1], (1.0, 2.0, 1.0, 1.0))
    assert certify(published, turned).shortest == 0
    planner = on_the_torus(published)
    assert certify(planner, replace(FOUR_WRAP, costs=turned.costs)).suboptimality == 2.0


def test_patterns_by_row():
    assert pattern_of(0).free == (False,) * 9
    assert str(pattern_of(0b100)) == "##./###/###"
