"""Which split a map belongs to: decided by the map's content, so no map is in two splits.

The 64-bit hash of the cells (goal ignored) falls into one of eight buckets: six are train's, one valid's, one test's,
whatever the numbers of problems. A generator draws on until a map falls to its split. Hence workers need not know of
each other, and a longer split begins with the shorter one.
"""

# DEVIATION(5.1): the authors draw all maps in one process and reject those seen before, in any split. Here a map may
# come twice within one split (in practice in the smallest sizes only), and never in two.

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from datagen.splitmix import GAMMA, mix

MAX_ATTEMPTS = 100_000
"""Maps drawn for one problem before giving up; the chance to need more is (7/8)^100000 where maps are plenty."""

_SALT = np.uint64(0)
_ONE, _S61 = np.uint64(1), np.uint64(61)


@njit(cache=True, nogil=True)
def map_hash(map_: NDArray[np.uint8]) -> Any:
    """Return the uint64 hash of one map [h, w]: size and cells, 64 cells to a word."""
    height, width = map_.shape
    cells = map_.ravel()
    state = mix(np.uint64(height) * GAMMA + np.uint64(width) + _SALT)
    for first in range(0, cells.size, 64):
        word = np.uint64(0)
        for k in range(first, min(first + 64, cells.size)):
            word = (word << _ONE) | np.uint64(cells[k])
        state = mix(state ^ word) + GAMMA
    return mix(state)


@njit(cache=True, nogil=True)
def owner(hash_: Any) -> Any:
    """Return the place in `SPLITS` of the split that owns maps of this hash."""
    return max(0, np.int64(np.uint64(hash_) >> _S61) - 5)


@njit(cache=True, nogil=True)
def _map_hashes(map_: NDArray[np.uint8]) -> NDArray[np.uint64]:
    hashes = np.empty(len(map_), np.uint64)
    for i in range(len(map_)):
        hashes[i] = map_hash(map_[i])
    return hashes


def map_hashes(map_: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hash of every map.

    Args:
        map_: uint8 [n, h, w] of 0 and 1.

    Returns:
        uint64 [n].
    """
    hashes: NDArray[np.uint64] = _map_hashes(np.ascontiguousarray(map_))
    return hashes
