"""A roll-out in an environment gives the numbers of our own metrics, exactly."""

import gymnasium
import numpy as np
import pytest
import torch

import datagen.environments
from datagen.environments import PlanningEnv, PlanningVectorEnv
from datagen.environments.episodes import Episodes
from datagen.environments.registration import environment_id
from datagen.expert.grid import solve
from datagen.problem import FOUR, FOUR_WRAP
from planners import GreedyPolicy, PlannerSpec, RoutePlanner, build_planner, evaluate, load_planner
from planners.inference import PlannerError
from planners.training.rollout import evaluate_policy

TASKS = {
    "navigation": {"map_size": 9},
    "mazes": {"map_size": 9},
    "maze_unique": {"map_size": 11, "options": {"shortest": 8, "longest": 30}},
    "manipulation": {"map_size": 8},
    "workspace_manipulation": {"map_size": 8},
    "visual_navigation": {"map_size": 5, "options": {"resolution": 20}},
}


def rolled_out(episodes, policy):
    """Success and SPL of a policy from every cell with a way to the goal, averaged as `Evaluation` does."""
    shares = np.zeros(2)
    for number, distance in enumerate(episodes.problems.distance):
        starts = np.argwhere(np.isfinite(distance) & (distance > 0))
        found = np.zeros((2, *distance.shape))
        found[:, *episodes.problems.goal[number]] = 1  # who is there already has arrived
        agents = PlanningVectorEnv(episodes, len(starts))
        observation, told = agents.reset(options={"problem": [number] * len(starts), "start": starts})
        left = np.ones(len(starts), bool)
        while left.any():
            observation, _, done, cut, told = agents.step(policy(observation))
            ends = left & (done | cut)
            rows, columns = starts[ends].T
            found[:, rows, columns] = told["is_success"][ends], told["spl"][ends]
            left &= ~ends
        sums = [sum(part[np.isfinite(distance)].tolist()) for part in found]  # in order, as the metrics add
        shares += np.array(sums) / np.isfinite(distance).sum()
    return shares / len(episodes.problems)


def expert_mostly(episodes, seed=0, share=0.9):
    """Actions of the expert with some at random: many starts arrive, some by detours, some never."""
    chance, problems = np.random.default_rng(seed), episodes.problems
    noise = chance.integers(0, 4, problems.map.shape)
    return np.where(chance.random(problems.map.shape) < share, problems.label, noise).astype(np.int64)


class Looked:
    """A policy that is a table of actions by problem, found by goal and map."""

    def __init__(self, episodes, actions):
        problems = episodes.problems
        self._of = {(m.tobytes(), *g.tolist()): a for m, g, a in zip(problems.map, problems.goal, actions, strict=True)}

    def __call__(self, observation):
        parts = zip(observation["map"], observation["goal"], observation["position"], strict=True)
        return np.array([self._of[(m.tobytes(), *g.tolist())][tuple(at)] for m, g, at in parts])


def judged(episodes, actions):
    problems = episodes.problems
    parts = (actions, problems.map, problems.goal, problems.distance, problems.optimal_actions)
    found = evaluate_policy(*map(torch.from_numpy, parts), episodes.moves)
    return found.success_rate, found.spl


@pytest.mark.parametrize("task", ["navigation", "mazes", "maze_unique", "manipulation"])
def test_any_policy_s_roll_outs_are_our_metrics(task):
    episodes = datagen.environments.make(task, problems=4, split="test", **TASKS[task]).episodes
    if episodes.problems.start is not None:
        episodes = Episodes(_without_starts(episodes.problems), episodes.moves)
    actions = expert_mostly(episodes)
    success, spl = rolled_out(episodes, Looked(episodes, actions))
    assert (success, spl) == judged(episodes, actions) and 0.2 < spl <= success < 1
    assert task != "manipulation" or spl < success  # in mazes there is often one way alone


def _without_starts(problems):
    return type(problems)(**{**vars(problems), "start": None})


@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP], ids=["edge", "torus"])
def test_maps_that_are_free_at_the_edge(moves):
    chance = np.random.default_rng(1)
    free = (chance.random((5, 6, 7)) < 0.75).astype(np.uint8)
    goal = np.array([chance.permutation(np.argwhere(map_))[0] for map_ in free], np.int16)
    episodes = Episodes(solve(free, goal, moves, np.arange(5, dtype=np.uint64)), moves)
    actions = expert_mostly(episodes, share=0.85)
    success, spl = rolled_out(episodes, Looked(episodes, actions))
    assert (success, spl) == judged(episodes, actions) and 0.2 < spl < success < 1
    if moves is FOUR:
        planner = load_planner("reachability")
        assert tuple(rolled_out(episodes, GreedyPolicy(planner))) == (1.0, 1.0)


@pytest.mark.parametrize("task", TASKS)
def test_a_planner_s_roll_outs_are_its_tests(task):
    """Untrained: whatever it does, it does in both."""
    count = 3 if TASKS[task].keys() == {"map_size"} else 1
    episodes = datagen.environments.make(task, problems=count, split="test", **TASKS[task]).episodes
    episodes = Episodes(_without_starts(episodes.problems), episodes.moves, episodes.map_is_seen)
    mapper = datagen.environments.registration.TASKS[task].mapper
    options = {"resolution": 20} if mapper == "panorama" else {}
    torch.manual_seed(3)
    spec = PlannerSpec(core="contractive", k_fwd=12, wrap=episodes.moves.wrap, mapper=mapper, mapper_options=options)
    planner = RoutePlanner(build_planner(spec), episodes.moves)
    shape = episodes.problems.map.shape[1:] if task == "workspace_manipulation" else None
    found = rolled_out(episodes, GreedyPolicy(planner, shape=shape))
    asked = evaluate(planner.planner, episodes.problems, moves=episodes.moves)
    assert tuple(found) == (asked.success_rate, asked.spl)


def test_one_agent_does_as_many_and_a_problem_is_planned_once(monkeypatch):
    planner = load_planner("reachability")
    policy, planned = GreedyPolicy(planner), []
    monkeypatch.setattr(policy, "_plan", lambda seen, plan=policy._plan: (planned.append(1), plan(seen))[1])
    environment = gymnasium.make(environment_id("navigation"), problems=5, map_size=15)
    problems = set()
    for seed in range(8):
        observation, info = environment.reset(seed=seed)
        problems.add(info["problem"])
        terminated = False
        while not terminated:
            action = policy(observation)
            assert isinstance(action, int)
            observation, _, terminated, truncated, info = environment.step(action)
            assert not truncated
        assert info["is_success"] and info["spl"] == 1.0
    assert len(planned) == len(problems)


def test_what_it_cannot_read_is_told():
    policy = GreedyPolicy(load_planner("reachability"))
    for planner, k, told in (
        (None, None, "planner: expected one from load_planner"),
        (policy.planner, 0, "k: expected"),
    ):
        with pytest.raises(PlannerError, match=told):
            GreedyPolicy(planner, k=k)
    with pytest.raises(PlannerError, match="observation: expected a mapping of arrays, got ndarray"):
        policy(np.ones((3, 3)))
    with pytest.raises(PlannerError, match="goal and position, position missing"):
        policy({"goal": np.array([0, 0])})
    with pytest.raises(PlannerError, match="reads more than a map"):
        policy({"goal": np.array([0, 0]), "position": np.array([0, 1])})
    seen = {"goal": np.array([0, 0]), "position": np.array([0, 1]), "map": np.ones((3, 4), np.uint8)}
    for name, part, told in (
        ("goal", np.array([-1, 0]), r"goal: expected row and column of a cell of the \(3, 4\) map, got \(-1, 0\)"),
        ("goal", np.array([0.0, 1.0]), "goal: expected row and column .* two whole numbers"),
        ("position", np.array([0, -1]), r"position: expected row and column .*, got \(0, -1\)"),
        ("position", np.array([3, 0]), r"position: expected row and column .*, got \(3, 0\)"),
        ("map", np.full((3, 4), 255), "observation: map: expected an array .* with values from 255 up to 255"),
        ("map", np.full((3, 4), np.nan), "observation: map: expected an array .* with NaN"),
    ):
        with pytest.raises(PlannerError, match=told):
            policy(seen | {name: part})
    assert policy(seen) == 1
    images = {"goal": np.array([0, 0]), "position": np.array([0, 1]), "observation": np.zeros((1, 96, 96), np.uint8)}
    with pytest.raises(PlannerError, match="shape: expected rows and columns"):
        policy(images)


def test_an_environment_that_names_its_start_begins_there():
    environment = datagen.environments.make("maze_unique", problems=2, **TASKS["maze_unique"])
    assert isinstance(environment, PlanningEnv)
    _, info = environment.reset(options={"problem": 1})
    assert info["start"].tolist() == environment.episodes.problems.start[1].tolist()
