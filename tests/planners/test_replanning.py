"""A plan that is repaired where a map has changed is that of a plan from nothing, to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from datagen.problem import Moves
from planners import load_planner
from planners.inference import PlannerError
from planners.replanning import Replanner

PLANNER = load_planner("reachability")


def compare(again, free, start, goal, costs):
    found, expected = (one.solve(free, start=start, goal=goal, costs=costs) for one in (again, PLANNER))
    for name in ("cells", "actions", "values", "trace", "grid"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for name in ("arrives", "cost", "residual", "steps", "converged", "goal", "moves", "all_steps", "discount"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("walled", [False, True])
def test_repaired_plans_are_those_from_nothing(walled):
    draw, again, size = np.random.default_rng(0), Replanner(PLANNER), 64
    free = (draw.random((size, size)) > 0.25).astype(np.uint8)
    if walled:
        free[[0, -1]], free[:, [0, -1]] = 0, 0
    start, goal = (1, 1), (size - 2, size - 2)
    costs, least = 1 + 9 * draw.random((size, size)), size**2
    costs[5, 5] = 10.0  # the dearest, by which what costs nothing is paid, stays where it is
    for number in range(40):
        row, column = draw.integers(2, size - 5, 2)
        part = slice(row, row + 3), slice(column, column + 3)
        if number % 3:
            free[part] = draw.random((3, 3)) > 0.5
        else:  # dearer, cheaper, for nothing, as many as one another
            costs[part] = draw.choice([0.0, 1.0, 4.0, 10.0], (3, 3))
        free[start] = free[goal] = free[5, 5] = 1
        costs[5, 5] = 10.0
        compare(again, free, start, goal, costs)
        least = min(least, again.settled)
    assert least < size**2 / 20
    compare(again, free, start, goal, costs)
    assert again.settled == 0


def test_other_goals_and_sizes_begin_anew_and_another_dearest_cell_does_not():
    again = Replanner(PLANNER)
    free, costs = np.ones((64, 64)), np.ones((64, 64))
    # The last has as many cells as the one before, and its goal as many cells in.
    for shape, goal in (((64, 64), (5, 5)), ((64, 64), (0, 0)), ((65, 64), (0, 5)), ((64, 65), (0, 4))):
        free, costs = np.ones(shape), np.ones(shape)
        costs[2, 2] = 3.0
        compare(again, free, (3, 3), goal, costs)
        assert again.settled == free.size
    costs[2, 2] = 9.0  # by which what costs nothing is paid, and nothing else
    compare(again, free, (3, 3), goal, costs)
    assert again.settled < 10
    compare(again, free, (3, 3), goal, None)
    with pytest.raises(PlannerError, match="planner: expected one from load_planner, got str"):
        Replanner("reachability")
    with pytest.raises(PlannerError, match="is an obstacle"):
        again.solve(np.zeros((3, 3)), start=(0, 0), goal=(1, 1), costs=np.ones((3, 3)))


def test_four_moves_in_another_order_are_refused_as_the_planner_refuses_them():
    turned = Moves(names=("south", "east", "north", "west"), offsets=((1, 0), (0, 1), (-1, 0), (0, -1)))
    again = Replanner(replace(PLANNER, moves=turned))
    with pytest.raises(PlannerError, match="costs"):
        again.solve(np.ones((70, 70)), start=(0, 0), goal=(9, 9), costs=np.ones((70, 70)))


def test_where_no_way_leads():
    again, free, costs = Replanner(PLANNER), np.ones((64, 64)), np.ones((64, 64))
    for wall in (0, 1, 0):
        free[:, 10] = 1 - wall
        compare(again, free, (0, 0), (4, 16), costs)
        assert again.solve(free, start=(0, 0), goal=(4, 16), costs=costs).arrives == (not wall)
