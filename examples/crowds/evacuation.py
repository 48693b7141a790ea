"""A crowd that leaves a building: a grid, members who plan by breadth-first distances, one to a cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from crowds import CONDUCTS
from datagen.expert.grid import goal_distances
from datagen.problem import FOUR

OFFICE = """
#########################
#.....#.....#.....#.....#
#.....#.....#.....#.....#
#.....#.....#.....#.....#
###.#####.#####.#####.###
#.......................#
1.......................2
#.......................#
###.#####.#####.#####.###
#.....#.....#.....#.....#
#.....#.....#.....#.....#
#.....#.....#.....#.....#
###############3#########
"""
HALL = """
#############1###########
#.......................#
#..##...##...##...##....#
#..##...##...##...##....#
#.......................#
#..##...##...##...##....2
#..##...##...##...##....#
#.......................#
######.###########.######
#..........#............#
#..........#............#
#..........#............#
####3####################
"""
BUILDINGS = (OFFICE, HALL)
DOORS = 3
"""Of each building: 1 the entrance, 2 the one that signs point to, 3 the staff's."""

THAW = 0.15
"""Probability in each step that who is frozen is so no more."""

SEES, HEARS = 5, 3
"""Steps from which a door that was not known is found, and cells to each side whose members are followed."""

_OFFSETS = np.array(FOUR.offsets)


@dataclass(frozen=True, eq=False)
class Traits:
    """What members are like, each [crowds, members].

    Attributes:
        speed: Probability that one who wants to move does.
        fear: Probability of freezing in a step.
        following: Probability of going where those around go.
        doors: Those it knows, a bit each.
    """

    speed: NDArray[np.float64]
    fear: NDArray[np.float64]
    following: NDArray[np.float64]
    doors: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What members did: the columns of a sample, each with [crowds, members] before its own shape."""

    door: NDArray[np.int64]
    time: NDArray[np.int64]
    conduct: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Building:
    """A building.

    Attributes:
        free: Where one can be, doors included [h, w].
        door: Number of the door in a cell, 0 for none [h, w].
        distance: Steps to the nearest of each set of doors [2^DOORS, h, w].
        seen: Doors that are found from a cell, a bit each [h, w].
    """

    free: NDArray[np.bool_]
    door: NDArray[np.int64]
    distance: NDArray[np.float64]
    seen: NDArray[np.int64]


@cache
def building(number: int) -> Building:
    """Return one of BUILDINGS, planned."""
    cells = np.array([list(line) for line in BUILDINGS[number].split()])
    free = cells != "#"
    door = np.where(np.isin(cells, ["1", "2", "3"]), cells, "0").astype(np.int64)
    goals = np.array([np.argwhere(door == each)[0] for each in range(1, DOORS + 1)], np.int16)
    each = goal_distances(np.repeat(free[None].astype(np.uint8), DOORS, 0), goals, FOUR).astype(np.float64)
    sets = [[d for d in range(DOORS) if bits >> d & 1] for bits in range(1, 1 << DOORS)]
    distance = np.stack([np.full(free.shape, np.inf), *(each[doors].min(0) for doors in sets)])
    seen = ((each <= SEES) << np.arange(DOORS)[:, None, None]).sum(0)
    return Building(free, door, distance, seen)


def starts(number: int, members: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return cells of members [members, 2], one each, no doors."""
    place = building(number)
    cells = np.argwhere(place.free & (place.door == 0))
    return cells[generator.choice(len(cells), members, replace=False)]


def evacuate(number: int, start: NDArray[Any], traits: Traits, steps: int, generator: np.random.Generator) -> Behaviour:
    """Return what crowds do, each on its own.

    In a step a member that is frozen stays so or thaws; another may freeze; else, if it is quick enough, it goes where
    most around went before, or by its own plan: a step nearer to the nearest of the doors that it knows or sees. Where
    two want a cell chance decides; who wants a cell that is taken waits, but two that want each other's change places.

    Args:
        number: Of the building.
        start: Cells [crowds, members, 2].
        traits: What members are like.
        steps: How long.
        generator: Of chance.
    """
    place, crowds, members = building(number), *start.shape[:2]
    at, doors, crowd = start.astype(np.int64).copy(), traits.doors.copy(), np.arange(crowds)[:, None]
    inside, frozen = np.ones((crowds, members), bool), np.zeros((crowds, members), bool)
    went = np.full((crowds, members), -1)
    door, time = np.zeros((crowds, members), np.int64), np.full((crowds, members), steps)
    conduct = np.zeros((crowds, members, len(CONDUCTS)), np.int64)
    for now in range(1, steps + 1):
        chance = generator.random((4, crowds, members))
        frozen = np.where(frozen, chance[0] >= THAW, chance[0] < traits.fear)
        doors |= place.seen[at[..., 0], at[..., 1]]
        planned = _planned(place, at, doors, generator)
        followed = _followed(place, at, inside, went, crowd)
        follows = (chance[1] < traits.following) & (followed >= 0)
        action = np.where(follows, followed, planned)
        wants = inside & ~frozen & (chance[2] < traits.speed)
        moves = _granted(place, at, at + _OFFSETS[action], wants, inside, chance[3], crowd)
        kind = np.where(frozen, 2, np.where(moves, follows.astype(int), 3))
        conduct[(*np.nonzero(inside), kind[inside])] += 1
        at = np.where(moves[..., None], at + _OFFSETS[action], at)
        went = np.where(moves, action, -1)
        reached = place.door[at[..., 0], at[..., 1]] * inside
        door, time = np.where(reached > 0, reached, door), np.where(reached > 0, now, time)
        inside &= reached == 0
        if not inside.any():
            break
    return Behaviour(door, time, conduct)


def _around(place: Building, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cells that the four moves lead to [crowds, members, 4, 2], and which of them are free."""
    cells = at[..., None, :] + _OFFSETS
    held = np.clip(cells, 0, np.array(place.free.shape) - 1)
    return held, (held == cells).all(-1) & place.free[held[..., 0], held[..., 1]]


def _planned(
    place: Building, at: NDArray[np.int64], doors: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    cells, free = _around(place, at)
    distance = np.where(free, place.distance[doors[..., None], cells[..., 0], cells[..., 1]], np.inf)
    chosen: NDArray[np.int64] = (distance + 0.5 * generator.random(distance.shape)).argmin(-1)
    return chosen


def _followed(
    place: Building,
    at: NDArray[np.int64],
    inside: NDArray[np.bool_],
    went: NDArray[np.int64],
    crowd: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the free move that most members around have made in the step before, -1 where none has."""
    moved, width = inside & (went >= 0), 2 * HEARS + 1
    made = np.zeros((len(at), len(_OFFSETS), *place.free.shape))
    np.add.at(made, ((crowd + 0 * went)[moved], went[moved], at[moved][:, 0], at[moved][:, 1]), 1.0)
    heard = uniform_filter(made, (1, 1, width, width), mode="constant") * width**2
    votes = heard[crowd, :, at[..., 0], at[..., 1]] - (moved[..., None] & (went[..., None] == np.arange(len(_OFFSETS))))
    votes = np.where(_around(place, at)[1], votes, 0.0)
    return np.where(votes.max(-1) > 0.5, votes.argmax(-1), -1)


def _granted(
    place: Building,
    at: NDArray[np.int64],
    to: NDArray[np.int64],
    wants: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    chance: NDArray[np.float64],
    crowd: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return who moves: into an empty cell the first by chance; and two that want each other's."""
    height, width = place.free.shape
    here, there = ((crowd * height + cells[..., 0]) * width + cells[..., 1] for cells in (at, to))
    holder = np.full(len(at) * height * width, -1)
    holder[here[inside]] = np.flatnonzero(inside)
    taken = holder[there] * wants - (~wants)
    flat_wants, flat_here, flat_there = wants.ravel(), here.ravel(), there.ravel()
    other = taken.ravel()
    swaps = flat_wants & (other >= 0) & flat_wants[other] & (flat_there[other] == flat_here)
    free = np.flatnonzero(flat_wants & (other < 0))
    order = free[np.argsort(chance.ravel()[free])]
    _, first = np.unique(flat_there[order], return_index=True)
    granted = swaps.copy()
    granted[order[first]] = True
    return granted.reshape(wants.shape)
