"""Labels on graphs: against scipy's shortest paths, and what is refused."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from datagen.expert.graph import Links, link_distances, optimal_links, read_links, solve_links
from datagen.expert.grid import goal_distances
from datagen.problem import Moves

NAMES = tuple("abc")
MOVES = Moves(NAMES, ((0, 0),) * 3, (1.0,) * 3, links=f"{__name__}:roads")
N, SLOTS = 12, 20


def random_links(seed):
    rng = np.random.default_rng(seed)
    target = rng.integers(SLOTS, size=(N, SLOTS, 3)).astype(np.int32)
    cost = rng.uniform(0.1, 2.0, target.shape).astype(np.float32)
    cost[(target == np.arange(SLOTS)[:, None]) | (rng.random(target.shape) < 0.3)] = np.inf
    return Links(np.where(np.isinf(cost), np.arange(SLOTS, dtype=np.int32)[:, None], target), cost)


def test_distances_equal_scipy():
    links, goal = random_links(0), np.random.default_rng(1).integers(4, size=(N, 2)).astype(np.int16)
    found = link_distances(goal, links, width=5)
    for i in range(N):
        graph = np.full((SLOTS, SLOTS), np.inf)
        for slot in range(SLOTS):
            np.minimum.at(graph[slot], links.target[i, slot], links.cost[i, slot])
        expected = dijkstra(csr_matrix(np.where(np.isfinite(graph), graph, 0)).T, indices=goal[i, 0] * 5 + goal[i, 1])
        np.testing.assert_allclose(found[i], expected, rtol=1e-6)
    assert np.isinf(found).any() and np.isfinite(found).sum() > N * 5


def test_optimal_roads_lead_to_the_goal_at_the_cost_of_the_distance(monkeypatch):
    links, goal = random_links(2), np.zeros((N, 2), np.int16)
    monkeypatch.setattr("datagen.expert.graph.read_links", lambda moves, observation: links)
    map_, seeds = np.ones((N, 4, 5), np.uint8), np.arange(N, dtype=np.uint64)
    problems = solve_links(map_, goal, np.zeros((N, 1), np.uint8), MOVES, seeds)
    assert problems.distance.shape == problems.label.shape == (N, 4, 5)
    label, distance = problems.label.reshape(N, SLOTS), problems.distance.reshape(N, SLOTS)
    for i, start in zip(*np.nonzero(np.isfinite(distance)), strict=True):
        slot, cost = start, 0.0
        while slot != 0:
            road = label[i, slot]
            assert problems.optimal_actions.reshape(N, SLOTS)[i, slot] >> road & 1
            cost += links.cost[i, slot, road]
            slot = links.target[i, slot, road]
        assert cost == pytest.approx(distance[i, start], rel=1e-5)
    nowhere = ~np.isfinite(distance) | (distance == 0)
    assert not problems.optimal_actions.reshape(N, SLOTS)[nowhere].any()
    assert set(label[nowhere]) == {0, 1, 2}


def test_ties_are_all_optimal():
    target, cost = np.array([[[0, 0, 0], [0, 0, 1]]], np.int32), np.array([[[np.inf] * 3, [1, 1, np.inf]]], np.float32)
    links = Links(target, cost)
    distance = link_distances(np.zeros((1, 2), np.int16), links, width=2)
    assert distance.tolist() == [[0, 1]] and optimal_links(distance, links).tolist() == [[0, 0b011]]


def test_what_has_no_labels_is_refused():
    with pytest.raises(ValueError, match="expected the roads of every problem"):
        read_links(MOVES, None)
    with pytest.raises(ValueError, match="every problem has roads of its own"):
        goal_distances(np.ones((1, 2, 2), np.uint8), np.zeros((1, 2), np.int16), MOVES)
