"""Samples on disk: the Parquet columns that a task declares, checked when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datagen.storage.manifest import NUMBER, DatasetError
from datagen.storage.schema import array_of, binary_of
from datagen.tasks.registry import TASKS, DatasetSpec
from datagen.tasks.samples import SampleColumns, Samples


def samples_schema(spec: DatasetSpec) -> pa.Schema:
    """Return the schema of a task of samples: numbers as such, arrays as fixed-size binary with their shape."""
    task = TASKS[spec.task]
    assert isinstance(task, Samples)
    fields = [pa.field(NUMBER, pa.int64(), nullable=False)]
    for name, column in task.columns(spec.options).items():
        dtype = np.dtype(column.dtype)
        if not column.shape:
            fields.append(pa.field(name, pa.from_numpy_dtype(dtype), nullable=False))
            continue
        metadata = {"shape": json.dumps(column.shape), "dtype": dtype.str, "order": "C"}
        width = int(np.prod(column.shape)) * dtype.itemsize
        fields.append(pa.field(name, pa.binary(width), nullable=False, metadata=metadata))
    return pa.schema(fields)


def table_from_samples(samples: Mapping[str, NDArray[Any]], schema: pa.Schema, first: int) -> pa.Table:
    """Return samples as a table of `schema`, numbered from `first`."""
    count = len(next(iter(samples.values())))
    columns = [pa.array(np.arange(first, first + count, dtype=np.int64))]
    for field in schema:
        if field.name != NUMBER:
            values = samples[field.name]
            columns.append(binary_of(values, values.dtype.str) if values.ndim > 1 else pa.array(values))
    return pa.table(columns, schema=schema)


def samples_from_table(table: pa.Table, first: int, path: Path) -> SampleColumns:
    """Return the samples of a table of a file whose schema has been checked.

    Args:
        table: Its rows.
        first: Number of the first of them in its split.
        path: Named in the message.

    Raises:
        DatasetError: A number is missing or not finite, or the samples are others.
    """
    if any(table.column(name).null_count for name in table.column_names):
        raise DatasetError(f"{path}: a value is missing")
    numbers = table.column(NUMBER).to_numpy()
    if not np.array_equal(numbers, np.arange(first, first + len(numbers))):
        raise DatasetError(f"{path}: expected the samples from number {first}, got {numbers[:3]} ...")
    found = _arrays(table)
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise DatasetError(f"{path}: {name}: a number is not finite")
    return found


def _arrays(table: pa.Table) -> SampleColumns:
    return {
        field.name: array_of(table, field.name)
        if pa.types.is_fixed_size_binary(field.type)
        else table.column(field.name).to_numpy()
        for field in table.schema
        if field.name != NUMBER
    }


def sample_hashes(table: pa.Table) -> NDArray[np.uint64]:
    """Return a hash of each sample, all its columns together."""
    columns = [
        np.ascontiguousarray(values).reshape(len(table), -1).view(np.uint8) for values in _arrays(table).values()
    ]
    rows = np.concatenate(columns, axis=1) if len(table) else np.zeros((0, 0), np.uint8)
    return np.frombuffer(b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows), np.uint64)
