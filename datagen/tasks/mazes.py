"""Mazes of several kinds: thinned ones as in `navigation`, perfect ones, perfect ones with openings, and plain noise.

What is thinned with a probability that is uniform in (0, 1) is nearly open nine times in ten: a planner sees few long
ways there. A perfect maze has one way between any two cells; openings make rings of it; noise has what no maze has,
such as walls that touch at a corner, and cells that cannot be reached.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import solve
from datagen.options import MAZE_KINDS, MazeOptions
from datagen.problem import FOUR, Problems
from datagen.sampling.mazes import draw_mazes
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.sampling.unique_maps import Claims, draw_in_order
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.registry import SPLITS, DatasetSpec, Split


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the problems `start` to `stop` of a split, the kinds of maze in turn; the goal is uniform over free cells.

    Args:
        spec: Uses `map_size`, `seed`, `distinct` and `MazeOptions`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems, no observation.

    Raises:
        ValueError: The split owns no map of this size and kind.
    """
    assert isinstance(spec.options, MazeOptions)
    options, size, number, directions = (
        spec.options,
        spec.map_size,
        SPLITS.index(split),
        ways_of_reading(spec).directions,
    )
    kinds = np.array([MAZE_KINDS.index(kind) for kind in options.kinds], np.int64)

    def turn(first: int, end: int, claims: Claims) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        seeds = problem_seeds(spec.seed, number, first, end)
        given = (size, number, kinds, options.opened, seeds, first, directions)
        maps, goals, failed = draw_mazes(*given, claims.keys, claims.holders)
        if failed >= 0:
            kind = options.kinds[failed % len(kinds)]
            raise ValueError(
                f"map_size: no {kind} maze of size {size} belongs to split {split!r}; choose a larger size"
            )
        return maps, goals

    key = ("mazes", size, spec.seed, spec.distinct, options.kinds, options.opened, split)
    maps, goals = draw_in_order(key, turn, start, stop)
    return solve(maps, goals, FOUR, label_seeds(problem_seeds(spec.seed, number, start, stop)))
