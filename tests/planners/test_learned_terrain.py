"""From pictures to costs to plans: learning from single ways, and how the field measures what comes of it."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import datagen.environments
from datagen.expert.cells import cell_links
from datagen.problem import EIGHT
from datagen.tasks import mazes, terrain
from datagen.tasks.registry import DatasetSpec
from planners import GreedyPolicy, PlannerSpec, RoutePlanner, TrainingSpec, build_planner
from planners.training.costs import cost_ratio, rank_correlation
from planners.training.evaluation import Inputs, evaluate
from planners.training.graphs import refusal
from planners.training.paths import path_cells, path_cross_entropy
from planners.training.rollout import follow
from planners.training.trainer import Trainer

SPEC = DatasetSpec(task="terrain", map_size=6, train=64, valid=4, test=16, options={"pixels": 4, "noise": 0.05})
PLANNER = PlannerSpec(
    core="shortest_path",
    mapper="tiles",
    mapper_options={"channels": (12, 16)},
    adjoint="implicit",
    solver="best_first",
    solver_bwd="best_first",
)
MEASURES = ("cost_ratio", "cost_rank")


def problems(split="test", spec=SPEC):
    return terrain.draw(spec, split, 0, spec.count(split))


def ways(found):
    """The cells of each way by its labels, the goal left out, step by step."""
    on = np.zeros(found.map.shape, bool)
    for i in range(len(found)):
        at = tuple(found.start[i])
        while at != tuple(found.goal[i]):
            on[i][at] = True
            at = tuple(np.add(at, EIGHT.offsets[found.label[i][at]]))
    return on


def test_the_cells_of_a_way():
    anywhere = DatasetSpec.model_validate({**dict(SPEC), "options": {"ends": "anywhere", "pixels": 2}})
    found = problems("train", anywhere)
    inputs = Inputs.of(found)
    on = path_cells(inputs.label, inputs.start, torch.from_numpy(found.goal).long(), EIGHT)
    np.testing.assert_array_equal(on.numpy(), ways(found))
    logits = torch.randn(len(found), 8, 6, 6, generator=torch.Generator().manual_seed(0))
    own = [
        -logits[i, :, row, column].log_softmax(0)[int(found.label[i, row, column])]
        for i, row, column in np.argwhere(on.numpy()).tolist()
    ]
    torch.testing.assert_close(path_cross_entropy(logits, inputs, EIGHT), torch.stack(own).mean())


def test_ways_need_a_start():
    found = mazes.draw(DatasetSpec(task="mazes", map_size=7, train=2), "train", 0, 2)
    training = TrainingSpec(labels="path", epochs=1, batch_size=2)
    trainer = Trainer(PlannerSpec(q_channels=4, hidden_channels=4), training, found, found, moves=EIGHT, seed=0)
    with pytest.raises(ValueError, match="labels: 'path' follows the expert from each problem's start"):
        trainer.run_epoch()
    assert "followed from cell to cell" in refusal(torch.device("cuda"), PLANNER, training)


def test_costs_are_learned_from_single_ways():
    training = TrainingSpec(
        labels="path",
        optimizer="adam",
        learning_rate=0.01,
        learning_rate_decay=0.95,
        epochs=40,
        batch_size=16,
        mapper_pretrain_epochs=0,
    )
    trainer = Trainer(PLANNER, training, problems("train"), problems("valid"), moves=EIGHT, seed=0)
    test = problems()
    before = evaluate(trainer.planner, test, moves=EIGHT, measures=MEASURES)
    while not trainer.finished:
        record = trainer.run_epoch()
    assert record.kernel == "compiled"
    after = evaluate(trainer.planner, test, moves=EIGHT, measures=MEASURES, batch_size=5)
    assert after.measured.cost_rank > 0.75 > before.measured.cost_rank
    assert 1 <= after.measured.cost_ratio < 1.12 < before.measured.cost_ratio
    assert after.exact > before.exact + 0.2 and after.success_rate == 1.0
    options = {**dict(SPEC.options), "ends": "anywhere"}
    larger = problems("test", DatasetSpec.model_validate({**dict(SPEC), "map_size": 9, "options": options}))
    torch.manual_seed(0)
    untrained = build_planner(PLANNER, actions=8)
    known, unknown = (
        evaluate(planner, larger, moves=EIGHT, measures=MEASURES) for planner in (trainer.planner, untrained)
    )
    assert 2 * (known.measured.cost_ratio - 1) < unknown.measured.cost_ratio - 1


def test_what_ways_cost_over_the_least():
    found, chance = problems(), np.random.default_rng(0)
    actions = np.where(chance.random(found.map.shape) < 0.78, found.label, chance.integers(8, size=found.map.shape))
    links = cell_links(found.map, found.costs, EIGHT)
    facts = {
        "actions": torch.from_numpy(actions.astype(np.int64)),
        "free": torch.from_numpy(found.map),
        "goal": torch.from_numpy(found.goal),
        "distance": torch.from_numpy(found.distance),
        "moves": (torch.from_numpy(links.target), torch.from_numpy(links.cost)),
        "start": torch.from_numpy(found.start),
    }
    ratios = []
    for i in range(len(found)):
        at, taken, steps = tuple(found.start[i]), 0.0, 0
        while at != tuple(found.goal[i]) and steps < 36:
            to = tuple(np.add(at, EIGHT.offsets[actions[i][at]]))
            at, steps = (to, steps + 1) if min(to) >= 0 and max(to) < 6 else (at, 36)
            taken += found.costs[i][at]
        if at == tuple(found.goal[i]):
            ratios.append(taken / found.distance[i][tuple(found.start[i])])
    assert 4 < len(ratios) < 16 and cost_ratio([facts]) == pytest.approx(np.mean(ratios), rel=1e-5)
    assert cost_ratio([facts | {"start": None}]) != cost_ratio([facts])
    nowhere = facts | {"actions": torch.zeros_like(facts["actions"])}
    arrived, _ = follow(nowhere["actions"], facts["free"].bool(), facts["goal"].long(), facts["moves"])
    assert not arrived[:, 0, 0].any() and cost_ratio([nowhere]) is None


def test_ranks_are_spearman_s():
    chance = np.random.default_rng(0)
    x, y = chance.integers(0, 6, (2, 500)) + np.array([[0.0], [0.5]])
    y = y + x
    found = rank_correlation(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation(torch.from_numpy(x), torch.from_numpy(-(x**3))) == pytest.approx(-1.0)
    assert rank_correlation(torch.ones(5), torch.arange(5.0)) is None
    assert rank_correlation(torch.full((5,), torch.nan), torch.arange(5.0)) is None


def test_a_measure_is_none_where_there_is_nothing_to_measure():
    found = mazes.draw(DatasetSpec(task="mazes", map_size=7, test=3), "test", 0, 3)
    torch.manual_seed(0)
    planner = build_planner(PlannerSpec(core="shortest_path", solver="best_first"))
    measured = evaluate(planner, found, moves=datagen.problem.FOUR, measures=MEASURES).measured
    assert measured.cost_rank is None and measured.cost_ratio == pytest.approx(1.0)


def test_roll_outs_in_the_environment_are_the_tests():
    episodes = datagen.environments.make("terrain", problems=4, map_size=6, options={"pixels": 4}).episodes
    assert not episodes.map_is_seen and set(episodes.observation_space) == {"goal", "position", "observation"}
    torch.manual_seed(0)
    planner = RoutePlanner(build_planner(PLANNER, actions=8), EIGHT)
    policy, told = GreedyPolicy(planner, shape=(6, 6)), []
    for number in range(4):
        environment = datagen.environments.PlanningEnv(episodes)
        observation, info = environment.reset(options={"problem": number})
        done = False
        while not done:
            observation, _, done, cut, info = environment.step(policy(observation))
            assert not cut
        told.append(info["cost"] / info["optimal_cost"])
    asked = evaluate(planner.planner, episodes.problems, moves=EIGHT, measures=MEASURES).measured
    assert asked.cost_ratio == pytest.approx(np.mean(told), rel=1e-5) and asked.cost_ratio > 1.01
