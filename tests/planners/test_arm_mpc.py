"""The example of a value map as terminal cost, with the expert's values in the place of a trained planner's."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from datagen.expert.grid import goal_distances, optimal_actions
from datagen.problem import FOUR_WRAP
from datagen.tasks.manipulation import draw
from datagen.tasks.registry import DatasetSpec
from planners.inference import Route, followed

PATH = Path(__file__).parents[2] / "examples" / "arm_mpc.py"
DATA = DatasetSpec(task="manipulation", map_size=18, train=32, valid=8, test=40)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("arm_mpc", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["arm_mpc"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["arm_mpc"]


class Expert:
    """Plans as a planner does, from exact distances; `up` says whether its values grow towards the goal."""

    def __init__(self, up=1.0):
        self.up = up

    def solve(self, grid, *, start, goal):
        distance = goal_distances(grid[None], np.array([goal], np.int16), FOUR_WRAP)
        best = optimal_actions(grid[None], distance, FOUR_WRAP)[0]
        actions = np.log2(best & -best.astype(int), where=best > 0, out=np.zeros(grid.shape)).astype(int)
        cells, cost = followed(actions, grid, goal, start, FOUR_WRAP)
        values = -self.up * np.where(np.isfinite(distance[0]), distance[0], 60.0)
        return Route(cells, True, cost, actions, values, 0.0, 1, True, np.zeros(1, np.float32), grid, goal)


@pytest.mark.slow
def test_feedback_makes_up_for_disturbances(example):
    problems = draw(DATA, "test", 0, 40)
    calm, rough = example.compare(Expert(), problems, (0.0, 0.3))
    assert calm.min() > 0.7 and calm[1] == calm[2]  # without disturbances looking again sees nothing new
    assert rough[2] > rough[:2].max() + 0.2, rough


def test_which_way_up_values_are_does_not_matter(example):
    problems = draw(DATA, "test", 0, 12)
    up, down = (example.compare(Expert(up), problems, (0.1,)) for up in (1.0, -1.0))
    np.testing.assert_array_equal(up, down)


def test_all_may_take_as_many_steps(example):
    scene = example.Scene(np.ones((example.FINE, example.FINE), np.uint8), 18, np.zeros(2), np.array([9.0, 9.0]))
    asked = []
    turning = lambda step, angles: asked.append(step) or np.array([0.0, 1.0])  # noqa: E731
    assert example.drive(scene, turning, 0.0, np.random.default_rng(0)) is None
    assert asked == list(range(6 * 18))


def test_values_between_bins_are_interpolated_on_the_torus(example):
    value = np.arange(16.0).reshape(4, 4)
    angles = np.array([[2.0, 3.0], [-1.0, 4.0], [0.5, 0.0], [3.5, 0.0]])
    np.testing.assert_allclose(example.interpolated(value, angles), [11.0, 12.0, 2.0, 6.0])


def test_collisions_on_the_way_are_seen(example):
    fine = np.ones((example.FINE, example.FINE), np.uint8)
    fine[5, :] = 0  # between the first two of 18 bins
    scene = example.Scene(fine, 18, np.zeros(2), np.array([1.0, 17.0]))
    here, there = np.zeros((1, 2)), np.ones((1, 2))
    assert scene.free(here) and scene.free(there) and not scene.clear(here, there)
    assert scene.clear(here, np.array([[0.0, 1.0]])) and scene.clear(there, 2 * there)
    assert scene.arrived(np.array([0.5, -0.5])) and not scene.arrived(np.array([-0.5, 0.0]))
