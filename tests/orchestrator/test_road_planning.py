"""The plug-in beyond the grid: does what holds on grids hold on graphs, and is it trained as all others are?"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.expert.graph import read_links
from datagen.expert.grid import goal_distances
from datagen.problem import FOUR
from datagen.tasks.navigation import draw as draw_mazes
from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.cli.main import main
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand
from orchestrator.trial.trained import Inputs
from planners import PlannerSpec, TrainingSpec, build_planner, load_planner
from planners.inference import PlannerError
from planners.training.evaluation import evaluate
from planners.training.trainer import Trainer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def roads():
    """The plug-in, loaded for these tests alone."""
    load_plugins(["road_planning"], beside=[EXAMPLES])


def problems(size=6, count=6, split="train"):
    spec = DatasetSpec(task="roads", map_size=size, train=200, valid=32, test=32)
    return TASKS["roads"].draw()(spec, split, 0, count)


def planner(**fields):
    torch.manual_seed(0)
    spec = PlannerSpec(core="graph_contraction", channels=32, **fields)
    return build_planner(spec, actions=8)


def test_graphs_are_irregular_and_connected_and_some_roads_one_way():
    found = problems(count=40)
    links = read_links(TASKS["roads"].moves, found.observation)
    towns = found.map.reshape(40, -1) == 1
    degree = np.isfinite(links.cost).sum(2)[towns]
    assert degree.max() >= 7 and np.unique(degree).size >= 6
    assert np.isfinite(found.distance[found.map == 1]).mean() > 0.9
    adjacent = np.zeros((40, 36, 36), bool)
    graph, town, road = np.nonzero(np.isfinite(links.cost))
    adjacent[graph, town, links.target[graph, town, road]] = True
    one_way = (adjacent & ~adjacent.transpose(0, 2, 1)).sum() / adjacent.sum()
    assert 0.03 < one_way < 0.2


def test_the_step_contracts_with_any_weights_and_plans_do_not_depend_on_the_order_of_roads():
    made, inputs = planner().double(), Inputs.of(problems())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=5)
    injected = made.core.encode(made.inputs(inputs.map.double(), inputs.goal.double(), inputs.observation)[0])
    u, v = 10 * torch.randn(2, *made.core.initial_value(injected).shape, dtype=torch.float64)
    change = (made.core.step(u, injected) - made.core.step(v, injected)).abs().amax((1, 2, 3))
    assert (change <= 0.99 * (u - v).abs().amax((1, 2, 3)) * (1 + 1e-12)).all() and (change > 0).any()
    order = torch.randperm(8)
    shuffled = inputs.observation.unflatten(1, (8, 4))[:, order].flatten(1, 2)
    first = made.plan(inputs.map.double(), inputs.goal.double(), inputs.observation).logits
    second = made.plan(inputs.map.double(), inputs.goal.double(), shuffled).logits
    torch.testing.assert_close(second, first[:, order])


@pytest.mark.slow
def test_unrolled_and_implicit_gradients_meet():
    drawn, found = problems(count=3), []
    inputs, label = Inputs.of(drawn), torch.from_numpy(drawn.label).long()
    exact = {"solver_bwd": "forward", "k_bwd": 800, "tolerance": 0.0, "tolerance_bwd": 0.0}
    for fields in ({"adjoint": "unrolled"}, {"adjoint": "implicit", **exact}):
        made = planner(k_fwd=800, **fields).double()
        logits = made.plan(inputs.map.double(), inputs.goal.double(), inputs.observation).logits
        torch.nn.functional.cross_entropy(logits, label).backward()
        found.append(torch.cat([p.grad.flatten() for p in made.parameters()]))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_a_grid_is_a_graph():
    """Where a step to the goal is worth 1 and a wall -500, values on a plain map are powers of the discount."""
    made = build_planner(PlannerSpec(core="graph_contraction", values=1, largest_discount=0.9))
    core = made.core.double()

    class Worth(torch.nn.Module):
        def forward(self, seen):
            blocked, to_goal = (seen[..., :2] < 0.5).any(-1), seen[..., 3] > 0.5
            return torch.where(blocked, -500.0, to_goal.double()).unsqueeze(-1)

    core.reward = Worth()
    core.discount_logit.data.fill_(40.0)
    mazes = draw_mazes(DatasetSpec(map_size=9, train=8), "train", 0, 8)
    inputs = Inputs.of(mazes)
    with torch.no_grad():
        injected = core.encode(torch.cat([inputs.map, inputs.goal], 1).double())
        v = core.initial_value(injected)
        for _ in range(300):
            v = core.step(v, injected)
    distance = goal_distances(mazes.map, mazes.goal, FOUR)
    away = np.isfinite(distance) & (distance > 0)
    # the goal is left and entered again every other step
    np.testing.assert_allclose(v[:, 0].numpy()[away], 0.9 ** (distance[away] - 1) / (1 - 0.9**2), rtol=1e-6)


@pytest.mark.slow
def test_it_learns_and_plans_on_larger_graphs_than_it_was_trained_on():
    spec = PlannerSpec(core="graph_contraction", channels=32, adjoint="implicit", k_fwd=30)
    training = TrainingSpec(epochs=3, batch_size=8, optimizer="adam", learning_rate=0.02, labels="all_optimal")
    moves, larger = TASKS["roads"].moves, problems(10, 16, "test")
    trainer = Trainer(spec, training, problems(count=160), problems(count=16, split="valid"), moves=moves, seed=0)
    before = evaluate(trainer.planner, larger, moves=moves, k_fwd=60)
    while not trainer.finished:
        trainer.run_epoch()
    after = evaluate(trainer.planner, larger, moves=moves, k_fwd=60)
    # Being drawn to the goal is enough to arrive somehow; what is learned is what roads cost.
    assert before.optimality < 0.3 and before.spl < 0.8
    assert after.optimality > 0.6 and after.spl > 0.85 and after.success_rate > 0.85


@pytest.mark.slow
def test_a_trial_of_the_sweep_is_trained_and_taken_up_again(tmp_path, capsys):
    small = ["--set", "data={train: 64, valid: 8, test: 8}", "--set", "training.epochs=1", "--set", "test_on=[]"]
    sweep = [str(EXAMPLES / "roads.yaml"), "--storage", str(tmp_path), *small]
    trials = expand(load_sweep(EXAMPLES / "roads.yaml", overrides=small[1::2]))
    assert {t.axes["planner"] for t in trials} >= {"graph", "id-graph", "id-graph-anderson"}
    assert {(t.spec.planner.channels, t.spec.plugins) for t in trials} == {(32, ("road_planning",))}
    chosen = next(t for t in trials if t.axes["planner"] == "id-graph")
    assert main(["trial", *sweep, chosen.trial_id]) == 0
    folder = tmp_path / "trials" / chosen.trial_id
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "COMPLETED" and result["test_success_rate"] > 0.3
    assert len(result["forward_trace"]) == len(result["backward_trace"]) + 25 == 40
    capsys.readouterr()
    assert main(["table", *sweep, "--only", "planner=id-graph,seed=0"]) == 0
    assert "id-graph" in capsys.readouterr().out
    route_planner = load_planner(folder)
    assert route_planner.moves == TASKS["roads"].moves
    with pytest.raises(PlannerError, match="32 channels beside map and goal"):
        route_planner.solve(np.ones((6, 6)), start=(1, 1), goal=(0, 0))
    assert main(["show", str(folder), "--out", str(tmp_path / "p.png")]) == 2
    assert "roads" in capsys.readouterr().err
