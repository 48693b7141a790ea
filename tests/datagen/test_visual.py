"""Visual navigation: MiniWorld's own pixels, and pictures that show what stands around a cell."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from datagen.options import VisualOptions
from datagen.problem import ACTIONS, FOUR
from datagen.rendering.visibility import WALLS, quads, visible_walls
from datagen.tasks import navigation
from datagen.tasks.registry import TASKS, DatasetSpec
from datagen.tasks.visual_navigation import draw

SPEC = DatasetSpec(task="visual_navigation", map_size=7, train=4, valid=2, test=2)
CORRIDOR = np.array(
    [
        [0] * 7,
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0, 1, 0, 1, 0, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0] * 7,
        [0] * 7,
    ],
    np.uint8,
)


def panorama(map_, **options):
    from datagen.rendering.panorama import PanoramaRenderer

    return PanoramaRenderer(len(map_), VisualOptions(**options)).render(map_)


def reference(map_, **options):
    from datagen.rendering.miniworld_reference import reference_panorama

    return reference_panorama(map_, VisualOptions(**options))


def largest_difference(map_, **options):
    return np.abs(panorama(map_, **options).astype(int) - reference(map_, **options)).max()


def interior(size):
    return arrays(np.uint8, (size - 2, size - 2), elements=st.integers(0, 1)).map(lambda a: np.pad(a, 1))


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(map_=st.one_of(interior(5), interior(6), interior(7)).filter(np.any))
def test_pixels_are_those_of_render_obs(map_):
    assert largest_difference(map_) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"gap": 0.0},
        {"gap": 0.03, "camera_height": 0.6, "resolution": 50},
        {"resolution": 8, "field_of_view": 90.0, "views": ("east", "north")},
        {"resolution": 84, "wall_height": 4.0, "wall_texture": "concrete", "views": ("south",)},
        {"resolution": 20, "floor_texture": "grass", "ceiling_texture": "rock"},
    ],
)
def test_pixels_are_those_of_render_obs_with_other_options(options):
    map_ = navigation.draw(DatasetSpec(map_size=9), "train", 3, 4).map[0]
    assert largest_difference(map_, **options) <= 1


def test_an_open_field_at_the_papers_size_shows_the_pixels_of_render_obs():
    from datagen.rendering.miniworld_reference import render_view, room_world

    map_ = np.pad(np.ones((13, 13), np.uint8), 1)
    views = panorama(map_)
    world, rooms = room_world(map_, VisualOptions())
    for cell in [(1, 1), (7, 7), (13, 6)]:
        for k, view in enumerate(ACTIONS):
            difference = render_view(world, rooms[cell], view).astype(int) - views[cell][k]
            assert np.abs(difference).max() <= 1, (cell, view)


def test_maps_goals_and_labels_are_those_of_navigation():
    drawn = draw(SPEC, "valid", 0, 2)
    plain = navigation.draw(DatasetSpec(map_size=7), "valid", 0, 2)
    for name in ("map", "goal", "distance", "optimal_actions", "label"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(plain, name))
    assert drawn.observation.shape == (2, *TASKS[SPEC.task].observation_shape(SPEC)) == (2, 7, 7, 4, 32, 32, 3)
    assert drawn.observation.dtype == np.uint8


def test_obstacle_cells_are_zero_and_free_cells_are_not():
    drawn = draw(SPEC, "train", 0, 4)
    lit = drawn.observation.reshape(4, 7, 7, -1).min(axis=-1) > 0
    np.testing.assert_array_equal(lit, drawn.map.astype(bool))
    assert not drawn.observation[drawn.map == 0].any()


def test_a_problem_does_not_depend_on_its_neighbours():
    together = draw(SPEC, "train", 0, 4)
    np.testing.assert_array_equal(draw(SPEC, "train", 2, 3).observation[0], together.observation[2])


def floor_and_ceiling(view):
    """Count the pixels that are grey or white or black: all but brick."""
    return np.count_nonzero(np.ptp(view.astype(int), axis=-1) <= 6)


@pytest.mark.parametrize("action", range(4))
def test_a_wall_next_to_the_camera_fills_the_view_and_farther_walls_leave_more_floor(action):
    seen = []
    for length in range(1, 6):
        map_ = np.zeros((11, 11), np.uint8)
        for step in range(length):
            row, column = 5 + step * FOUR.offsets[action][0], 5 + step * FOUR.offsets[action][1]
            map_[row, column] = 1
        seen.append(floor_and_ceiling(panorama(map_)[5, 5, action]))
    assert seen[0] == 0
    assert all(seen[i] <= seen[i + 1] for i in range(4)) and seen[4] > seen[2] > 0


def test_views_point_where_the_actions_go():
    views = panorama(CORRIDOR)
    open_ahead = np.array(
        [[floor_and_ceiling(view) > 0 for view in views[cell]] for cell in [(1, 1), (1, 5), (4, 1), (3, 3)]]
    )
    # Corridors three cells long show floor: to the south and east of the corner, ...
    np.testing.assert_array_equal(
        open_ahead, [[False, False, True, True], [False, True, True, False], [True, False, False, False], [False] * 4]
    )


def test_the_camera_stays_in_the_middle_of_its_room():
    far = panorama(np.pad(np.ones((1, 1), np.uint8), ((1, 9), (1, 9))))[1, 1]
    near = panorama(np.pad(np.ones((1, 1), np.uint8), ((9, 1), (9, 1))))[9, 9]
    assert np.abs(far.astype(int) - near).max() <= 1


def test_views_are_kept_in_the_order_asked_for():
    views = panorama(CORRIDOR)
    np.testing.assert_array_equal(panorama(CORRIDOR, views=("east", "north")), views[:, :, [3, 0]])


@settings(deadline=None, max_examples=30)
@given(map_=interior(8).filter(np.any), gap=st.sampled_from([0.0, 0.01, 0.04]))
def test_every_wall_a_ray_meets_is_listed(map_, gap):
    """Follow rays by small steps, independently of openings, and look up the wall that each of them meets."""
    slope = np.tan(np.pi / 6)
    walls, ends, farthest = visible_walls(map_, np.arange(4), slope, gap)
    listed = np.split(walls, ends[:-1])
    for number, (row, column) in enumerate(np.argwhere(map_)):
        for action, (f_row, f_column) in enumerate(FOUR.offsets):
            mine = set(listed[4 * number + action].tolist())
            for t in np.linspace(-slope, slope, 7):
                position = np.array([row, column], float)
                direction = np.array([f_row + t * f_column, f_column - t * f_row])
                # Gaps apart, walls are at half-integers: which one comes next along each axis?
                cell = np.array([row, column])
                while True:
                    ahead = np.where(direction > 0, cell + 0.5, cell - 0.5)
                    with np.errstate(divide="ignore", invalid="ignore"):
                        time = np.where(np.abs(direction) > 1e-12, (ahead - position) / direction, np.inf)
                    if abs(time[0] - time[1]) < 0.2:
                        break  # Near a corner the gap decides.
                    axis = int(np.argmin(time))
                    following = cell.copy()
                    following[axis] += int(np.sign(direction[axis]))
                    if not map_[tuple(following)]:
                        compass = {(0, 1): 0, (-1, 0): 1, (0, -1): 2, (1, 0): 3}[tuple(following - cell)]
                        assert (cell[0] * 8 + cell[1]) * WALLS + compass in mine
                        assert farthest[4 * number + action] > time[axis] - 0.5
                        break
                    cell = following


def test_walls_enclose_the_cell():
    corners, normals, _ = quads(5, 0.01, 2.74)
    assert len(corners) == 25 * WALLS + 2
    for wall, (corner, normal) in enumerate(zip(corners, normals, strict=True)):
        turn = np.cross(corner[1] - corner[0], corner[2] - corner[1])
        np.testing.assert_allclose(turn / np.linalg.norm(turn), normal, atol=1e-9, err_msg=str(wall))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 4}, "resolution"),
        ({"views": ("north", "north")}, "each direction once"),
        ({"views": ("up",)}, "views"),
        ({"camera_height": 3.0}, "camera_height"),
        ({"gap": 0.2}, "gap"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValidationError, match=message):
        VisualOptions(**options)


def test_an_unknown_texture_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"wall_texture: .*'tapestry'.*brick_wall"):
        panorama(CORRIDOR, wall_texture="tapestry")


def test_a_free_border_cell_is_refused():
    with pytest.raises(ValueError, match="border"):
        panorama(np.ones((5, 5), np.uint8))


def test_a_forked_process_is_told_to_spawn(monkeypatch):
    import datagen.rendering.panorama as renderer

    monkeypatch.setattr(renderer, "_PROCESS", -1)
    with pytest.raises(renderer.RendererError, match="spawn"):
        panorama(CORRIDOR)


@pytest.mark.slow
def test_a_machine_without_egl_is_told_the_packages():
    code = (
        "import ctypes.util; find = ctypes.util.find_library\n"
        "ctypes.util.find_library = lambda name: None if name == 'EGL' else find(name)\n"
        "import ctypes; load = ctypes.cdll.LoadLibrary\n"
        "def refuse(name):\n"
        "    if 'EGL' in name: raise OSError(name)\n"
        "    return load(name)\n"
        "ctypes.cdll.LoadLibrary = refuse\n"
        "from datagen.tasks.visual_navigation import draw; from datagen.tasks.registry import DatasetSpec\n"
        "draw(DatasetSpec(task='visual_navigation', map_size=5), 'train', 0, 1)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert "EGL" in last and "libegl1 libgl1 libglu1-mesa libopengl0 libgl1-mesa-dri" in last


def test_planning_imports_no_opengl():
    code = "import sys, datagen.tasks.registry\nassert not {'pyglet', 'miniworld', 'numba', 'pyarrow'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="no triton for this machine")
def test_what_is_drawn_here_may_be_trained_on_here():
    """torch reads Triton as it trains; read after Mesa's, Triton's copy of LLVM ended the process."""
    code = (
        "from datagen.tasks.visual_navigation import draw; from datagen.tasks.registry import DatasetSpec\n"
        "draw(DatasetSpec(task='visual_navigation', map_size=5), 'train', 0, 1)\n"
        "import triton.runtime\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
