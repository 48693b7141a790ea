"""Terrain: pictures of tiles, whose costs the expert alone knows, and cheapest ways over them by eight moves.

Of the kind of the Warcraft maps (Vlastelica et al., 2020) and the Pokémon maps (Archetti et al., 2021), whose own files
`datagen.storage.terrain` brings in.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datagen.expert.cells import solve_cells
from datagen.options import TerrainOptions
from datagen.problem import EIGHT, Problems
from datagen.rendering.tiles import COSTS, picture
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.sampling.unique_maps import KEPT, NONE, Claims, admit, draw_in_order
from datagen.spec import canonical_json
from datagen.tasks.distinct import distinct_hashes
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

Terrain = tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.int16]]
"""Kinds of ground [h, w], start and goal [2]."""

_BLURS = 3
"""How often noise is averaged over neighbours before the largest of its layers is the kind: how large patches are."""


def kinds_of_ground(generator: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Return patches of ground, uint8 [size, size], each kind as frequent as the others."""
    layers = generator.random((len(COSTS), size, size))
    for _ in range(_BLURS):
        around = [np.roll(layers, shift, axis) for axis in (1, 2) for shift in (1, -1)]
        layers = (layers + sum(around)) / 5
    return layers.argmax(0).astype(np.uint8)


def ends(generator: np.random.Generator, size: int, where: str) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return start and goal, int16 [2] each: two corners, or places half the side apart or more."""
    if where == "corners":
        return np.zeros(2, np.int16), np.full(2, size - 1, np.int16)
    while True:
        start, goal = generator.integers(size, size=(2, 2)).astype(np.int16)
        if 2 * np.abs(start - goal).max() >= size:
            return start, goal


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split.

    What `np.random.Generator` draws may change with NumPy's version, which the set's manifest names.

    Args:
        spec: Uses `map_size`, `seed`, `distinct` and `TerrainOptions`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems with starts, costs and pictures, uint8 [n, 3, pixel rows, pixel columns].

    Raises:
        ValueError: The split owns too few terrains of this size.
    """
    assert isinstance(spec.options, TerrainOptions)
    options, size, number = spec.options, spec.map_size, SPLITS.index(split)

    def turn(first: int, end: int, claims: Claims) -> list[Terrain]:
        return [_accepted(spec, number, index, claims) for index in range(first, end)]

    key = ("terrain", canonical_json(spec.model_copy(update=dict.fromkeys(SPLITS, 0))), split)
    found = draw_in_order(key, turn, start, stop)
    kinds = np.array([terrain for terrain, _, _ in found], np.uint8).reshape(len(found), size, size)
    starts, goals = (np.array([one[i] for one in found], np.int16).reshape(len(found), 2) for i in (1, 2))
    image = np.empty((len(found), 3, size * options.pixels, size * options.pixels), np.uint8)
    for i, terrain in enumerate(kinds):
        own = np.random.default_rng([spec.seed, number, start + i, 1])
        image[i] = picture(terrain, options.pixels, options.noise, own)
    seeds = label_seeds(problem_seeds(spec.seed, number, start, stop))
    solved = solve_cells(np.ones_like(kinds), goals, _costs(kinds), EIGHT, seeds)
    return replace(solved, start=starts, observation=image)


def _costs(kinds: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.array(COSTS, np.float32)[kinds]


def _accepted(spec: DatasetSpec, split: int, index: int, claims: Claims) -> Terrain:
    assert isinstance(spec.options, TerrainOptions)
    generator = np.random.default_rng([spec.seed, split, index])
    free, draws = np.ones((1, spec.map_size, spec.map_size), np.uint8), np.zeros(2, np.int64)
    while True:
        kinds = kinds_of_ground(generator, spec.map_size)
        start, goal = ends(generator, spec.map_size, spec.options.ends)
        hash_ = distinct_hashes(free, spec, _costs(kinds)[None])[0]
        verdict = admit(hash_, split, index, draws, claims.keys, claims.holders)
        if verdict == KEPT:
            return kinds, start, goal
        if verdict == NONE:
            raise ValueError(f"map_size: too few terrains of size {spec.map_size} belong to split {SPLITS[split]!r}")
