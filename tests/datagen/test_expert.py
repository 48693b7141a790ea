"""The expert against an independent shortest-path library, and its labels against the definitions, cell by cell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from datagen.expert.grid import goal_distances, one_hot_label, optimal_actions, solve
from datagen.problem import FOUR, FOUR_WRAP, Moves

EIGHT = Moves(
    names=("n", "nw", "w", "sw", "s", "se", "e", "ne"),
    offsets=((-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1)),
    costs=(1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5),
)
ONE_WAY = Moves(names=("south", "east", "jump"), offsets=((1, 0), (0, 1), (-2, 0)), costs=(1.0, 2.0, 0.7))
HALF_WRAP = Moves(names=EIGHT.names, offsets=EIGHT.offsets, costs=EIGHT.costs, wrap=True)
ALL_MOVES = {"four": FOUR, "four_wrap": FOUR_WRAP, "eight": EIGHT, "one_way": ONE_WAY, "eight_wrap": HALF_WRAP}


def next_cell(map_, cell, offset, wrap):
    """Where a move ends, from the definition: a blocked move stays."""
    row, column = cell[0] + offset[0], cell[1] + offset[1]
    height, width = map_.shape
    if wrap:
        row, column = row % height, column % width
    elif not (0 <= row < height and 0 <= column < width):
        return cell
    return (row, column) if map_[row, column] else cell


def distances_by_scipy(map_, goal, moves):
    height, width = map_.shape
    rows, columns, costs = [], [], []
    for cell in np.argwhere(map_):
        for offset, cost in zip(moves.offsets, moves.costs, strict=True):
            end = next_cell(map_, tuple(cell), offset, moves.wrap)
            if end != tuple(cell):
                # Duplicate edges of a sparse matrix add up; on tiny tori two moves may end on one cell.
                rows.append(end[0] * width + end[1])
                columns.append(cell[0] * width + cell[1])
                costs.append(cost)
    cheapest = {}
    for edge, cost in zip(zip(rows, columns, strict=True), costs, strict=True):
        cheapest[edge] = min(cost, cheapest.get(edge, np.inf))
    ends = np.array(list(cheapest), int).reshape(-1, 2)
    graph = coo_matrix((list(cheapest.values()), (ends[:, 0], ends[:, 1])), shape=(height * width,) * 2)
    distance = dijkstra(graph.tocsr(), indices=goal[0] * width + goal[1]).reshape(height, width)
    distance[map_ == 0] = np.inf
    return distance


@st.composite
def worlds(draw, min_side=3):
    height, width = draw(st.integers(min_side, 9)), draw(st.integers(min_side, 9))
    density = draw(st.sampled_from([0.2, 0.5, 0.8, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    map_ = (rng.random((height, width)) < density).astype(np.uint8)
    goal = (int(rng.integers(height)), int(rng.integers(width)))
    map_[goal] = 1
    return map_, goal


@settings(deadline=None, max_examples=30)
@given(worlds(), st.sampled_from(sorted(ALL_MOVES)))
def test_distances_equal_scipy(world, name):
    map_, goal = world
    moves = ALL_MOVES[name]
    found = goal_distances(map_[None], np.array([goal]), moves)[0]
    np.testing.assert_allclose(found, distances_by_scipy(map_, goal, moves), rtol=1e-6)
    assert found.dtype == np.float32


@settings(deadline=None, max_examples=30)
@given(worlds(), st.sampled_from(sorted(ALL_MOVES)))
def test_optimal_actions_by_definition(world, name):
    map_, goal = world
    moves = ALL_MOVES[name]
    distance = goal_distances(map_[None], np.array([goal]), moves)
    optimal = optimal_actions(map_[None], distance, moves)[0]
    for cell in np.ndindex(map_.shape):
        here = distance[0][cell]
        if cell == goal or not np.isfinite(here):
            assert optimal[cell] == 0
            continue
        for action, (offset, cost) in enumerate(zip(moves.offsets, moves.costs, strict=True)):
            end = next_cell(map_, cell, offset, moves.wrap)
            expected = end != cell and np.isclose(distance[0][end] + cost, here, rtol=1e-6)
            assert bool(optimal[cell] >> action & 1) == expected, (cell, action)
        assert optimal[cell] != 0


@settings(deadline=None, max_examples=30)
@given(worlds(), st.booleans(), st.integers(0, 2**63))
def test_every_optimal_action_is_one_step_nearer_and_the_label_is_one(world, wrap, seed):
    map_, goal = world
    moves = FOUR_WRAP if wrap else FOUR
    problem = solve(map_[None], np.array([goal], np.int16), moves, np.array([seed], np.uint64))
    for cell in np.argwhere(problem.optimal_actions[0]):
        cell = tuple(cell)
        for action in range(4):
            if problem.optimal_actions[0][cell] >> action & 1:
                end = next_cell(map_, cell, moves.offsets[action], wrap)
                assert problem.distance[0][end] == problem.distance[0][cell] - 1
        assert problem.optimal_actions[0][cell] >> problem.label[0][cell] & 1


@settings(deadline=None, max_examples=30)
@given(worlds(), st.sampled_from(sorted(ALL_MOVES)), st.integers(0, 2**63))
def test_label_is_a_best_next_state_for_every_cell(world, name, seed):
    map_, goal = world
    moves = ALL_MOVES[name]
    distance = goal_distances(map_[None], np.array([goal]), moves)
    label = one_hot_label(map_[None], distance, moves, np.array([seed], np.uint64))[0]
    for cell in np.ndindex(map_.shape):
        ends = [next_cell(map_, cell, offset, moves.wrap) for offset in moves.offsets]
        costs = np.array([distance[0][end] for end in ends], float) + moves.costs
        assert label[cell] < len(moves.names)
        assert costs[label[cell]] == costs.min() or np.isclose(costs[label[cell]], costs.min(), rtol=1e-5)


def test_goal_label_is_a_bump_next_to_a_wall():
    map_ = np.ones((1, 5, 5), np.uint8)
    map_[0, 1, 2] = 0  # north of the goal
    distance = goal_distances(map_, np.array([[2, 2]]), FOUR)
    labels = {int(one_hot_label(map_, distance, FOUR, np.array([s], np.uint64))[0, 2, 2]) for s in range(64)}
    assert labels == {0}
    map_[0, 1, 2] = 1
    distance = goal_distances(map_, np.array([[2, 2]]), FOUR)
    labels = {int(one_hot_label(map_, distance, FOUR, np.array([s], np.uint64))[0, 2, 2]) for s in range(64)}
    assert labels == {0, 1, 2, 3}


def test_an_obstacle_is_labelled_towards_its_best_neighbour():
    map_ = np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], np.uint8)
    distance = goal_distances(map_, np.array([[0, 0]]), FOUR)
    labels = {int(one_hot_label(map_, distance, FOUR, np.array([s], np.uint64))[0, 1, 1]) for s in range(64)}
    assert labels == {0, 1}  # north and west are one step from the goal


def test_ties_are_drawn_evenly():
    map_ = np.ones((2000, 3, 3), np.uint8)
    goal = np.zeros((2000, 2), np.int16)
    distance = goal_distances(map_, goal, FOUR)
    label = one_hot_label(map_, distance, FOUR, np.arange(2000, dtype=np.uint64))
    assert set(np.unique(label[:, 2, 2])) == {0, 1}
    assert 0.46 < (label[:, 2, 2] == 0).mean() < 0.54  # 3.6 standard deviations
    # Cells are drawn independently of each other.
    assert abs(np.corrcoef(label[:, 2, 2], label[:, 1, 1])[0, 1]) < 0.08


def test_wrap_is_shorter_around_the_edge():
    map_ = np.ones((1, 9, 9), np.uint8)
    goal = np.array([[0, 0]])
    assert goal_distances(map_, goal, FOUR)[0, 8, 8] == 16
    assert goal_distances(map_, goal, FOUR_WRAP)[0, 8, 8] == 2
    optimal = optimal_actions(map_, goal_distances(map_, goal, FOUR_WRAP), FOUR_WRAP)
    assert optimal[0, 8, 0] == 1 << 2  # south, over the edge
    assert optimal[0, 0, 8] == 1 << 3  # east, over the edge


@pytest.mark.parametrize(
    ("map_", "goal", "message"),
    [
        (np.zeros((1, 3, 3), np.uint8), [[1, 1]], "problem 0 has its goal on an obstacle"),
        (np.ones((1, 3, 3), np.uint8), [[3, 1]], "outside the map"),
        (np.ones((1, 3, 3), np.uint8), [[1, 1, 1]], "expected \\[1, 2\\]"),
        (np.ones((1, 3, 3)), [[1, 1]], "expected uint8"),
    ],
)
def test_bad_input_is_named(map_, goal, message):
    with pytest.raises(ValueError, match=message):
        goal_distances(map_, np.array(goal), FOUR)
