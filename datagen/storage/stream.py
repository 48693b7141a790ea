"""A split read from disk while it is trained on: shuffled, and never more than a bounded part of it in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datagen.problem import Moves, Problems, concatenate
from datagen.storage.checks import check_file, check_pages, checked_problems, readable
from datagen.storage.dataset import bytes_per_problem, file_sha256, load_manifest
from datagen.storage.manifest import DatasetError, Manifest, ShardRecord
from datagen.tasks.registry import TASKS, Split

_GROUPS_ON_THE_WAY = 2
"""Row groups beside the pool: the one going into it, as read and unpacked."""
_BATCHES_GIVEN_OUT = 3
"""The one drawn ahead, the one given out, and the one before, which the trainer may still hold."""


@dataclass(frozen=True)
class _Group:
    """Row group `number` of a shard: `rows` problems of the split, the first of them number `first`."""

    path: Path
    record: ShardRecord
    number: int
    rows: int
    first: int


def _groups(path: Path, manifest: Manifest, record: ShardRecord, first: int) -> list[_Group]:
    """Return the row groups of a shard, of which only the footer is read, and is not to be trusted."""
    groups = []
    if not path.is_file():
        raise DatasetError(f"{path}: missing; make the dataset again, only this shard is made")
    with readable(path), pq.ParquetFile(path) as file:
        check_file(file, manifest.spec, record, path)
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            groups.append(_Group(path, record, number, rows, first))
            first += rows
    return groups


class ProblemStream:
    """The problems of a split, read row group by row group; stands in for `Problems` where a trainer wants batches.

    Row groups come in random order from all shards into a pool, from which batches are drawn at random: neighbours on
    disk are seldom in one batch when the pool is large. The order depends on seed, epoch and max_bytes alone: training
    resumed at an epoch reads what it would have read. Obstacle polygons, which no planner reads, are left out.
    """

    def __init__(self, directory: Path, split: Split, *, max_bytes: int = 2**30):
        """Look up what there is to read.

        Args:
            directory: The dataset's folder.
            split: "train", "valid" or "test".
            max_bytes: Most memory for problems: the pool, what is on its way there, and the batches given out.

        Raises:
            DatasetError: The dataset is not finished, or a shard is not there.
        """
        manifest = load_manifest(directory)
        self._manifest, self._max_bytes = manifest, max_bytes
        self._groups: list[_Group] = []
        first = 0
        for record in manifest.shards:
            if record.split == split and record.rows:
                self._groups += _groups(Path(directory) / record.name, manifest, record, first)
                first += record.rows
        self._length = first
        self._unverified = {group.path for group in self._groups}
        self._most_rows = max((group.rows for group in self._groups), default=0)
        self._bytes_per_problem = 4 + bytes_per_problem(manifest.spec)  # the goal takes four

    def __len__(self) -> int:
        return self._length

    def _read(self, group: _Group) -> Problems:
        path = group.path
        with readable(path):
            if path in self._unverified:
                if file_sha256(path) != group.record.sha256:
                    raise DatasetError(
                        f"{path}: altered or truncated (sha256 differs from the manifest's); make it again"
                    )
                self._unverified.discard(path)
            with path.open("rb") as source, pq.ParquetFile(path) as file:
                check_file(file, self._manifest.spec, group.record, path)
                check_pages(source, file, [group.number], path)
                names = [name for name in file.schema_arrow.names if name != "obstacles"]
                table = file.read_row_group(group.number, columns=names, use_threads=False)
                return _views(table, TASKS[self._manifest.spec.task].moves, group)

    def _capacity(self, batch: int) -> int:
        """Return how many problems the pool holds."""
        beside = _GROUPS_ON_THE_WAY * self._most_rows + _BATCHES_GIVEN_OUT * batch
        room = self._max_bytes // self._bytes_per_problem - beside
        least = batch + self._most_rows
        if room < least:
            needed = (least + beside) * self._bytes_per_problem
            raise ValueError(
                f"max_bytes: expected at least {needed:,} for batches of {batch} problems of "
                f"{self._bytes_per_problem:,} bytes in row groups of {self._most_rows}, got {self._max_bytes:,}"
            )
        return min(room, max(least, len(self)))

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[Problems]:
        """Yield one epoch of shuffled batches; the order depends on (seed, epoch) and the size of the pool alone.

        Args:
            size: Problems per batch; a last partial batch is dropped.
            seed: Seed of the training run.
            epoch: Number of the epoch, from 0.

        Raises:
            DatasetError: A shard fails its checksum; names the file.
            ValueError: `max_bytes` is too small for such batches.
        """
        return _one_ahead(self._drawn(size, seed, epoch))

    def _drawn(self, size: int, seed: int, epoch: int) -> Iterator[Problems]:
        if len(self) < size:
            return
        random = np.random.default_rng([seed, epoch])
        capacity = self._capacity(size)
        pool: Problems | None = None
        free = list(range(capacity - 1, -1, -1))
        taken: NDArray[np.int64] = np.empty(0, np.int64)
        left = len(self)
        source = (self._read(self._groups[i]) for i in random.permutation(len(self._groups)))
        while left >= size:
            while len(free) >= self._most_rows and (group := next(source, None)) is not None:
                pool = pool or _empty_like(group, capacity)
                slots = np.array([free.pop() for _ in range(len(group))], np.int64)
                _put(pool, slots, group)
                taken = np.concatenate([taken, slots])
                del group
            assert pool is not None
            chosen = np.zeros(len(taken), bool)
            picks = random.permutation(len(taken))[:size]
            chosen[picks] = True
            yield pool.take(taken[picks])
            free.extend(taken[picks].tolist())
            taken = taken[~chosen]
            left -= size

    def in_order(self, size: int) -> Iterator[Problems]:
        """Yield all problems as they are stored, in parts of `size`, the last one perhaps smaller."""
        return _one_ahead(self._stored(size))

    def _stored(self, size: int) -> Iterator[Problems]:
        rest: Problems | None = None
        for group in map(self._read, self._groups):
            part = group if rest is None else concatenate([rest, group])
            start = 0
            while len(part) - start >= size:
                yield part.take(np.arange(start, start + size))
                start += size
            rest = part[start:] if start < len(part) else None
        if rest is not None:
            yield rest.take(np.arange(len(rest)))


def _one_ahead(source: Iterator[Problems]) -> Iterator[Problems]:
    """Yield what `source` yields; while one item is in use, a thread makes the next."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, source, None)
        while (item := ahead.result()) is not None:
            ahead = reader.submit(next, source, None)
            yield item


def _views(table: pa.Table, moves: Moves, group: _Group) -> Problems:
    """Return the problems of one row group without copying the images, which would cost as much as reading them."""
    small = table.drop_columns(["observation"]) if "observation" in table.schema.names else table
    problems = checked_problems(small, moves, group.first, group.path)
    if small is table:
        return problems
    column = table.column("observation").combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = column.type.byte_width
    content = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    shape = json.loads(table.schema.field("observation").metadata[b"shape"])
    return replace(problems, observation=content.reshape(len(column), *shape))


def _arrays(problems: Problems) -> dict[str, Any]:
    arrays = {field.name: getattr(problems, field.name) for field in fields(problems)}
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _empty_like(problems: Problems, count: int) -> Problems:
    arrays: dict[str, Any] = {name: np.empty((count, *a.shape[1:]), a.dtype) for name, a in _arrays(problems).items()}
    return Problems(**arrays)


def _put(pool: Problems, slots: NDArray[np.int64], group: Problems) -> None:
    for name, array in _arrays(group).items():
        getattr(pool, name)[slots] = array
