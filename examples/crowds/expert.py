"""The expert's benchmark: crowds of three kinds of people, whom no persona names, and a distance from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crowds import EvacuationOptions
from crowds.evacuation import DOORS, Traits, evacuate, starts

KINDS = ("visitors", "staff", "frail")
SHARES = (0.55, 0.25, 0.2)
"""Of the kinds of people."""

SPEED = ((0.5, 0.85), (0.75, 0.95), (0.2, 0.45))
FEAR = ((0.02, 0.15), (0.0, 0.02), (0.0, 0.06))
FOLLOWING = ((0.3, 0.7), (0.0, 0.15), (0.1, 0.5))
"""From and to of each kind: what no word of a persona says exactly, and is not independent of each other."""

DOOR_SETS = (0b001, 0b011, 0b111)
KNOWS = ((0.75, 0.2, 0.05), (0.0, 0.1, 0.9), (0.4, 0.5, 0.1))
"""Shares of each kind that know the entrance, the signs too, the building."""

BINS = 6
"""Of the time at which members leave."""


def people(shape: tuple[int, int], generator: np.random.Generator) -> Traits:
    """Return what members of the expert's crowds are like [crowds, members]."""
    kind = generator.choice(len(KINDS), shape, p=SHARES)

    def drawn(ranges: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
        low, high = np.array(ranges)[kind].transpose(2, 0, 1)
        return generator.uniform(low, high)

    doors = (generator.random(shape)[..., None] > np.cumsum(np.array(KNOWS), 1)[kind][..., :-1]).sum(-1)
    return Traits(drawn(SPEED), drawn(FEAR), drawn(FOLLOWING), np.array(DOOR_SETS)[doors])


def evacuation(options: EvacuationOptions, generator: np.random.Generator) -> dict[str, Any]:
    """Return a crowd of the expert's and what its members do."""
    number = int(generator.random() < options.elsewhere)
    start = starts(number, options.members, generator)
    did = evacuate(number, start[None], people((1, options.members), generator), options.steps, generator)
    return {
        "building": number,
        "start": start,
        "door": did.door[0],
        "time": did.time[0],
        "conduct": did.conduct[0],
    }


def shares(samples: Mapping[str, Any], steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how crowds behave, as two distributions.

    Args:
        samples: `door`, `time` and `conduct` of crowds.
        steps: That they were watched for.

    Returns:
        Of members over doors and bins of time, the last for those who are still inside; of steps over conducts.
    """
    door, late = np.asarray(samples["door"], np.int64), (np.asarray(samples["time"], np.int64) - 1) * BINS // steps
    leaving = np.where(door > 0, (door - 1) * BINS + late, DOORS * BINS)
    conduct = np.asarray(samples["conduct"], np.float64).reshape(-1, samples["conduct"].shape[-1]).sum(0)
    counted = np.bincount(leaving.ravel(), minlength=DOORS * BINS + 1).astype(np.float64)
    return counted / counted.sum(), conduct / conduct.sum()


def divergence(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the divergence of Jensen and Shannon of two distributions, in bits: 0 for the same, 1 for disjoint."""
    between = 0.5 * (first + second)

    def from_between(shares: NDArray[np.float64]) -> float:
        some = shares > 0
        return float((shares[some] * np.log2(shares[some] / between[some])).sum())

    return 0.5 * (from_between(first) + from_between(second))
