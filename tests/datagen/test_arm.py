"""Configuration spaces and workspace images against a geometry library, and scenes against their definition."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.expert.grid import goal_distances
from datagen.problem import FOUR_WRAP
from datagen.tasks.arm import BASE, LINK, configuration_space, joint_angles, link_positions, workspace_image
from datagen.tasks.manipulation import draw
from datagen.tasks.registry import DatasetSpec


def region(polygons):
    """What is covered; corners sorted around a point can still make an edge cross another, then even-odd counts."""
    return shapely.union_all([shapely.make_valid(shapely.Polygon(polygon)) for polygon in polygons])


def space_by_shapely(polygons, size, inclusive=False):
    shapes = region(polygons)
    theta = np.linspace(0, 2 * math.pi, size, endpoint=inclusive)
    map_ = np.ones((size, size), np.uint8)
    for i, first in enumerate(theta):
        elbow = (BASE + LINK * math.cos(first), BASE + LINK * math.sin(first))
        for j, second in enumerate(theta):
            hand = (elbow[0] + LINK * math.cos(first + second), elbow[1] + LINK * math.sin(first + second))
            map_[i, j] = not shapely.LineString([(BASE, BASE), elbow, hand]).intersects(shapes)
    return map_


def star(rng, centre, radius, corners):
    angle = np.sort(rng.uniform(0, 2 * math.pi, corners))
    away = rng.uniform(0.3 * radius, radius, corners)
    return (centre + np.stack([np.cos(angle), np.sin(angle)], 1) * away[:, None]).astype(np.float32)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.sampled_from([9, 12]), st.booleans())
def test_configuration_space_equals_shapely_on_random_scenes(seed, count, size, inclusive):
    rng = np.random.default_rng(seed)
    # Anywhere, also around the base and outside the workspace.
    polygons = [star(rng, rng.uniform(1, 9, 2), rng.uniform(0.2, 2.5), int(rng.integers(3, 8))) for _ in range(count)]
    found = configuration_space(polygons, size, inclusive)
    np.testing.assert_array_equal(found, space_by_shapely(polygons, size, inclusive))


@pytest.mark.parametrize("size", [18, 36])
def test_drawn_maps_equal_shapely(size):
    problems = draw(DatasetSpec(task="manipulation", map_size=size, seed=7), "test", 0, 12)
    for map_, scene in zip(problems.map, problems.obstacles, strict=True):
        np.testing.assert_array_equal(map_, space_by_shapely(scene, size))


def test_an_obstacle_around_the_base_blocks_everything():
    square = np.array([[1, 1], [9, 1], [9, 9.5], [1, 9]], np.float32)
    assert not configuration_space([square], 9).any()
    assert configuration_space([], 9).all()


def test_links_are_where_they_should_be():
    points = link_positions(np.array([[0.0, 0.0], [math.pi / 2, -math.pi / 2]]))
    np.testing.assert_allclose(points[0], [[5, 5], [7.1, 5], [9.2, 5]])
    np.testing.assert_allclose(points[1], [[5, 5], [5, 7.1], [7.1, 7.1]])


def test_joint_bins_leave_the_full_turn_out():
    np.testing.assert_allclose(np.diff(joint_angles(18)), math.radians(20))
    np.testing.assert_allclose(np.diff(joint_angles(36)), math.radians(10))
    assert joint_angles(18)[-1] == pytest.approx(math.radians(340))
    assert joint_angles(18, inclusive=True)[-1] == pytest.approx(2 * math.pi)


def test_inclusive_angles_repeat_the_first_configuration():
    spec = DatasetSpec(task="manipulation", map_size=18, options={"inclusive_angles": True})
    map_ = draw(spec, "train", 0, 50).map
    np.testing.assert_array_equal(map_[:, 0, :], map_[:, -1, :])
    np.testing.assert_array_equal(map_[:, :, 0], map_[:, :, -1])


def test_scenes_follow_the_definition():
    problems = draw(DatasetSpec(task="manipulation", map_size=18, seed=2), "train", 0, 1500)
    counts = np.bincount([len(scene) for scene in problems.obstacles], minlength=6) / 1500
    # No map twice, so hardly any without obstacles; the rest is nearly uniform.
    assert counts[0] <= 1 / 1500
    assert counts[1:].min() > 0.15 and counts[1:].max() < 0.25
    for scene in problems.obstacles:
        for polygon in scene:
            assert 4 <= len(polygon) <= 7 and polygon.dtype == np.float32
            from_base = np.linalg.norm(polygon - 5, axis=1)
            assert from_base.min() > 1.74 and from_base.max() < 5 + 3.26
    assert len(np.unique(problems.map.reshape(1500, -1), axis=0)) == 1500


def test_goals_are_free_and_reached_from_somewhere_around_the_torus():
    problems = draw(DatasetSpec(task="manipulation", map_size=18, seed=2), "valid", 0, 200)
    row, column = problems.goal.T
    assert problems.map[np.arange(200), row, column].all()
    assert (np.isfinite(problems.distance).sum(axis=(1, 2)) >= 2).all()
    np.testing.assert_array_equal(problems.distance, goal_distances(problems.map, problems.goal, FOUR_WRAP))
    assert problems.distance[np.isfinite(problems.distance)].max() < 60


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.sampled_from([16, 33, 60]))
def test_image_pixels_are_those_that_touch_an_obstacle(seed, count, size):
    rng = np.random.default_rng(seed)
    polygons = [star(rng, rng.uniform(0, 10, 2), rng.uniform(0.3, 3), int(rng.integers(3, 8))) for _ in range(count)]
    shapes = region(polygons)
    side = 10 / size
    low_x, low_y = np.meshgrid(np.arange(size) * side, np.arange(size)[::-1] * side)
    pixels = shapely.box(low_x, low_y, low_x + side, low_y + side)
    found = workspace_image(polygons, size)
    # A pixel that an obstacle only grazes may fall either way by rounding.
    graze = 1e-9
    assert not (found.astype(bool) & (shapely.distance(pixels, shapes) > graze)).any()
    inner = shapely.box(low_x + graze, low_y + graze, low_x + side - graze, low_y + side - graze)
    assert not (~found.astype(bool) & shapely.intersects(inner, shapes)).any()
    assert set(np.unique(found)) <= {0, 1}


def test_workspace_task_is_the_same_problems_with_an_image():
    plain = draw(DatasetSpec(task="manipulation", map_size=18, seed=3), "train", 5, 25)
    seen = draw(DatasetSpec(task="workspace_manipulation", map_size=18, seed=3), "train", 5, 25)
    for name in ("map", "goal", "distance", "optimal_actions", "label"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(seen, name))
    assert plain.observation is None
    assert seen.observation.shape == (20, 1, 96, 96) and seen.observation.dtype == np.uint8
    for image, scene in zip(seen.observation, seen.obstacles, strict=True):
        np.testing.assert_array_equal(image[0], workspace_image(scene, 96))


def test_row_0_of_the_image_is_the_top_of_the_workspace():
    top_right = np.array([[8, 8], [9.9, 8], [9.9, 9.9], [8, 9.9]], np.float32)
    image = workspace_image([top_right], 96)
    assert image[:48, 48:].any() and not image[48:].any() and not image[:, :48].any()
