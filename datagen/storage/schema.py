"""The Parquet schema of every task: problems to Arrow tables and back."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datagen.problem import Moves, Problems

_ARRAYS = {
    "map": ("|u1", "row,column"),
    "distance": ("<f4", "row,column"),
    "optimal_actions": ("|u1", "row,column"),
    "label": ("|u1", "row,column"),
    "costs": ("<f4", "row,column"),
    "observation": ("|u1", "see the task"),
}
"""Type and axis order of the array columns. One codec for maps and images: docs/decisions/0001."""

SCENE = pa.list_(pa.list_(pa.float32()))


def schema_of(problems: Problems, moves: Moves) -> pa.Schema:
    """Return the schema that holds `problems`: arrays as fixed-size binary, described in the field's metadata."""
    fields = [
        pa.field("problem", pa.int64(), nullable=False),
        pa.field("goal_row", pa.int16(), nullable=False),
        pa.field("goal_col", pa.int16(), nullable=False),
    ]
    for name, (dtype, axes) in _ARRAYS.items():
        array = getattr(problems, name)
        if array is None:
            continue
        shape = array.shape[1:]
        width = math.prod(shape) * np.dtype(dtype).itemsize
        metadata = {"shape": json.dumps(shape), "dtype": dtype, "axes": axes, "order": "C"}
        fields.append(pa.field(name, pa.binary(width), nullable=False, metadata=metadata))
    if problems.start is not None:
        fields += [pa.field("start_row", pa.int16(), nullable=False), pa.field("start_col", pa.int16(), nullable=False)]
    if problems.obstacles is not None:
        layout = "polygons of one problem, each x0, y0, x1, y1, ..."
        fields.append(pa.field("obstacles", SCENE, nullable=False, metadata={"layout": layout}))
    metadata = {
        "actions": json.dumps(moves.names),
        "moves": json.dumps(moves.offsets),
        "costs": json.dumps(moves.costs),
        "wrap": json.dumps(moves.wrap),
    }
    return pa.schema(fields, metadata=metadata)


def parquet_file(content: bytes) -> pq.ParquetFile:
    """Return the Parquet file that `content` is, to be read with `use_threads=False`.

    No thread of Arrow's may hold these bytes, which are Python's: letting go of them as Python ends aborts the process.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)


def binary_of(array: NDArray[Any], dtype: str) -> pa.Array:
    """Return arrays [n, ...] as fixed-size binary in C order."""
    content = np.ascontiguousarray(array, dtype=dtype)
    width = math.prod(array.shape[1:]) * content.itemsize
    return pa.Array.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(content)])


def table_from_problems(problems: Problems, schema: pa.Schema, first: int) -> pa.Table:
    """Return the problems as a table of `schema`, numbered from `first`."""
    columns: dict[str, pa.Array] = {
        "problem": pa.array(np.arange(first, first + len(problems), dtype=np.int64)),
        "goal_row": pa.array(np.ascontiguousarray(problems.goal[:, 0])),
        "goal_col": pa.array(np.ascontiguousarray(problems.goal[:, 1])),
    }
    if problems.start is not None:
        columns["start_row"] = pa.array(np.ascontiguousarray(problems.start[:, 0]))
        columns["start_col"] = pa.array(np.ascontiguousarray(problems.start[:, 1]))
    for name, (dtype, _) in _ARRAYS.items():
        array = getattr(problems, name)
        if array is not None:
            columns[name] = binary_of(array, dtype)
    if problems.obstacles is not None:
        scenes = [[polygon.ravel() for polygon in scene] for scene in problems.obstacles]
        columns["obstacles"] = pa.array(scenes, SCENE)
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _from_binary(column: pa.ChunkedArray, field: pa.Field) -> NDArray[Any]:
    shape = tuple(json.loads(field.metadata[b"shape"]))
    dtype = np.dtype(field.metadata[b"dtype"].decode())
    result = np.empty((len(column), *shape), dtype)
    first = 0
    for chunk in column.chunks:
        if len(chunk):
            width = field.type.byte_width
            content = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
            result[first : first + len(chunk)] = content.view(dtype).reshape(len(chunk), *shape)
            first += len(chunk)
    return result


def array_of(table: pa.Table, name: str) -> NDArray[Any]:
    """Return the array column `name` of a table, [n, ...]."""
    return _from_binary(table.column(name), table.schema.field(name))


def _places(table: pa.Table, what: str) -> NDArray[np.int16]:
    columns = [table.column(f"{what}_{axis}").to_numpy() for axis in ("row", "col")]
    return np.stack(columns, axis=1).astype(np.int16)


def _polygon(coordinates: list[float]) -> NDArray[np.float32]:
    return np.asarray(coordinates, np.float32).reshape(-1, 2)


def problems_from_table(table: pa.Table) -> Problems:
    """Return the problems of a table that `table_from_problems` made."""
    names = table.schema.names
    obstacles = None
    if "obstacles" in names:
        obstacles = [[_polygon(polygon) for polygon in scene] for scene in table.column("obstacles").to_pylist()]
    return Problems(
        map=array_of(table, "map"),
        goal=_places(table, "goal"),
        distance=array_of(table, "distance"),
        optimal_actions=array_of(table, "optimal_actions"),
        label=array_of(table, "label"),
        observation=array_of(table, "observation") if "observation" in names else None,
        start=_places(table, "start") if "start_row" in names else None,
        costs=array_of(table, "costs") if "costs" in names else None,
        obstacles=obstacles,
    )
