"""By what a dataset tells its maps apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datagen.sampling.symmetry import CELL_FOR_CELL, Readings, readings, shape_hashes
from datagen.shapes import shaped
from datagen.tasks.registry import TASKS, DatasetSpec

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8, UInt64

_FACTOR = np.uint32(0x9E3779B1)
"""Odd: it spreads the bits of a float32 so that the highest eight tell costs apart."""


def ways_of_reading(spec: DatasetSpec) -> Readings:
    """Return the ways of reading a dataset's maps that are one and the same to its rule of what is distinct."""
    task = TASKS[spec.task]
    return CELL_FOR_CELL if spec.distinct == "maps" else readings(task.moves, task.map_shape(spec))


@shaped
def distinct_hashes(
    maps: UInt8[NDArray[np.uint8], "n h w"],
    spec: DatasetSpec,
    costs: Float32[NDArray[np.float32], "n h w"] | None = None,
) -> UInt64[NDArray[np.uint64], " n"]:
    """Return the hash of every map by which the dataset tells it apart.

    Args:
        maps: uint8 [n, h, w] of 0 and 1.
        spec: The dataset.
        costs: float32 [n, h, w], where cells have costs, which tell maps apart too. A byte stands for each: of maps
            with many costs a few that differ may count for one.

    Returns:
        uint64 [n].
    """
    ways = ways_of_reading(spec)
    if costs is None:
        return shape_hashes(maps, ways)
    codes = (np.ascontiguousarray(costs).view(np.uint32) * _FACTOR >> np.uint32(24)).astype(np.uint8) * maps
    if ways is CELL_FOR_CELL:  # which packs a bit of each cell
        codes = np.unpackbits(codes, axis=2)
    return shape_hashes(codes, ways)
