"""2D navigation: mazes thinned out at random, as in GPPN (Lee et al., 2018) and the paper's section 5.1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import solve
from datagen.problem import FOUR, Problems
from datagen.sampling.mazes import PAPERS, draw_mazes
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.sampling.unique_maps import Claims, draw_in_order
from datagen.tasks.distinct import ways_of_reading
from datagen.tasks.registry import SPLITS, DatasetSpec, Split


def mazes(spec: DatasetSpec, split: Split, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Draw the mazes and goals of problems `start` to `stop` of a split.

    All cells are obstacles; randomised depth-first search carves a perfect maze on the odd cells, reached from (1, 1);
    every interior cell is then freed with probability d ~ U(0, 1), d drawn once per map; the goal is uniform over the
    interior without (1, 1), and freed. On an odd size the border is solid. On an even size, as in GPPN's 28 x 28 set,
    the odd cells include the last row and column, and the edge of the map is the wall there. No map comes twice in the
    whole set (see `datagen.sampling.unique_maps`), except where the split owns too few maps of the size.

    Args:
        spec: Uses `map_size`, `seed` and `distinct`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        Maps, uint8 [stop - start, size, size], and goals, int16 [stop - start, 2].

    Raises:
        ValueError: The split owns no map of this size.
    """
    size, number, directions = spec.map_size, SPLITS.index(split), ways_of_reading(spec).directions

    def turn(first: int, end: int, claims: Claims) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        seeds = problem_seeds(spec.seed, number, first, end)
        kinds = np.array([PAPERS])
        maps, goals, failed = draw_mazes(
            size, number, kinds, 0.0, seeds, first, directions, claims.keys, claims.holders
        )
        if failed >= 0:
            raise ValueError(f"map_size: no maze of size {size} belongs to split {split!r}; choose a larger size")
        return maps, goals

    return draw_in_order(("navigation", size, spec.seed, spec.distinct, split), turn, start, stop)


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the navigation problems `start` to `stop` of a split, labels included.

    Args:
        spec: Uses `map_size`, `seed` and `distinct`.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems, no observation.
    """
    maps, goals = mazes(spec, split, start, stop)
    seeds = problem_seeds(spec.seed, SPLITS.index(split), start, stop)
    return solve(maps, goals, FOUR, label_seeds(seeds))
