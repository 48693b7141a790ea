"""The bytes of a shard, and the hashes by which problems that two splits share are found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datagen.problem import Problems
from datagen.spec import canonical_json
from datagen.storage.samples import sample_hashes, samples_schema, table_from_samples
from datagen.storage.schema import array_of, schema_of, table_from_problems
from datagen.tasks.registry import TASKS, DatasetSpec, Split
from datagen.tasks.samples import SampleColumns, Samples

_ROW_GROUP = 256
_IMAGE_ROW_GROUP = 16
"""Problems per row group where observations are large: what a shuffling reader holds at a time."""


def shard_bytes(spec: DatasetSpec, split: Split, first: int, problems: Problems | SampleColumns) -> bytes:
    """Return the Parquet file that holds problems of a split, or samples, of which the first has that number."""
    about = {"task": spec.task, "spec": canonical_json(spec), "split": split}
    rows = _ROW_GROUP
    if isinstance(problems, Problems):
        schema = schema_of(problems, TASKS[spec.task].moves)
        schema = schema.with_metadata({**schema.metadata, **about})
        table = table_from_problems(problems, schema, first)
        rows = rows if problems.observation is None else _IMAGE_ROW_GROUP
    else:
        table = table_from_samples(problems, samples_schema(spec).with_metadata(about), first)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
    )
    return bytes(sink.getvalue())


def hashes_of(file: pq.ParquetFile, spec: DatasetSpec) -> NDArray[np.uint64]:
    """Return a hash of each problem of a shard that no other split may have: of its map, or of the whole sample."""
    if isinstance(TASKS[spec.task], Samples):
        return sample_hashes(file.read(use_threads=False))
    from datagen.tasks.distinct import distinct_hashes  # compiled code, which planning a sweep does without

    columns = ["map", "costs"] if TASKS[spec.task].cell_costs else ["map"]
    table = file.read(columns=columns, use_threads=False)
    map_, *costs = (array_of(table, name) for name in columns)
    return distinct_hashes(map_, spec, *costs)
