"""What is certified of reachability weights, and the search for a counterexample on maps that can be counted out."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from datagen.expert.grid import solve
from datagen.options import MazeOptions
from datagen.problem import FOUR
from datagen.tasks import mazes
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, build_planner, load_planner
from planners.certificate import certify, pattern_of
from planners.edge import plan_walled
from planners.training.evaluation import Inputs, evaluate


@pytest.fixture(scope="module")
def published():
    return load_planner("reachability").planner


def wrong(planner, maps, goals):
    """Return how many cells that have a way take no shortest one, and how many cells that are."""
    problems = solve(maps, goals.astype(np.int16), FOUR, np.zeros(len(maps), np.uint64))
    inputs = Inputs.of(problems)
    with torch.no_grad():
        actions = plan_walled(planner, inputs.map, inputs.goal, moves=FOUR).logits.argmax(1)
    judged = inputs.optimal_actions > 0
    return int((judged & (inputs.optimal_actions >> actions & 1 == 0)).sum()), int(judged.sum())


def every_goal(maps):
    """Return each map once for every free cell of it, with that for a goal."""
    number, row, column = np.nonzero(maps)
    return maps[number], np.stack([row, column], 1)


def test_the_published_weights_are_proven_for_any_length(published):
    found = certify(published)
    assert (found.shortest, found.worst, found.reason) == (math.inf, None, "")
    assert (found.patterns, found.survival) == (512 + 9 * 256, 1.0)
    assert found.decisions > 2000 and found.margin > 0.1
    assert sum(parameter.numel() for parameter in published.parameters()) < 1000


@pytest.mark.slow
def test_no_counterexample_on_any_map_of_nine_cells(published):
    inside = (np.arange(512)[:, None] >> np.arange(9) & 1).astype(np.uint8).reshape(-1, 3, 3)
    assert wrong(published, *every_goal(np.pad(inside, ((0, 0), (1, 1), (1, 1))))) == (0, 6792)
    assert wrong(published, *every_goal(inside)) == (0, 6792)  # a free edge is walled in


@pytest.mark.parametrize("size", [5, 12, 33])
def test_no_counterexample_on_random_maps(published, size):
    generator = np.random.default_rng(size)
    maps = (generator.random((60, size, size + 1)) < generator.uniform(0.3, 1.0, (60, 1, 1))).astype(np.uint8)
    maps[:, 0, 0] = 1
    maps, goals = every_goal(maps)
    chosen = generator.integers(len(maps), size=200)
    failed, judged = wrong(published, maps[chosen], goals[chosen])
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


def test_a_move_that_does_not_survive_is_named_with_its_pattern(published):
    broken = deepcopy(published)
    with torch.no_grad():
        broken.core.survival_bias -= 3.0
    found = certify(broken)
    assert found.shortest == 0 and "survives with" in found.reason and found.survival < 1
    assert found.worst.free[4] and len(str(found.worst).split("/")) == 3


def test_walls_that_let_value_through_are_named(published):
    broken = deepcopy(published)
    with torch.no_grad():
        broken.core.survival_bias += 30.0
    found = certify(broken)
    assert found.shortest == 0 and found.reason == "a move into a wall may survive, and one out of a wall"
    assert not all(found.worst.free)


def test_unfinished_training_is_not_certified(published):
    unfinished = deepcopy(published)
    unfinished.core.set_progress(0.0)
    with torch.no_grad():
        unfinished.core.tap_logits.zero_()
    assert certify(unfinished).reason == "a latent action leads to several neighbours: the training was not finished"


def test_other_planners_are_refused():
    for fields in ({"core": "vin"}, {"core": "reachability", "wrap": True}, {"core": "reachability", "channels": 1}):
        with pytest.raises(ValueError, match="certify: expected a planner with core 'reachability'"):
            certify(build_planner(PlannerSpec(**fields)))


def test_patterns_by_row():
    assert pattern_of(0).free == (False,) * 9 and pattern_of(511).goal is None
    assert str(pattern_of(512 * 3 + 0b100)) == "##G/###/###"
    goal_in_reach = pattern_of(512 * 2 + 0b010010)
    assert list(goal_in_reach.nearer()) == [(0,)]
    assert len(list(pattern_of(511).nearer())) == 15
