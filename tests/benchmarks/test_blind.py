"""The blind search of `benchmarks.blind`, on maps whose common part is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.blind import likeliest_ways, success
from datagen.expert.grid import solve
from datagen.problem import Moves


def problems(maps, goal, moves):
    maps = np.asarray(maps, np.uint8)
    return solve(maps, np.full((len(maps), 2), goal, np.int16), moves, np.arange(len(maps), dtype=np.uint64))


@pytest.fixture
def doors():
    """Ten maps of two rooms: the door below is there always, the one above, on the shortest ways, in one map only."""
    maps = np.ones((10, 6, 5), np.uint8)
    maps[:, :5, 2] = 0
    maps[0, 0, 2] = 1
    return problems(maps, (0, 4), Moves())


def test_the_mean_map_knows_what_all_maps_share(doors):
    assert success(doors, doors.map.mean(0), Moves()) == 1.0
    beside_the_goal, starts = 11, 24  # in nine of the maps, whose walls nobody expects
    assert beside_the_goal / starts <= success(doors, np.ones((6, 5)), Moves()) < 1.0


def test_on_an_empty_torus_nothing_needs_looking():
    free = problems(np.ones((2, 7, 7)), (3, 3), Moves(wrap=True))
    assert success(free, np.ones((7, 7)), Moves(wrap=True)) == 1.0


def test_a_way_is_the_likeliest_and_of_those_the_shortest():
    free = np.ones((3, 4))
    free[1, 1:3] = 0.5
    (actions,) = np.array(Moves().names)[likeliest_ways(free, np.array([[1, 3]], np.int16), Moves())]
    assert actions[1, 0] in ("north", "south")
    assert list(actions[0]) == ["east"] * 3 + ["south"] and list(actions[2]) == ["east"] * 3 + ["north"]
    assert actions[1, 2] == "east"
