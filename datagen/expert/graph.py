"""Graphs: roads that each problem brings along, where they lead, and the expert's labels on them.

The cells of the map are slots for nodes (1 = a node, 0 = an empty slot), and the a-th action takes a node's a-th road.
Everything else about a dataset, a trial and a table stays as it is on grids.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datagen.problem import Moves, Problems
from datagen.shapes import shaped

if TYPE_CHECKING:
    from jaxtyping import Float32, Int32, Integer, UInt8, UInt64

_TIE = 1e-6
"""Relative difference under which two costs are a tie, as on grids."""


@shaped
@dataclass(frozen=True)
class Links:
    """The roads of a batch of graphs, slots numbered row by row.

    Attributes:
        target: int32 [n, h * w, actions], the slot that each road leads to; the slot itself where there is no road.
        cost: float32 [n, h * w, actions], positive; inf where there is no road.
    """

    target: Int32[NDArray[np.int32], "n slots actions"]
    cost: Float32[NDArray[np.float32], "n slots actions"]


def read_links(moves: Moves, observation: NDArray[np.uint8] | None) -> Links:
    """Return the roads that observations hold.

    Args:
        moves: Moves with `links`, which names a function from observations to `Links`.
        observation: uint8 [n, ...].

    Raises:
        ValueError: There are no observations.
    """
    if observation is None:
        raise ValueError(f"observation: expected the roads of every problem, which {moves.links} reads, got none")
    module, _, name = moves.links.partition(":")
    links: Links = getattr(importlib.import_module(module), name)(observation)
    return links


@shaped
def link_distances(
    goal: Integer[NDArray[np.int16], "n 2"], links: Links, width: int
) -> Float32[NDArray[np.float32], "n slots"]:
    """Return the cost of the cheapest way from every slot to the goal, by relaxing all roads until nothing changes.

    Args:
        goal: Integers [n, 2], row and column.
        links: The roads.
        width: Columns of the map.

    Returns:
        float32 [n, h * w]; inf where no way leads to the goal.
    """
    n, slots, actions = links.target.shape
    every = np.arange(n)
    distance = np.full((n, slots), np.inf)
    distance[every, goal[:, 0].astype(np.int64) * width + goal[:, 1]] = 0.0
    target, cost = links.target.reshape(n, slots * actions), links.cost.astype(np.float64)
    while True:
        ahead = np.take_along_axis(distance, target, axis=1).reshape(n, slots, actions)
        nearer = np.minimum(distance, (cost + ahead).min(axis=2))
        if np.array_equal(nearer, distance):
            return nearer.astype(np.float32)
        distance = nearer


@shaped
def optimal_links(
    distance: Float32[NDArray[np.float32], "n slots"], links: Links
) -> UInt8[NDArray[np.uint8], "n slots"]:
    """Return all roads that begin a cheapest way, uint8 [n, h * w], a bit each; 0 at the goal and where there is none.

    Args:
        distance: float32 [n, h * w] from `link_distances`.
        links: The roads.
    """
    n, slots, actions = links.target.shape
    ahead = np.take_along_axis(distance, links.target.reshape(n, slots * actions), axis=1).reshape(n, slots, actions)
    reached = ahead.astype(np.float64) + links.cost
    away = np.isfinite(distance) & (distance > 0)
    best = (reached <= distance[:, :, None].astype(np.float64) * (1.0 + _TIE)) & away[:, :, None]
    return np.packbits(best, axis=2, bitorder="little")[:, :, 0]


@shaped
def solve_links(
    map_: UInt8[NDArray[np.uint8], "n h w"],
    goal: Integer[NDArray[np.int16], "n 2"],
    observation: UInt8[NDArray[np.uint8], "n ..."],
    moves: Moves,
    seeds: UInt64[NDArray[np.uint64], " n"],
) -> Problems:
    """Return graphs and goals with all their expert labels, as one batch of problems.

    Args:
        map_: uint8 [n, h, w], 1 where a slot holds a node.
        goal: int16 [n, 2], row and column of a node.
        observation: uint8 [n, ...], what `moves.links` reads the roads from.
        moves: At most eight, with `links`.
        seeds: uint64 [n], from which ties are drawn; slots that have no way to the goal draw any action. The draws are
            `np.random.Generator`'s, which may change with NumPy's version; the set's manifest names it.
    """
    links = read_links(moves, observation)
    distance = link_distances(goal, links, map_.shape[2])
    optimal = optimal_links(distance, links)
    draw = np.empty((*distance.shape, len(moves.names)))
    for i, seed in enumerate(seeds):
        draw[i] = np.random.default_rng(int(seed)).random(draw.shape[1:])
    chosen = np.unpackbits(optimal[:, :, None], axis=2, bitorder="little", count=len(moves.names)) == 1
    chosen |= (optimal == 0)[:, :, None]
    label = np.where(chosen, draw, -1.0).argmax(axis=2)
    shape = map_.shape
    return Problems(
        map=map_,
        goal=goal.astype(np.int16),
        distance=distance.reshape(shape),
        optimal_actions=optimal.reshape(shape),
        label=label.astype(np.uint8).reshape(shape),
        observation=observation,
    )
