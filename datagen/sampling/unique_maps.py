"""No map twice: which split a map belongs to, and which problem of the split has it.

Which split is decided by the map's content, so workers need not know of each other: the 64-bit hash of the cells (goal
ignored) falls into one of eight buckets, six of them train's, one valid's, one test's, however many problems there are.
Within a split the first problem that draws a map keeps it, and later ones draw again. So a problem follows from its
split's earlier ones, which are all functions of (seed, split), and a longer split begins with the shorter one. A
process that starts in the middle draws the maps before it once, without their labels.
"""

# DEVIATION(5.1): the authors draw all maps in one process and reject those seen before, in any split. The maps of the
# whole set are distributed alike; here an often-drawn map is always in the split that owns it.

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datagen.jit import kernel
from datagen.sampling.splitmix import GAMMA, mix

MAX_FOREIGN = 100_000
"""Draws that may belong to other splits before giving up: with 1/8 of the maps, more are needed once in 10^5799."""
MAX_REPEATED = 100
"""Draws that may have come before in the split; then a repetition is taken, for the tiniest sizes have few maps."""

_SALT = np.uint64(337)  # With it even the six maps of size 5 are shared out: 4, 1, 1.
_ONE, _S61 = np.uint64(1), np.uint64(61)
_STEP = 1000
_MEMORY = 16

T = TypeVar("T")


@kernel
def map_hash(map_: NDArray[np.uint8]) -> Any:
    """Return the uint64 hash of one map [h, w]: size and cells, 64 cells to a word; never 0."""
    height, width = map_.shape
    cells = map_.ravel()
    state = mix(np.uint64(height) * GAMMA + np.uint64(width) + _SALT)
    for first in range(0, cells.size, 64):
        word = np.uint64(0)
        for k in range(first, min(first + 64, cells.size)):
            word = (word << _ONE) | np.uint64(cells[k])
        state = mix(state ^ word) + GAMMA
    return max(mix(state), _ONE)


@kernel
def owner(hash_: Any) -> Any:
    """Return the place in `SPLITS` of the split that owns maps of this hash."""
    return max(0, np.int64(np.uint64(hash_) >> _S61) - 5)


@kernel
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


@kernel
def claim(hash_: Any, index: int, keys: NDArray[np.uint64], holders: NDArray[np.int64]) -> bool:
    """Give the map to problem `index` unless an earlier problem holds it; return whether the problem has it.

    Args:
        hash_: uint64 from `map_hash`.
        index: The problem's number in its split.
        keys: uint64 [2^k], an open hash table of the maps that are held, 0 = empty.
        holders: int64 [2^k], the problem that holds each.
    """
    mask = np.uint64(len(keys) - 1)
    slot = hash_ & mask
    while keys[slot] != 0:
        if keys[slot] == hash_:
            return holders[slot] >= index
        slot = (slot + _ONE) & mask
    keys[slot] = hash_
    holders[slot] = index
    return True


@kernel
def _claim_all(
    hashes: NDArray[np.uint64],
    indices: NDArray[np.int64],
    keys: NDArray[np.uint64],
    holders: NDArray[np.int64],
) -> None:
    for i in range(len(hashes)):
        if hashes[i] != 0:
            claim(hashes[i], indices[i], keys, holders)


UNUSABLE = np.uint64(0)
"""In place of a hash: what was drawn is of no use."""
KEPT, AGAIN, NONE = 0, 1, 2


@kernel
def admit(
    hash_: Any, split: int, index: int, draws: NDArray[np.int64], keys: NDArray[np.uint64], holders: NDArray[np.int64]
) -> int:
    """Return what becomes of a map drawn for a problem: it is KEPT, drawn AGAIN, or NONE will ever do.

    Args:
        hash_: uint64 from `map_hash` or `symmetry.shape_hash`, or `UNUSABLE`.
        split: The split's place in `SPLITS`.
        index: The problem's number in its split.
        draws: int64 [2], of this problem the maps that were of no use or another split's, and those that had come
            before; 0 before the first.
        keys: See `claim`.
        holders: See `claim`.
    """
    if hash_ == UNUSABLE or owner(hash_) != split:
        draws[0] += 1
        return NONE if draws[0] > MAX_FOREIGN else AGAIN
    if claim(hash_, index, keys, holders) or draws[1] == MAX_REPEATED:
        return KEPT
    draws[1] += 1
    return AGAIN


@dataclass
class Claims:
    """The maps that the first `count` problems of a split hold.

    Attributes:
        keys: See `claim`.
        holders: See `claim`.
        count: Problems drawn so far.
    """

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(4096, np.uint64))
    holders: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4096, np.int64))
    count: int = 0

    def reserve(self, problems: int) -> None:
        """Make room for `problems`, the table at most half full."""
        if 2 * problems > len(self.keys):
            keys, holders = self.keys, self.holders
            size = 1 << (2 * problems - 1).bit_length()
            self.keys, self.holders = np.zeros(size, np.uint64), np.zeros(size, np.int64)
            _claim_all(keys, holders, self.keys, self.holders)


_claims: OrderedDict[Hashable, Claims] = OrderedDict()
_lock = Lock()


def draw_in_order(key: Hashable, draw: Callable[[int, int, Claims], T], start: int, stop: int) -> T:
    """Return `draw(start, stop, claims)` after all problems before `start` have had their turn.

    Claims are remembered in this process, so that writing shards one after the other draws each map once.

    Args:
        key: Names the split of a dataset: all that its maps depend on.
        draw: Draws the maps of problems `start` to `stop`, claiming each.
        start: First problem.
        stop: One past the last problem.
    """
    with _lock:
        claims = _claims.setdefault(key, Claims())
        _claims.move_to_end(key)
        while len(_claims) > _MEMORY:
            _claims.popitem(last=False)
        claims.reserve(stop)
        while claims.count < start:
            until = min(start, claims.count + _STEP)
            draw(claims.count, until, claims)
            claims.count = until
        result = draw(start, stop, claims)
        claims.count = max(claims.count, stop)
        return result
