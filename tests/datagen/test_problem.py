"""Moves and problems refuse what would be wrong numbers later."""

import numpy as np
import pytest

from datagen.problem import Moves
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"costs": (1.0, 1.0, 1.0)}, "expected as many offsets and costs as names, 1 to 8, got 4 names, 4 offsets, 3"),
        ({"offsets": ((0, 1),)}, "got 4 names, 1 offsets, 4 costs"),
        ({"names": (), "offsets": (), "costs": ()}, "got 0 names"),
        ({"names": ("m",) * 9, "offsets": ((0, 1),) * 9, "costs": (1.0,) * 9}, "got 9 names"),
        ({"names": ("north", "west", "north", "east")}, "names: each must be there once"),
        ({"offsets": ((-1, 0), (0, 0), (1, 0), (0, 1))}, r"the offset of 'west': .* lead elsewhere, .*got \(0, 0\)"),
        ({"offsets": ((-1, 0), (0, -1.5), (1, 0), (0, 1))}, r"'west': expected whole rows .*, got \(0, -1.5\)"),
        ({"offsets": ((-1, 0), (0, True), (1, 0), (0, 1))}, "'west': expected whole rows"),
        ({"offsets": ((-1, 0), (0, -1), (1,), (0, 1))}, "'south': expected whole rows"),
        ({"offsets": ((-1, 0), (0, -1), 5, (0, 1))}, "'south': expected whole rows"),
        ({"costs": (1.0, 0.0, 1.0, 1.0)}, "the cost of 'west' must be positive, got 0.0"),
        ({"costs": (1.0, 1.0, -2.0, 1.0)}, "the cost of 'south' must be positive, got -2.0"),
        ({"costs": (1.0, 1.0, 1.0, float("nan"))}, "the cost of 'east' must be positive, got nan"),
        ({"costs": (float("inf"), 1.0, 1.0, 1.0)}, "the cost of 'north' must be positive, got inf"),
    ],
)
def test_moves_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Moves(**fields)


def test_problems_are_taken_by_slices_alone_and_compared_as_wholes():
    problems = draw(DatasetSpec(map_size=7, train=4, valid=0, test=0), "train", 0, 4)
    assert len(problems[1:3]) == 2 and problems[1:3].map.shape == (2, 7, 7)
    for rows in (0, np.array([0, 1]), "0"):
        with pytest.raises(TypeError, match=r"expected a slice such as \[0:1\]"):
            problems[rows]
    assert problems == problems and problems != problems[:]
