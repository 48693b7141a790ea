"""From a function that proposes one map and goal to a task: labels, disjoint splits and no map twice, for any moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import solve
from datagen.problem import Moves, Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.sampling.unique_maps import KEPT, Claims, admit, draw_in_order
from datagen.shapes import shaped
from datagen.spec import canonical_json
from datagen.tasks.distinct import distinct_hashes
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split

if TYPE_CHECKING:
    from jaxtyping import Int16, UInt8

Proposal = tuple[NDArray[np.uint8], tuple[int, int]]
"""A map [h, w], 1 = free, and the row and column of the goal, a free cell."""

MOST_PROPOSALS = 10_000
"""Proposals for one problem before giving up."""


def draw_proposed(
    spec: DatasetSpec,
    split: Split,
    start: int,
    stop: int,
    moves: Moves,
    propose: Callable[[np.random.Generator], Proposal | None],
) -> Problems:
    """Make the problems `start` to `stop` of a split from proposals.

    A proposal whose map belongs to another split, or came before in this one, is drawn again. What
    `np.random.Generator` draws may change with NumPy's version, which the set's manifest names.

    Args:
        spec: The dataset; all that `propose` depends on must be in it.
        split: Which split.
        start: First problem.
        stop: One past the last problem.
        moves: What the agent can do; the labels follow from them.
        propose: Draws one map and goal from a generator, or None where what it drew is of no use.

    Returns:
        The problems, all labels included.

    Raises:
        ValueError: A proposal is no map with a free goal of the task's shape, or there are too few maps.
    """
    maps, goals = draw_maps(spec, split, start, stop, propose)
    return solve(maps, goals, moves, label_seeds(problem_seeds(spec.seed, SPLITS.index(split), start, stop)))


@shaped
def draw_maps(
    spec: DatasetSpec,
    split: Split,
    start: int,
    stop: int,
    propose: Callable[[np.random.Generator], Proposal | None],
) -> tuple[UInt8[NDArray[np.uint8], "n h w"], Int16[NDArray[np.int16], "n 2"]]:
    """Return the maps and goals of `draw_proposed` alone, for a task that labels them in a way of its own.

    Returns:
        uint8 [n, h, w] and int16 [n, 2].
    """

    def turn(first: int, end: int, claims: Claims) -> list[Proposal]:
        return [_accepted(spec, split, index, propose, claims) for index in range(first, end)]

    found = draw_in_order(("proposed", canonical_json(spec), split), turn, start, stop)
    shape = TASKS[spec.task].map_shape(spec)
    for map_, _ in found:
        if map_.shape != shape:
            raise ValueError(f"task {spec.task!r}: expected maps of shape {shape}, got {map_.shape}")
    maps = np.array([map_ for map_, _ in found], np.uint8).reshape(len(found), *shape)
    goals = np.array([goal for _, goal in found], np.int16).reshape(len(found), 2)
    return maps, goals


def _accepted(
    spec: DatasetSpec,
    split: Split,
    index: int,
    propose: Callable[[np.random.Generator], Proposal | None],
    claims: Claims,
) -> Proposal:
    number = SPLITS.index(split)
    generator = np.random.default_rng([spec.seed, number, index])
    draws = np.zeros(2, np.int64)
    for _ in range(MOST_PROPOSALS):
        proposal = propose(generator)
        if proposal is None:
            continue
        map_, goal = np.ascontiguousarray(proposal[0], np.uint8), (int(proposal[1][0]), int(proposal[1][1]))
        _check(map_, goal)
        if admit(distinct_hashes(map_[None], spec)[0], number, index, draws, claims.keys, claims.holders) == KEPT:
            return map_, goal
    raise ValueError(
        f"task {spec.task!r}: none of {MOST_PROPOSALS:,} proposals is a new map of split {split!r}; "
        "its maps are too few for this many problems"
    )


def _check(map_: NDArray[np.uint8], goal: tuple[int, int]) -> None:
    if map_.ndim != 2 or map_.max(initial=0) > 1:
        raise ValueError(f"a proposed map must be [h, w] of 0 (obstacle) and 1 (free), got {list(map_.shape)}")
    inside = 0 <= goal[0] < map_.shape[0] and 0 <= goal[1] < map_.shape[1]
    if not inside or not map_[goal]:
        raise ValueError(f"a proposed goal must be a free cell of its map, got {goal}")
