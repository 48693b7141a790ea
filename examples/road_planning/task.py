"""Towns in a landscape and the roads between them: short ones to towns near by, some one-way, and a few motorways.

Towns lie anywhere within the cell of a square grid that is their slot. Two towns are neighbours where no third lies in
the circle between them (the Gabriel graph, which is planar and connected, and looks like a map of country roads).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.expert.graph import Links, solve_links
from datagen.problem import Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.tasks.proposed import Proposal, draw_maps
from datagen.tasks.registry import SPLITS, DatasetSpec, Split
from road_planning.options import BYTES, MOST_ROADS, ROADS, RoadOptions

LONGEST = 16.0
"""Length of a road, in slots, that the byte of its length counts as 255; longer ones are not built."""

Floats = NDArray[np.float64]


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split; see `datagen.tasks.registry.Draw`."""
    options = spec.options
    assert isinstance(options, RoadOptions)
    size = spec.map_size

    def propose(generator: np.random.Generator) -> Proposal | None:
        towns = generator.random((size, size)) < options.towns
        cells = np.argwhere(towns)
        if len(cells) < 3:
            return None
        row, column = generator.choice(cells)
        return towns.astype(np.uint8), (int(row), int(column))

    maps, goals = draw_maps(spec, split, start, stop, propose)
    observation = np.empty((len(maps), MOST_ROADS * BYTES, size, size), np.uint8)
    for i, towns in enumerate(maps):
        generator = np.random.default_rng([spec.seed, SPLITS.index(split), start + i, 1])
        observation[i] = _built(towns, options, generator)
    return solve_links(maps, goals, observation, ROADS, label_seeds(_seeds(spec, split, start, stop)))


def _seeds(spec: DatasetSpec, split: Split, start: int, stop: int) -> NDArray[np.uint64]:
    return problem_seeds(spec.seed, SPLITS.index(split), start, stop)


def read_roads(observation: NDArray[np.uint8]) -> Links:
    """Return the roads that observations [n, MOST_ROADS * BYTES, h, w] hold.

    A road's cost is its length times its slowness: 1 on a motorway, up to 4 on a track. The task knows that, the
    planner does not.
    """
    n, _, height, width = observation.shape
    roads = observation.reshape(n, MOST_ROADS, BYTES, height * width).transpose(2, 0, 3, 1)
    target = 256 * roads[0].astype(np.int32) + roads[1]
    length, slowness = roads[2] * (LONGEST / 255), roads[3] / 255
    none = target == np.arange(height * width)[:, None]
    cost = np.where(none, np.inf, length * (1 + 3 * slowness**2))
    return Links(target, cost.astype(np.float32))


def _built(towns: NDArray[np.uint8], options: RoadOptions, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return the bytes of the roads of one landscape, [MOST_ROADS * BYTES, h, w]."""
    slots = np.flatnonzero(towns)
    place = np.argwhere(towns) + 0.1 + 0.8 * generator.random((len(slots), 2))
    ends = _neighbours(place)
    slowness = generator.random(len(ends))
    far = generator.integers(len(slots), size=(round(options.motorways * len(slots)), 2))
    ends, slowness = np.concatenate([ends, far]), np.concatenate([slowness, np.zeros(len(far))])
    length = np.linalg.norm(place[ends[:, 0]] - place[ends[:, 1]], axis=1)
    both_ways = generator.random(len(ends)) >= options.one_way
    roads = np.empty((MOST_ROADS, BYTES, towns.size), np.uint8)
    roads[:, 0], roads[:, 1] = np.divmod(np.arange(towns.size), 256)
    roads[:, 2:] = 0
    used = np.zeros(len(slots), np.int64)
    for k in generator.permutation(len(ends)):
        for a, b in (ends[k], ends[k][::-1])[: 1 + both_ways[k]]:
            if a != b and used[a] < MOST_ROADS and length[k] < LONGEST:
                high, low = divmod(int(slots[b]), 256)
                counted = max(1, round(255 * length[k] / LONGEST))
                roads[used[a], :, slots[a]] = high, low, counted, round(255 * slowness[k])
                used[a] += 1
    return roads.reshape(-1, *towns.shape)


def _neighbours(place: Floats) -> NDArray[np.int64]:
    """Return the roads of the Gabriel graph of towns [n, 2]: int64 [roads, 2], each once, in either order."""
    squared = ((place[:, None] - place[None]) ** 2).sum(axis=2)
    between = (squared[:, None, :] + squared[None, :, :] < squared[:, :, None] * (1 - 1e-9)).any(axis=2)
    ends = np.argwhere(np.triu(~between, 1))
    return ends
