"""Pairs: two roll-outs between the same ends, two errands, and what an annotator says of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preferences import PairOptions
from preferences.world import cheapest, neighbours, proposals, true_costs

_COSTS = (1.0, 1.6, 3.2)
"""Of cells that are all alike, to whose density the roll-outs belong: long ones, and ever shorter ones."""


def pair(options: PairOptions, generator: np.random.Generator) -> Mapping[str, Any]:
    """Return one pair of ways and one of errands, with an annotator's answers."""
    costs = true_costs(options.size, options.world)
    errands = np.array([_errand(options, generator) for _ in range(2)])
    visits = np.stack([_visits(options, errands[0], generator) for _ in range(2)])
    annotator = int(generator.integers(2))
    rationality = (options.careful, options.noisy)[annotator]
    ways = visits @ costs
    least = cheapest(options.size, options.world)[errands[:, 0], errands[:, 1]]
    chances = [1.0 / (1.0 + np.exp(-rationality * (cost[1] - cost[0]))) for cost in (ways, least)]
    first_way, first_errand = generator.random(2) < chances
    return {
        "visits": visits.reshape(2, options.size, options.size).astype(np.float32),
        "start": errands[:, 0],
        "goal": errands[:, 1],
        "annotator": annotator,
        "first_way": np.float32(first_way),
        "first_errand": np.float32(first_errand),
    }


def _errand(options: PairOptions, generator: np.random.Generator) -> tuple[int, int]:
    """Return start and goal: one another's ends by half of the horizon at most, and not the same."""
    while True:
        ends = generator.integers(options.size, size=(2, 2))
        if 2 <= np.abs(ends[0] - ends[1]).sum() <= options.horizon // 2:
            start, goal = ends @ (options.size, 1)
            return int(start), int(goal)


def _visits(options: PairOptions, errand: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return how often a roll-out enters each cell, [cells]."""
    cell, goal = map(int, errand)
    moves = proposals(options.size, goal, _COSTS[generator.integers(len(_COSTS))], options.horizon)
    near, visits = neighbours(options.size), np.zeros(options.size**2)
    for left in reversed(range(options.horizon)):
        if cell == goal:
            break
        chance = moves[left, cell]
        cell = int(near[cell, generator.choice(4, p=chance / chance.sum())])
        visits[cell] += 1
    return visits
