"""Roll-outs by repeated squaring against a walker that takes one step at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.expert.grid import goal_distances, optimal_actions
from datagen.problem import FOUR, FOUR_WRAP, Moves
from planners.training.rollout import DISTANCE_BINS, evaluate_by_squaring, evaluate_policy, exact_ways, follow

COSTLY = Moves(costs=(1.0, 2.0, 1.0, 0.5))


def walk(actions, free, goal, start, moves):
    """Cost of the walk from `start`, or None where it bumps or goes round in circles."""
    cell, cost = start, 0.0
    for _ in range(free.size + 1):
        if cell == goal:
            return cost
        row, column = (int(a + b) for a, b in zip(cell, moves.offsets[actions[cell]], strict=True))
        if moves.wrap:
            row, column = row % free.shape[0], column % free.shape[1]
        if not (0 <= row < free.shape[0] and 0 <= column < free.shape[1]) or not free[row, column]:
            return None
        cost += moves.costs[actions[cell]]
        cell = (row, column)
    return None


def random_world(seed, height, width, share=0.7):
    rng = np.random.default_rng(seed)
    free = (rng.random((1, height, width)) < share).astype(np.uint8)
    goal = np.array([[rng.integers(height), rng.integers(width)]], dtype=np.int16)
    free[0, goal[0, 0], goal[0, 1]] = 1
    return free, goal, rng


@pytest.mark.slow
@given(seed=st.integers(0, 2**31), height=st.integers(2, 7), width=st.integers(2, 7), mixed=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("moves", [FOUR, FOUR_WRAP, COSTLY], ids=["walls", "wrap", "costs"])
def test_measures_agree_with_a_walker(moves, seed, height, width, mixed):
    free, goal, rng = random_world(seed, height, width)
    distance = goal_distances(free, goal, moves)
    best = optimal_actions(free, distance, moves)
    expert = np.where(best > 0, np.log2(np.maximum(best & -best.astype(np.int16), 1)), 0).astype(np.int64)
    actions = np.where(rng.random(free.shape) < mixed, expert, rng.integers(0, 4, free.shape))

    result = evaluate_policy(
        torch.from_numpy(actions), torch.from_numpy(free), torch.from_numpy(goal), torch.from_numpy(distance),
        torch.from_numpy(best), moves,
    )  # fmt: skip

    squared = evaluate_by_squaring(
        torch.from_numpy(actions), torch.from_numpy(free), torch.from_numpy(goal), torch.from_numpy(distance),
        torch.from_numpy(best), moves,
    )  # fmt: skip
    for name in set(vars(squared)) - {"measured", "searched"}:
        assert getattr(result, name) == pytest.approx(getattr(squared, name), rel=1e-6), name

    cells = [tuple(cell) for cell in np.argwhere(np.isfinite(distance[0]))]
    end = tuple(int(part) for part in goal[0])
    costs = {cell: walk(actions[0], free[0], end, cell, moves) for cell in cells}
    arrived = {cell: cost for cell, cost in costs.items() if cost is not None}
    ideal = {cell: float(distance[0][cell]) for cell in cells}
    assert result.success_rate == pytest.approx(len(arrived) / len(cells))
    optimal = sum(math.isclose(cost, ideal[cell], rel_tol=1e-5, abs_tol=1e-5) for cell, cost in arrived.items())
    assert result.optimality == pytest.approx(optimal / len(cells))
    spl = sum(1.0 if cell == end else ideal[cell] / cost for cell, cost in arrived.items())
    assert result.spl == pytest.approx(spl / len(cells), rel=1e-5)
    away = [cell for cell in cells if cell != end]
    right = sum(bool(best[0][cell] >> actions[0][cell] & 1) for cell in away)
    assert result.accuracy == pytest.approx(right / len(away) if len(away) else 1.0)
    assert sum(result.cells_by_distance) == len(away)
    far = max(cells, key=lambda cell: (ideal[cell], -cell[0], -cell[1]))
    assert result.exact == float(math.isclose(costs[far] or math.inf, ideal[far], rel_tol=1e-5) or far == end)
    chosen = cells[seed % len(cells)]
    facts = (torch.from_numpy(goal), torch.from_numpy(distance), torch.from_numpy(best))
    found = exact_ways(torch.from_numpy(actions), *facts, moves, torch.tensor([chosen]))
    assert found.tolist() == [chosen == end or math.isclose(costs[chosen] or math.inf, ideal[chosen], rel_tol=1e-5)]
    assert sum(result.arrivals_by_distance) == len(set(arrived) - {end})


def test_a_perfect_policy_scores_one_on_a_corridor_longer_than_any_bin():
    free = np.ones((1, 1, 300), dtype=np.uint8)
    goal = np.array([[0, 0]], dtype=np.int16)
    distance = goal_distances(free, goal, FOUR)
    best = optimal_actions(free, distance, FOUR)
    west = torch.full((1, 1, 300), 1)
    result = evaluate_policy(
        west, torch.from_numpy(free), torch.from_numpy(goal), torch.from_numpy(distance), torch.from_numpy(best), FOUR
    )
    assert (result.success_rate, result.optimality, result.spl, result.accuracy) == (1.0, 1.0, 1.0, 1.0)
    assert result.cells_by_distance == (10, 10, 20, 40, 80, 139)
    assert result.arrivals_by_distance == result.cells_by_distance
    assert len(result.cells_by_distance) == len(DISTANCE_BINS)


@pytest.mark.parametrize("by", [evaluate_policy, evaluate_by_squaring])
def test_a_step_too_many_is_one_however_long_the_way(by):
    """A corridor 200,000 cells long, whose walkers all step aside near the goal though nothing is in the way."""
    free = np.zeros((1, 2, 200_000), dtype=np.uint8)
    free[0, 0], free[0, 1, 3:6] = 1, 1
    goal = np.zeros((1, 2), dtype=np.int16)
    distance = goal_distances(free, goal, FOUR)
    north, west, south, _ = range(4)
    actions = torch.full((1, 2, 200_000), west)
    actions[0, 0, 5], actions[0, 1, 3] = south, north
    facts = (torch.from_numpy(fact) for fact in (free, goal, distance, optimal_actions(free, distance, FOUR)))
    result = by(actions, *facts, FOUR)
    assert result.success_rate == 1.0 and result.optimality == pytest.approx(8 / 200_003)


def test_a_bump_and_a_cycle_never_arrive():
    free = torch.ones(1, 2, 2, dtype=torch.bool)
    goal = torch.tensor([[0, 0]])
    north, west, south, east = range(4)
    bump = torch.tensor([[[north, north], [south, south]]])
    cycle = torch.tensor([[[north, south], [east, north]]])
    for actions, expected in ((bump, [[True, False], [False, False]]), (cycle, [[True, False], [False, False]])):
        arrived, _ = follow(actions, free, goal, FOUR)
        assert arrived[0].tolist() == expected
    arrived, cost = follow(torch.tensor([[[north, west], [north, west]]]), free, goal, FOUR)
    assert arrived.all() and cost[0].tolist() == [[0.0, 1.0], [1.0, 2.0]]


def test_maps_are_averaged_not_cells():
    """One map of two cells fails outright, one of six cells succeeds: the mean over maps is what counts."""
    free = torch.zeros(2, 1, 6, dtype=torch.uint8)
    free[0, 0, :2] = 1
    free[1] = 1
    goal = np.zeros((2, 2), dtype=np.int16)
    distance = goal_distances(free.numpy(), goal, FOUR)
    best = optimal_actions(free.numpy(), distance, FOUR)
    actions = torch.full((2, 1, 6), 1)
    actions[0] = 3
    result = evaluate_policy(
        actions, free, torch.from_numpy(goal), torch.from_numpy(distance), torch.from_numpy(best), FOUR
    )
    assert result.success_rate == pytest.approx((1 / 2 + 1) / 2)
    assert result.success_deviation == pytest.approx(np.std([1 / 2, 1], ddof=1))
