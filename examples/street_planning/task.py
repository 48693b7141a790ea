"""Crops of a town's map, turned and mirrored, with a goal somewhere on its streets."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from datagen.problem import Problems
from datagen.tasks.proposed import Proposal, draw_proposed
from datagen.tasks.registry import DatasetSpec, Split
from street_planning.options import MAPS, MOORE, StreetOptions, crop_shape

LEAST_FREE = 0.25
"""Share of a crop that must be street; the rest of the town is no problem to plan in."""


@cache
def read_map(file: str, sha256: str) -> NDArray[np.uint8]:
    """Return a map file of the planning benchmarks, [h, w], 1 where an agent can walk.

    Four lines of header (type, height, width, map), then a line of text per row, as in Sturtevant's collection of
    game and street maps: '.' and 'G' are ground, all else is in the way.
    """
    content = (MAPS / file).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{file}: its content is not the one that the dataset names (sha256 {sha256[:12]}...)")
    rows = content.decode().splitlines()[4:]
    return np.isin(np.array([list(row) for row in rows if row]), [".", "G"]).astype(np.uint8)


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split; see `datagen.tasks.registry.Draw`."""
    assert isinstance(spec.options, StreetOptions)
    town = read_map(spec.options.file, spec.options.sha256)
    height, width = crop_shape(spec)

    def propose(generator: np.random.Generator) -> Proposal | None:
        row, column = generator.integers(town.shape[0] - height + 1), generator.integers(town.shape[1] - width + 1)
        crop = town[row : row + height, column : column + width]
        flips = generator.integers(2, size=2)
        crop = crop[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]
        if crop.mean() < LEAST_FREE:
            return None
        goal_row, goal_column = generator.choice(np.argwhere(crop))
        return crop, (int(goal_row), int(goal_column))

    return draw_proposed(spec, split, start, stop, MOORE, propose)
