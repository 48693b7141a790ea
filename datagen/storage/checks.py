"""What a shard must be, whoever wrote it: its columns, its rows, and the values that later code relies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.problem import Moves, Problems
from datagen.spec import canonical_json
from datagen.storage.manifest import DatasetError, ShardRecord
from datagen.storage.pages import oversized
from datagen.storage.samples import samples_schema
from datagen.storage.schema import SCENE, problems_from_table, schema_of
from datagen.tasks.registry import TASKS, DatasetSpec, Split
from datagen.tasks.samples import Samples

_MOST_NUMBERS = 10_000
"""Numbers of one problem in one column, corners of obstacles: equal ones are packed so well that sizes say little."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say which file it is that Arrow cannot read."""
    try:
        yield
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{path}: not a readable shard: {' '.join(reason.split())}") from error


def empty_problems(spec: DatasetSpec) -> Problems:
    """Return no problems, in the shapes and types of the spec's."""
    observation = TASKS[spec.task].observation_shape(spec)
    maps = np.zeros((0, *TASKS[spec.task].map_shape(spec)), np.uint8)
    return Problems(
        map=maps,
        goal=np.zeros((0, 2), np.int16),
        distance=maps.astype(np.float32),
        optimal_actions=maps,
        label=maps,
        observation=None if observation is None else np.zeros((0, *observation), np.uint8),
        start=np.zeros((0, 2), np.int16) if TASKS[spec.task].starts(spec) else None,
        costs=maps.astype(np.float32) if TASKS[spec.task].cell_costs else None,
    )


def check_file(file: pq.ParquetFile, spec: DatasetSpec, record: ShardRecord, path: Path) -> None:
    """Raise DatasetError unless a shard, of which only the footer is read, has the spec's columns and enough rows.

    Args:
        file: The shard.
        spec: The dataset.
        record: What the manifest says of the shard.
        path: Named in the message.
    """
    counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    if file.metadata.num_rows != record.rows or sum(counts) != record.rows or min(counts, default=0) < 0:
        raise DatasetError(f"{path}: {file.metadata.num_rows:,} rows, but the manifest says {record.rows:,}")
    _check_schema(file.schema_arrow, spec, record.split, path)
    for group in range(file.metadata.num_row_groups):
        chunks = file.metadata.row_group(group)
        for number in range(chunks.num_columns):
            if chunks.column(number).num_values > _MOST_NUMBERS * chunks.num_rows:
                raise DatasetError(f"{path}: more than {_MOST_NUMBERS:,} numbers a problem in one column")


def check_pages(source: BinaryIO, file: pq.ParquetFile, groups: Iterable[int], path: Path) -> None:
    """Raise DatasetError where reading row groups would take more memory than their rows can need.

    Args:
        source: The file's bytes.
        file: The same, which `check_file` has passed.
        groups: Numbers of the row groups.
        path: Named in the message.
    """
    for group in groups:
        if column := oversized(source, file, group, _MOST_NUMBERS):
            raise DatasetError(f"{path}: column {column!r:.80}: its pages unfold to more than its rows can need")


def _check_schema(schema: pa.Schema, spec: DatasetSpec, split: Split, path: Path) -> None:
    samples = isinstance(TASKS[spec.task], Samples)
    expected = samples_schema(spec) if samples else schema_of(empty_problems(spec), TASKS[spec.task].moves)
    further = set() if samples else {"obstacles"}
    if sorted(set(schema.names) - further) != sorted(expected.names) or len(set(schema.names)) != len(schema):
        names = ", ".join(schema.names)
        raise DatasetError(f"{path}: expected the columns {', '.join(expected.names)}, got {names:.300}")
    for field in expected:
        found = schema.field(field.name)
        for key in (b"shape", b"dtype", b"order"):
            wanted, got = (field.metadata or {}).get(key), (found.metadata or {}).get(key)
            if wanted != got:
                raise DatasetError(
                    f"{path}: column {field.name!r}: expected the {key.decode()} {wanted!r}, got {got!r:.80}"
                )
        if found.type != field.type:
            raise DatasetError(f"{path}: column {field.name!r}: expected {field.type}, got {found.type}")
    if further & set(schema.names) and schema.field("obstacles").type != SCENE:
        raise DatasetError(f"{path}: column 'obstacles': expected {SCENE}, got {schema.field('obstacles').type}")
    metadata = schema.metadata or {}
    for name, text in (("spec", canonical_json(spec)), ("split", split)):
        if metadata.get(name.encode()) != text.encode():
            raise DatasetError(f"{path}: expected a shard of {name} {text}, got {metadata.get(name.encode())!r:.300}")


def checked_problems(table: pa.Table, moves: Moves, first: int, path: Path) -> Problems:
    """Return the problems of a shard, or of a part of it, whose values are those that `Problems` promises.

    Args:
        table: Rows of a file that `check_file` has passed.
        moves: The task's moves.
        first: Number of the first problem in its split.
        path: Named in the message.

    Raises:
        DatasetError: A value is none that the column can have.
    """
    if any(table.column(name).null_count for name in table.column_names):
        raise DatasetError(f"{path}: a value is missing")
    if "problem" in table.column_names:
        numbers = table.column("problem").to_numpy()
        if not np.array_equal(numbers, np.arange(first, first + len(numbers))):
            raise DatasetError(f"{path}: expected the problems from number {first}, got {numbers[:3]} ...")
    problems = problems_from_table(table)
    actions = len(moves.names)
    wrong = {
        "map: a cell is neither 0 nor 1": (problems.map > 1).any(),
        "distance: negative or not a number": not (problems.distance >= 0).all(),
        f"optimal_actions: not of {actions} actions": (problems.optimal_actions >> (actions - 1) > 1).any(),
        f"label: not one of {actions} actions": (problems.label >= actions).any(),
        "costs: not positive and finite": problems.costs is not None
        and not ((problems.costs > 0) & np.isfinite(problems.costs)).all(),
    }
    for what, found in wrong.items():
        if found:
            raise DatasetError(f"{path}: {what}")
    _check_places(problems, "goal", path)
    if problems.start is not None:
        _check_places(problems, "start", path)
    return problems


def _check_places(problems: Problems, what: str, path: Path) -> None:
    row, column = getattr(problems, what).T
    height, width = problems.map.shape[1:]
    if not ((row >= 0) & (row < height) & (column >= 0) & (column < width)).all():
        raise DatasetError(f"{path}: {what}_row, {what}_col: a {what} is not on its map")
    number = np.arange(len(problems))
    if not problems.map[number, row, column].all():
        raise DatasetError(f"{path}: {what}_row, {what}_col: a {what} is on an obstacle")
    if not np.isfinite(problems.distance[number, row, column]).all():
        raise DatasetError(f"{path}: {what}_row, {what}_col: there is no way from a {what} to its goal")
