"""By what a dataset tells its maps apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datagen.sampling.symmetry import CELL_FOR_CELL, Readings, readings, shape_hashes
from datagen.shapes import shaped
from datagen.tasks.registry import TASKS, DatasetSpec

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt64


def ways_of_reading(spec: DatasetSpec) -> Readings:
    """Return the ways of reading a dataset's maps that are one and the same to its rule of what is distinct."""
    task = TASKS[spec.task]
    return CELL_FOR_CELL if spec.distinct == "maps" else readings(task.moves, task.map_shape(spec))


@shaped
def distinct_hashes(maps: UInt8[NDArray[np.uint8], "n h w"], spec: DatasetSpec) -> UInt64[NDArray[np.uint64], " n"]:
    """Return the hash of every map by which the dataset tells it apart.

    Args:
        maps: uint8 [n, h, w] of 0 and 1.
        spec: The dataset.

    Returns:
        uint64 [n].
    """
    return shape_hashes(maps, ways_of_reading(spec))
