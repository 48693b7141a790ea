"""The loss of given ways in one pass is that of training by `labels: path`, its gradient too."""

import pytest
import torch
from torch.nn import functional

from datagen.problem import EIGHT
from datagen.tasks.registry import TASKS, DatasetSpec
from planners.cores.shortest_path import ShortestPath
from planners.options import ShortestPathOptions
from planners.path_loss import path_loss
from planners.planner import build_planner
from planners.specs import PlannerSpec
from planners.training.evaluation import Inputs
from planners.training.paths import path_cells, path_cross_entropy


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_loss_and_gradient_are_those_of_training(share):
    data = DatasetSpec(task="terrain", map_size=9, train=4, valid=1, test=1, options={"ends": "anywhere", "pixels": 4})
    problems = TASKS["terrain"].draw()(data, "train", 0, 4)
    inputs, goal = Inputs.of(problems), torch.from_numpy(problems.goal).long()
    spec = PlannerSpec(
        core="shortest_path", mapper="tiles", adjoint="implicit", solver="best_first", solver_bwd="best_first"
    )
    torch.manual_seed(0)
    planner = build_planner(spec, actions=len(EIGHT.names))
    planner.core.set_progress(share)
    expected = path_cross_entropy(planner.plan(None, inputs.goal, inputs.observation).logits, inputs, EIGHT)
    costs = functional.softplus(-planner.mapper(inputs.observation, (9, 9))).squeeze(1)
    on = path_cells(inputs.label, inputs.start, goal, EIGHT)
    found = path_loss(planner.core, costs, inputs.goal, inputs.label, on)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.item() > 0.1
    weights = [weight for weight in planner.parameters() if weight.requires_grad]
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_what_it_can_t_do_is_refused():
    costs, goal = torch.ones(1, 3, 3, requires_grad=True), torch.zeros(1, 1, 3, 3)
    goal[0, 0, 0, 0] = 1
    label, on = torch.zeros(1, 3, 3, dtype=torch.int64), torch.ones(1, 3, 3, dtype=torch.bool)
    core = ShortestPath(ShortestPathOptions(), wrap=True, actions=8)
    with pytest.raises(ValueError, match="no torus"):
        path_loss(core, costs, goal, label, on)
    core.wrap = False
    no_goal, eighth = torch.zeros_like(goal), torch.full_like(label, 8)
    for given, told in (
        ((-costs, goal, label, on), "costs: expected finite ones above 0"),
        ((costs[0], goal, label, on), r"costs: .* got torch.float32 \[3, 3\]"),
        ((costs, goal[:, :, :2], label, on), "goal: expected"),
        ((costs, no_goal, label, on), "with one goal each"),
        ((costs, goal, label.int(), on), "label: expected int64"),
        ((costs, goal, eighth, on), "label: expected moves from 0 to 7"),
        ((costs, goal, label, on.float()), "cells: expected bool"),
    ):
        with pytest.raises(ValueError, match=told):
            path_loss(core, *given)
    loss = path_loss(core, costs, goal, label, on)
    with pytest.raises(RuntimeError, match="differentiated again"):
        torch.autograd.grad(loss, costs, create_graph=True)
