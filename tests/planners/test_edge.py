"""The edge of a map is a wall for every planner, whatever its core takes from over the edge."""

import dataclasses

import numpy as np
import pytest
import torch

from datagen.expert.grid import goal_distances, solve
from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from planners import PlannerSpec, RoutePlanner, TrainingSpec, build_planner
from planners.cores import Injected
from planners.edge import enclosed, on_map, plan_walled
from planners.training.evaluation import Inputs, evaluate
from planners.training.trainer import Trainer

EIGHT = Moves(
    names=("n", "nw", "w", "sw", "s", "se", "e", "ne"),
    offsets=((-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1)),
    costs=(1.0, 1.5) * 4,
)
WALL = -99.0


class Leaky(torch.nn.Module):
    """Right on the cells of the map and on its obstacles; over the edge it finds the zeros of a padded convolution.

    Values are minus the distance, so nothing is as good as a zero: the policy of a free border cell leaves the map.
    """

    def __init__(self, moves):
        super().__init__()
        self.moves, self.unused = moves, torch.nn.Parameter(torch.zeros(1))

    def encode(self, x):
        return Injected((x,))

    def initial_value(self, r):
        return torch.where(r.per_sample[0][:, 1:2] > 0, 0.0, WALL)

    def policy(self, v, r):
        x = r.per_sample[0]
        known = torch.where(x[:, :1] > 0, v, torch.full_like(v, WALL))
        padded = torch.nn.functional.pad(known, (1, 1, 1, 1))
        h, w = v.shape[2:]
        parts = [padded[:, :, 1 + r : 1 + r + h, 1 + c : 1 + c + w] for r, c in self.moves.offsets]
        return torch.cat(parts, 1) - torch.tensor(self.moves.costs).view(1, -1, 1, 1)

    def step(self, v, r):
        best = self.policy(v, r).amax(1, keepdim=True).clamp(min=WALL)
        return torch.where(r.per_sample[0][:, 1:2] > 0, torch.zeros_like(v), best)


def leaky(moves=FOUR):
    planner = build_planner(PlannerSpec(k_fwd=60, wrap=moves.wrap))
    planner.core = Leaky(moves)
    return planner


def labelled(maps, goals, moves):
    """Problems with the labels that the moves give them."""
    return solve(np.array(maps, np.uint8), np.array(goals, np.int16), moves, np.zeros(len(maps), np.uint64))


def random_maps(count, shape, seed=0, walled=()):
    generator = np.random.default_rng(seed)
    maps = (generator.random((count, *shape)) < 0.8).astype(np.uint8)
    for number in walled:
        maps[number, [0, -1], :] = maps[number, :, [0, -1]] = 0
    maps[:, 2, 3] = 1
    return maps, np.tile([2, 3], (count, 1))


@pytest.mark.slow
@pytest.mark.parametrize("moves", [FOUR, EIGHT], ids=["four", "eight"])
def test_no_route_leaves_an_open_map(moves):
    planner = RoutePlanner(leaky(moves), moves)
    for shape in ((6, 6), (4, 9), (9, 4)):
        maps, goals = random_maps(2, shape)
        maps[0] = 1
        distance = goal_distances(maps, goals.astype(np.int16), moves)
        for map_, best in zip(maps, distance, strict=True):
            for start in np.argwhere(np.isfinite(best)):
                route = planner.solve(map_, start=tuple(start), goal=(2, 3))
                assert route.arrives and route.cost == best[tuple(start)], (shape, start, route.outcome)
                assert route.values.shape == route.actions.shape == shape


@pytest.mark.parametrize("moves", [FOUR, EIGHT], ids=["four", "eight"])
def test_open_and_walled_maps_of_a_set_are_all_measured_right_in_any_batch(moves):
    maps, goals = random_maps(7, (7, 8), walled=(1, 4))
    maps[3] = 1
    problems = labelled(maps, goals, moves)
    whole = evaluate(leaky(moves), problems, moves=moves)
    assert whole.success_rate == whole.optimality == 1.0
    assert whole == evaluate(leaky(moves), problems, moves=moves, batch_size=2)


def test_a_result_does_not_depend_on_the_other_maps_of_the_batch():
    torch.manual_seed(0)
    planner = build_planner(PlannerSpec(core="contractive", k_fwd=9, hidden_channels=8, q_channels=8))
    maps, goals = random_maps(6, (7, 7), walled=(0, 2, 3))
    problems = labelled(maps, goals, FOUR)
    alone = [evaluate(planner, problems[i : i + 1], moves=FOUR) for i in range(6)]
    whole = evaluate(planner, problems, moves=FOUR)
    assert whole.accuracy == pytest.approx(np.mean([one.accuracy for one in alone]), abs=1e-12)


@pytest.mark.parametrize("core", ["vin", "contractive", "conv_gppn", "spt"])
def test_walled_maps_are_planned_to_the_last_bit_as_ever_and_open_ones_as_with_a_wall_drawn(core):
    torch.manual_seed(0)
    planner = build_planner(PlannerSpec(core=core, k_fwd=5))
    inputs = Inputs.of(draw(DatasetSpec(map_size=9), "test", 0, 3))
    map, goal = inputs.map, inputs.goal
    plan, plain = plan_walled(planner, map, goal, moves=FOUR), planner.plan(map, goal)
    assert torch.equal(plan.logits, plain.logits) and torch.equal(on_map(plan), plain.solution.value)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    cut = plan_walled(planner, map[inner], goal[inner], moves=FOUR)
    assert torch.equal(cut.logits, plain.logits[inner]) and torch.equal(on_map(cut), plain.solution.value[inner])


def test_what_has_no_edge_gets_no_wall():
    map, goal = torch.ones(2, 1, 5, 5), torch.zeros(2, 1, 5, 5)
    planner = build_planner(PlannerSpec(core="vin", hidden_channels=4, q_channels=4, k_fwd=2))
    assert enclosed(planner, map, None, FOUR).tolist() == [True, True]
    assert not enclosed(planner, map, None, FOUR_WRAP).any()
    assert not enclosed(planner, map, None, dataclasses.replace(FOUR, links="some:reader")).any()
    seen = torch.zeros(2, 1, 96, 96, dtype=torch.uint8)
    assert not enclosed(planner, map, seen, FOUR).any()
    layered = build_planner(PlannerSpec(core="vin", hidden_channels=4, q_channels=4, k_fwd=2, channels=2))
    layers = torch.full((2, 2, 5, 5), 200, dtype=torch.uint8)
    assert enclosed(layered, map, layers, FOUR).all()
    assert plan_walled(layered, map, goal, layers, moves=FOUR).logits.shape == (2, 4, 5, 5)


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_training_on_open_maps_sees_the_wall_that_testing_has(adjoint):
    maps, goals = random_maps(8, (6, 6), walled=(1,))
    problems = labelled(maps, goals, FOUR)
    walled = labelled(np.pad(maps, ((0, 0), (1, 1), (1, 1))), goals + 1, FOUR)
    spec = PlannerSpec(core="contractive", k_fwd=4, adjoint=adjoint, hidden_channels=8, q_channels=8)
    training = TrainingSpec(epochs=1, batch_size=8, labels="all_optimal", jacobian_weight=0.1, jacobian_frequency=1.0)
    losses = []
    for train in (problems, walled):
        trainer = Trainer(spec, training, train, train[:0], moves=FOUR, seed=0)
        losses.append(trainer.run_epoch().train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
