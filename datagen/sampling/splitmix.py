"""Random numbers that are the same on every machine and under every version of numpy and numba.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a 64-bit counter
that grows by the golden ratio, each value scrambled by a bijection. Problem i of a split has a stream of its own,
keyed by (seed, split, i), so it depends on no other problem, and workers need no coordination.

These functions must never change: every dataset's bytes rest on them (golden values are in the tests).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32, _S11 = (np.uint64(s) for s in (27, 30, 31, 32, 11))
_LABEL_SALT = np.uint64(0xA5A5A5A5A5A5A5A5)


@kernel
def mix(bits: Any) -> Any:
    """Return the scrambled uint64 `bits` (the generator's output function, a bijection)."""
    bits = (bits ^ (bits >> _S30)) * _M1
    bits = (bits ^ (bits >> _S27)) * _M2
    return bits ^ (bits >> _S31)


@kernel
def next_bits(state: NDArray[np.uint64]) -> Any:
    """Advance the stream `state` [1] and return 64 random bits."""
    state[0] += GAMMA
    return mix(state[0])


@kernel
def uniform(state: NDArray[np.uint64]) -> float:
    """Advance the stream and return a float64 in [0, 1) with 53 random bits."""
    return np.float64(next_bits(state) >> _S11) * (1.0 / 9007199254740992.0)


@kernel
def below(state: NDArray[np.uint64], n: int) -> Any:
    """Advance the stream and return an integer in [0, n); bias below n / 2^32."""
    return np.int64(((next_bits(state) >> _S32) * np.uint64(n)) >> _S32)


@kernel
def problem_seed(seed: int, split: int, index: int) -> Any:
    """Return the uint64 that keys the stream of problem `index` of split number `split`."""
    return mix(mix(mix(np.uint64(seed) + GAMMA) + np.uint64(split) + GAMMA) + np.uint64(index) + GAMMA)


@kernel
def _problem_seeds(seed: int, split: int, start: int, stop: int) -> NDArray[np.uint64]:
    seeds = np.empty(stop - start, np.uint64)
    for i in range(stop - start):
        seeds[i] = problem_seed(seed, split, start + i)
    return seeds


def problem_seeds(seed: int, split: int, start: int, stop: int) -> NDArray[np.uint64]:
    """Return the stream keys of problems `start` to `stop` of a split.

    Args:
        seed: The dataset's seed, 0 .. 2^32 - 1.
        split: The split's place in `SPLITS`.
        start: First problem.
        stop: One past the last problem.

    Returns:
        uint64 [stop - start].
    """
    seeds: NDArray[np.uint64] = _problem_seeds(seed, split, start, stop)
    return seeds


def label_seeds(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the keys from which ties among labels are drawn, apart from the streams that `seeds` key themselves."""
    return seeds ^ _LABEL_SALT
