"""Costs that differ from cell to cell: the roads that they make of a grid, and the expert's labels on them.

A move costs its own price times that of the cell which it enters; where a problem starts costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datagen.expert.graph import Links, link_distances, optimal_links
from datagen.expert.grid import neighbours
from datagen.jit import kernel
from datagen.problem import Moves, Problems
from datagen.sampling.splitmix import GAMMA, mix
from datagen.shapes import shaped

if TYPE_CHECKING:
    from jaxtyping import Float32, Integer, UInt8, UInt64

_S32 = np.uint64(32)


@shaped
def cell_links(
    map_: UInt8[NDArray[np.uint8], "n h w"], costs: Float32[NDArray[np.float32], "n h w"], moves: Moves
) -> Links:
    """Return the roads of grids whose cells have costs: from each free cell to the free ones that its moves reach.

    Args:
        map_: 1 = free.
        costs: Positive.
        moves: What the agent can do.
    """
    n, height, width = map_.shape
    here = np.arange(height * width, dtype=np.int32)[:, None]
    target = neighbours(height, width, moves, 1)
    free = map_.reshape(n, height * width) == 1
    leads = (target != here) & free[:, :, None] & free[:, target]
    price = costs.reshape(n, height * width)[:, target] * np.array(moves.costs, np.float32)
    return Links(np.where(leads, target, here), np.where(leads, price, np.float32(np.inf)))


@kernel
def _labels(optimal: NDArray[np.uint8], actions: int, seeds: NDArray[np.uint64]) -> NDArray[np.uint8]:
    label = np.empty(optimal.shape, np.uint8)
    for i in range(len(optimal)):
        for cell in range(optimal.shape[1]):
            among: Any = np.int64(optimal[i, cell])
            if among == 0:
                among = (1 << actions) - 1
            count = 0
            for action in range(actions):
                count += among >> action & 1
            # Keyed by the cell, so a cell's draw depends on no other cell.
            draw = mix(seeds[i] + GAMMA * np.uint64(cell + 1)) >> _S32
            left: Any = np.int64((draw * np.uint64(count)) >> _S32)
            for action in range(actions):
                if among >> action & 1:
                    if left == 0:
                        label[i, cell] = action
                    left -= 1
    return label


@shaped
def solve_cells(
    map_: UInt8[NDArray[np.uint8], "n h w"],
    goal: Integer[NDArray[np.int16], "n 2"],
    costs: Float32[NDArray[np.float32], "n h w"],
    moves: Moves,
    seeds: UInt64[NDArray[np.uint64], " n"],
) -> Problems:
    """Return maps, goals and costs of cells with all their expert labels, as one batch of problems.

    Args:
        map_: 1 = free.
        goal: Row and column of a free cell.
        costs: Positive.
        moves: At most eight.
        seeds: From which ties are drawn; cells that have no way to the goal, and the goal itself, draw any action.
    """
    links, shape = cell_links(map_, costs, moves), map_.shape
    distance = link_distances(goal.astype(np.int16), links, shape[2])
    optimal = optimal_links(distance, links)
    label = _labels(optimal, len(moves.names), seeds)
    return Problems(
        map=map_,
        goal=goal.astype(np.int16),
        distance=distance.reshape(shape),
        optimal_actions=optimal.reshape(shape),
        label=label.reshape(shape),
        costs=costs,
    )
