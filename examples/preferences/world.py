"""A world of cells with costs, and the density that costs give to the ways between two of them.

A way from a start to a goal of at most T steps enters cells x_1, x_2, ...; an annotator of rationality b has in mind

    p(way) = exp(-b sum_i c(x_i)) / Z_T(start, goal),    Z_{t+1}(x) = sum_a exp(-b c(x + a)) Z_t(x + a),  Z(goal) = 1

and prefers way A over way B with the probability p(A) / (p(A) + p(B)), Luce's rule: Z cancels, so that the logistic
loss of pairs fits p itself. Dumoulin et al., A density estimation perspective on learning from pairwise human
preferences, 2024. All sums are over the ways, exactly, by dynamic programming backwards from the goal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
CHEAPEST, DEAREST, _BLURS = 0.3, 3.0, 2


@cache
def true_costs(size: int, seed: int) -> Numbers:
    """Return what entering each cell costs, [cells]: patches, each cost as frequent as any other."""
    field = np.random.default_rng([seed, 7]).random((size, size))
    for _ in range(_BLURS):
        field = (field + sum(np.roll(field, shift, axis) for axis in (0, 1) for shift in (1, -1))) / 5
    ranks = field.ravel().argsort().argsort() / (size * size - 1)
    costs = CHEAPEST + (DEAREST - CHEAPEST) * ranks
    costs.flags.writeable = False
    return costs


@cache
def neighbours(size: int) -> NDArray[np.int64]:
    """Return the cells north, west, south and east of each, [cells, 4]; `cells` itself beyond the edge."""
    padded = np.pad(np.arange(size * size).reshape(size, size), 1, constant_values=size * size)
    sides = padded[:-2, 1:-1], padded[1:-1, :-2], padded[2:, 1:-1], padded[1:-1, 2:]
    return np.stack([side.ravel() for side in sides], 1)


def masses(costs: Numbers, goals: NDArray[np.int64], horizon: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield, for t = 1 to the horizon, log Z_t [goals, cells] and the density's moves then [goals, cells, 4].

    Args:
        costs: Rationality times costs [cells].
        goals: Cells [goals].
        horizon: Most steps.
    """
    near = neighbours(round(len(costs) ** 0.5))
    at_goal = np.arange(len(costs)) == goals[:, None]
    entered = np.append(costs, np.inf)
    before = np.where(at_goal, 0.0, -np.inf)
    for _ in range(horizon):
        worth = (np.pad(before, ((0, 0), (0, 1)), constant_values=-np.inf) - entered)[:, near]
        after = np.where(at_goal, 0.0, np.logaddexp.reduce(worth, axis=2))
        reached = np.isfinite(after)[..., None] & ~at_goal[..., None]
        moves = np.exp(np.where(reached, worth - np.where(reached, after[..., None], 0.0), -np.inf))
        yield after, moves
        before = after


def divergence(true: Numbers, learnt: Numbers, horizon: int) -> Numbers:
    """Return KL(p || q) in nats of the densities p and q that two costs [cells] give, [cells from, cells to].

    KL(p || q) = E_p[sum_i (c_q - c_p)(x_i)] + log Z_q - log Z_p; nan where no way is short enough.
    """
    cells, near = np.arange(len(true)), neighbours(round(len(true) ** 0.5))
    change, expected = np.append(learnt - true, 0.0), np.zeros((len(true), len(true)))
    for _, moves in masses(true, cells, horizon):
        ahead = np.pad(expected, ((0, 0), (0, 1))) + change
        expected = (moves * ahead[:, near]).sum(2)
    log_p, log_q = (deque(masses(costs, cells, horizon), 1)[0][0] for costs in (true, learnt))
    known = np.isfinite(log_p)
    return np.where(known, expected + np.where(known, log_q, 0.0) - np.where(known, log_p, 0.0), np.nan).T


@cache
def proposals(size: int, goal: int, cost: float, horizon: int) -> Numbers:
    """Return the moves [horizon, cells, 4] of ways to a goal where all cells cost the same, by steps left, from 1."""
    found = masses(np.full(size * size, cost), np.array([goal]), horizon)
    return np.stack([moves[0] for _, moves in found])


@cache
def cheapest(size: int, seed: int) -> Numbers:
    """Return what the cheapest way costs, [cells from, cells to]."""
    near, entered = neighbours(size), np.append(true_costs(size, seed), np.inf)
    found = np.where(np.eye(size * size, dtype=bool), 0.0, np.inf)
    for _ in range(size * size):
        padded = np.vstack((found, np.full(size * size, np.inf)))
        found = np.minimum(found, (padded + entered[:, None])[near].min(1))
    return found
