"""Environments are what gymnasium expects, and their rewards and infos are the expert's numbers."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

from datagen.environments import PlanningEnv, PlanningVectorEnv, make, register_tasks
from datagen.environments.episodes import Episodes
from datagen.environments.registration import environment_id
from datagen.expert.graph import Links, solve_links
from datagen.expert.grid import solve
from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.storage.dataset import directory_of, make_dataset
from datagen.tasks.registry import TASKS, DatasetSpec, Task

SMALL = {
    "navigation": {"map_size": 9},
    "mazes": {"map_size": 9, "options": {"start": "elsewhere"}},
    "maze_unique": {"map_size": 11, "options": {"shortest": 8, "longest": 30}},
    "manipulation": {"map_size": 8},
    "workspace_manipulation": {"map_size": 8},
    "visual_navigation": {"map_size": 7, "options": {"resolution": 8}},
    "terrain": {"map_size": 6, "options": {"pixels": 2}},
}
EAST = 3


def optimal(info):
    return int(np.argmax(info["optimal_actions"]))


def test_every_task_is_named():
    assert set(SMALL) == set(TASKS)


@pytest.mark.parametrize("task", SMALL)
def test_gymnasium_finds_no_fault(task):
    """Its warnings are errors here."""
    environment = gymnasium.make(environment_id(task), problems=3, render_mode="rgb_array", **SMALL[task])
    check_env(environment.unwrapped)
    observation, info = environment.reset(seed=1)
    task = TASKS[task]
    assert set(observation) - {"goal", "position"} == ({"map"} if task.mapper == "identity" else {"observation"})
    total, terminated = 0.0, False
    while not terminated:
        observation, reward, terminated, truncated, info = environment.step(optimal(info))
        total += reward
        assert not truncated
    assert info["is_success"] and info["distance"] == 0
    assert [-total, info["cost"], info["spl"]] == pytest.approx([info["optimal_cost"], info["optimal_cost"], 1.0])
    assert np.array_equal(observation["position"], observation["goal"])


@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP], ids=["edge", "torus"])
def test_the_edge_is_a_wall_but_on_the_torus(moves):
    free = np.ones((1, 3, 4), np.uint8)
    episodes = Episodes(solve(free, np.array([[1, 0]], np.int16), moves, np.zeros(1, np.uint64)), moves)
    environment = PlanningEnv(episodes, max_steps=2)
    _, info = environment.reset(seed=0, options={"problem": 0, "start": (1, 3)})
    assert info["optimal_cost"] == (1 if moves.wrap else 3)
    observation, reward, terminated, truncated, info = environment.step(EAST)
    assert reward == -1 and terminated == moves.wrap and not truncated
    assert observation["position"].tolist() == ([1, 0] if moves.wrap else [1, 3])
    if not moves.wrap:
        *_, terminated, truncated, info = environment.step(EAST)
        assert truncated and not terminated and info["spl"] == 0 and not info["is_success"] and info["cost"] == 2


def test_weighted_moves_cost_what_they_cost():
    moves = Moves(("here", "jump"), ((0, 1), (0, 2)), (1.0, 1.5))
    problems = solve(np.ones((1, 1, 6), np.uint8), np.array([[0, 5]], np.int16), moves, np.zeros(1, np.uint64))
    environment = PlanningEnv(Episodes(problems, moves))
    _, info = environment.reset(options={"problem": 0, "start": (0, 0)})
    assert info["optimal_cost"] == 4.0
    rewards = [environment.step(action)[1] for action in (1, 1, 0)]
    assert rewards == [-1.5, -1.5, -1.0]


def test_roads_of_a_graph(monkeypatch):
    links = Links(
        np.array([[[1, 2], [2, 1], [2, 2]]], np.int32), np.array([[[1, 5], [2, np.inf], [np.inf, np.inf]]], np.float32)
    )
    module = type(sys)("roads_of_a_test")
    module.read = lambda observation: Links(*(part.repeat(len(observation), 0) for part in (links.target, links.cost)))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    moves = Moves(("first", "second"), ((0, 0), (0, 0)), (1.0, 1.0), links=f"{module.__name__}:read")
    graph = np.ones((1, 1, 3), np.uint8), np.array([[0, 2]], np.int16), np.zeros((1, 1), np.uint8)
    environment = PlanningEnv(Episodes(solve_links(*graph, moves, np.zeros(1, np.uint64)), moves))
    _, info = environment.reset(options={"problem": 0, "start": (0, 0)})
    assert info["optimal_cost"] == 3.0 and info["optimal_actions"].tolist() == [1, 0]
    environment.step(0)
    observation, reward, terminated, *_ = environment.step(1)
    assert observation["position"].tolist() == [0, 1] and reward == -5 and not terminated
    _, reward, terminated, _, info = environment.step(0)
    assert terminated and reward == -2 and info["spl"] == np.float32(3) / np.float32(8)


@pytest.mark.parametrize("task", ["mazes", "manipulation"])
def test_agents_side_by_side_are_as_many_alone(task):
    asked = {"problems": 4, "max_steps": 12, **SMALL[task]}
    ours = gymnasium.make_vec(environment_id(task), num_envs=5, **asked)
    theirs = SyncVectorEnv([lambda: make(task, **asked)] * 5)
    assert isinstance(ours, PlanningVectorEnv)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    chance, ended = np.random.default_rng(0), 0
    for seed in (7, None):
        _same(ours.reset(seed=seed), theirs.reset(seed=seed))
        for _ in range(30):
            actions = chance.integers(0, 4, 5)
            found = ours.step(actions)
            _same(found, theirs.step(actions))
            ended += int((found[2] | found[3]).sum())
    mask = np.array([True, False, True, False, False])
    _same(ours.reset(options={"reset_mask": mask}), theirs.reset(options={"reset_mask": mask}))
    assert ended > 10


def test_seeds_and_numbers_of_agents_may_be_numpy_s():
    vector = gymnasium.make_vec("idp/Navigation-v0", num_envs=np.int64(3), map_size=9, problems=4)
    expected = vector.reset(seed=5)
    for seed in (np.int64(5), np.arange(5, 8), [5, np.uint8(6), 7]):
        _same(vector.reset(seed=seed), expected)
    vector.reset(seed=[None, 1, None])


def _same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, dict):
            assert mine.keys() == other.keys()
            for name in mine:
                assert mine[name].dtype == other[name].dtype, name
                assert np.array_equal(mine[name], other[name]), name
        else:
            assert mine.dtype == other.dtype and np.array_equal(mine, other)


def test_problems_of_a_set_on_disk(tmp_path):
    spec = DatasetSpec(map_size=9, train=4, valid=2, test=3, distinct="up_to_symmetry")
    make_dataset(spec, tmp_path)
    folder = directory_of(spec, tmp_path)
    read = make("navigation", dataset=folder, split="test")
    drawn = make("navigation", map_size=9, split="test", problems=3)
    assert np.array_equal(read.episodes.problems.map, drawn.episodes.problems.map)
    with pytest.raises(ValueError, match="of the task 'navigation', this environment of 'mazes'"):
        make("mazes", dataset=folder)


def test_a_plug_in_s_task_is_registered_too():
    TASKS["own_kind"] = Task("datagen.tasks.navigation:draw")
    register_tasks()
    assert gymnasium.spec("idp/OwnKind-v0").kwargs == {"task": "own_kind"}
    del gymnasium.registry["idp/OwnKind-v0"]


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="split: expected train, valid, test"):
        make("navigation", split="all")
    with pytest.raises(ValueError, match="problems: expected at least 1"):
        make("navigation", problems=0)
    with pytest.raises(ValueError, match="task: unknown name 'nowhere'"):
        make("nowhere")
    with pytest.raises(ValueError, match="render_mode"):
        make("navigation", map_size=9, problems=3, render_mode="human")
    for asked, told in (
        ({"map_size": -1}, "^map_size: expected 5 or more, got -1$"),
        ({"map_size": 0}, "^map_size: expected 5 or more, got 0$"),
        ({"options": {"loops": 1}}, "^task 'navigation': unknown field 'loops'"),
        ({"mapsize": 9}, "^idp/Navigation-v0: unknown argument 'mapsize'; did you mean 'map_size'?"),
        ({"dataset": "set", "seed": 3}, "^dataset: set has its own seed; give one of the two$"),
        (
            {"map_size": 9, "problems": 3, "max_steps": 0},
            "^max_steps: expected a whole number from 1 on, or None, got 0$",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            make("navigation", **asked)
    environment = make("navigation", map_size=9, problems=3)
    with pytest.raises(gymnasium.error.ResetNeeded):
        environment.step(0)
    for options, told in (
        ({"problem": 3}, "expected one of 3"),
        ({"problem": 0, "start": (0, 0)}, "a way leads to the goal"),
        ({"problem": 0, "start": (0, 99)}, "a way leads to the goal"),
        ({"problem": 0, "start": (1.5, 1)}, "start: expected row and column"),
        ({"problem": "0"}, "problem: expected one of 3 with a way to go, got '0'"),
        ({"start": (1, 1)}, "needs its problem"),
        ({"goal": 1}, "expected problem and start, got goal"),
    ):
        with pytest.raises(ValueError, match=told):
            environment.reset(options=options)
    environment.reset(seed=0)
    for action in (4, -1, "north", None, 1.0):
        with pytest.raises(ValueError, match="action: expected 0 to 3"):
            environment.step(action)
    nowhere = solve(np.eye(3, dtype=np.uint8)[None], np.zeros((1, 2), np.int16), FOUR, np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="in none of them is there a cell"):
        Episodes(nowhere, FOUR)
    vector = PlanningVectorEnv(environment.episodes, 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="agent 0 has begun no episode"):
        vector.step(np.array([0, 0]))
    vector.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(gymnasium.error.ResetNeeded, match="agent 1 has begun no episode"):
        vector.step(np.array([0, 0]))
    vector.reset(seed=[0, 1])
    with pytest.raises(ValueError, match="actions: expected 2 of 0 to 3"):
        vector.step(np.array([0, 9]))
    for count in (0, "2", 2.0, True, None):
        with pytest.raises(ValueError, match=f"num_envs: expected a whole number from 1 on, got {count!r}"):
            PlanningVectorEnv(environment.episodes, count)
    for seed in ("ab", 1.5, -1, [0, 1.0], {0, 1}):
        with pytest.raises(ValueError, match="seed: expected whole numbers from 0 on, got"):
            vector.reset(seed=seed)
    with pytest.raises(ValueError, match="options: problem: expected 2, one for each agent, got 0"):
        vector.reset(options={"problem": 0})
    with pytest.raises(ValueError, match="seed: expected 2, got 1"):
        vector.reset(seed=[0])
    with pytest.raises(ValueError, match="reset_mask"):
        vector.reset(options={"reset_mask": np.array([1, 0])})
