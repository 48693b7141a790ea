"""The per-epoch records of a trial, as a Parquet file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.storage.files import ResultError, checksum_of, read_stored
from orchestrator.sweep.systems import METRIC

if TYPE_CHECKING:
    import pyarrow.parquet as pq

FILE = "curves.parquet"
REMEDY = "idp retry writes it again from the checkpoint"

MOST_BYTES = 2**26
MOST_EPOCHS = 100_000
MOST_COLUMNS = 64
MOST_LETTERS = 2000
"""Parquet packs equal values so well that the size of a file says little; these bound what it unfolds to."""


def curves_file(records: Sequence[Any]) -> bytes:
    """Return the content of a trial's file of curves: one row per epoch.

    Args:
        records: Dataclasses or mappings, all with the same fields, in order of epoch.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [dict(record) if isinstance(record, Mapping) else dataclasses.asdict(record) for record in records]
    table = pa.Table.from_pylist(rows)
    # Of the rows as they are read again: a column that some rows lack has None in them.
    table = table.replace_schema_metadata({"checksum": checksum_of(table.to_pylist())})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Return the per-epoch records in a file, empty where there is none.

    Raises:
        ResultError: There is one, but it is not what a trial has written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = read_stored(path, MOST_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from error
    # Arrow opens a path twice, and in between a running trial may have replaced the file.
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        schema = file.schema_arrow
        if words := [field.name for field in schema if pa.types.is_string(field.type)]:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, read_dictionary=words)
        rows = checked_curves(_rows(file))
        # Version 0.1.0 wrote no metadata at all; where there are others, the name of the checksum was damaged.
        if schema.metadata and schema.metadata.get(b"checksum") != checksum_of(rows).encode():
            raise ValueError("its checksum does not fit its content: altered since it was written")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # a damaged page is an OSError
        raise ResultError(f"{path}: damaged: {' '.join(str(error).split())}; {REMEDY}") from error
    return rows


def _rows(file: pq.ParquetFile) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = file.metadata
    size = sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
    _check_counts(found.num_rows, found.num_columns)
    if size > 4 * MOST_BYTES:
        raise ValueError(f"{size:,} bytes are too many")
    table = file.read(use_threads=False)  # no thread of Arrow's may hold Python's bytes as Python ends: it aborts
    for column in table.columns:
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            if (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > MOST_LETTERS:
                raise ValueError("a word in it is too long")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_counts(epochs: int, columns: int) -> None:
    if epochs > MOST_EPOCHS or columns > MOST_COLUMNS:
        raise ValueError(f"{epochs:,} epochs of {columns:,} columns are too many")


def checked_curves(rows: Any) -> list[dict[str, Any]]:
    """Return per-epoch records as they are.

    Raises:
        ValueError: They are more than are read again, or none: mappings with epochs that grow, whose values are numbers
            or short words; shares lie between 0 and 1, and times are not negative.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"expected a list of epochs, got {rows!r:.80}")
    _check_counts(len(rows), len(set().union(*rows)))
    last = 0
    for row in rows:
        epoch = row.get("epoch")
        if not isinstance(epoch, int) or not last < epoch < 2**53:
            raise ValueError(f"epoch: expected a number above {last}, got {epoch!r:.80}")
        last = epoch
        for name, value in row.items():
            _check_value(name, value)
    return rows


def _check_value(name: str, value: Any) -> None:
    if (isinstance(value, str) and len(value) <= MOST_LETTERS) or value is None:
        return
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name}: expected a number or a word, got {value!r:.80}")
    least, most = (0.0, 1.0 + 1e-6) if name.startswith("valid_") else (0.0, 1e300)
    least = -most if name.startswith(METRIC) else least
    # A number that is not finite says that there is none.
    if math.isfinite(value) and not least <= value <= most:
        raise ValueError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r:.80}")
