"""How much memory the pages of a Parquet file ask for, told by their headers before one is unpacked.

The footer's sizes bind nobody: Arrow allocates what the header of each page asks for, and 200 kB of zeros packed with
zstd fill 2 GB. A header is a struct in Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow.parquet as pq

_MOST_HEADER_BYTES = 2**14
_LEAST_BYTES = 2**16
"""What any column may ask for, so that headers and small dictionaries need no thought."""
_SIZES = {"INT32": 4, "INT64": 8, "FLOAT": 4}
_LEVELS = 8
"""Bytes beside each value, for its levels and its place in a dictionary."""
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_NUMBERS = (4, 5, 6)
_DEEPEST = 8


def oversized(source: BinaryIO, file: pq.ParquetFile, group: int, most_values: int) -> str:
    """Return the name of a column whose pages unfold to more than twice what its values need; "" where none does.

    Args:
        source: The file's bytes.
        file: The file, of which the footer was checked.
        group: Number of the row group.
        most_values: Values that a row may have in a repeated column.

    Raises:
        ValueError: A page's header is damaged.
    """
    rows = file.metadata.row_group(group)
    for number in range(rows.num_columns):
        kind, chunk = file.metadata.schema.column(number), rows.column(number)
        values = rows.num_rows * (most_values if kind.max_repetition_level else 1)
        size = kind.length if kind.physical_type == "FIXED_LEN_BYTE_ARRAY" else _SIZES.get(kind.physical_type, 0)
        most, total = _LEAST_BYTES + 2 * values * (size + _LEVELS), 0
        for pages, unfolded in enumerate(_unfolded_sizes(source, chunk)):
            total += unfolded
            if total > most or pages > values + 1:
                return str(chunk.path_in_schema)
    return ""


def _unfolded_sizes(source: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[int]:
    first = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < first:
        first = chunk.dictionary_page_offset
    start, end = first, first + chunk.total_compressed_size
    if start < 0:
        raise ValueError("a column begins before the file")
    while start < end:
        source.seek(start)
        header = _Reader(source.read(_MOST_HEADER_BYTES))
        sizes = header.struct({2: 0, 3: 0})
        if min(sizes.values()) < 0:
            raise ValueError("a page of negative size")
        yield sizes[2]
        start += header.at + sizes[3]


class _Reader:
    """Reads what Thrift's compact protocol has written."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def struct(self, wanted: dict[int, int], depth: int = 0) -> dict[int, int]:
        """Return the largest value of each number that is wanted, and go to the end of the struct."""
        field, found = 0, dict(wanted)
        while (head := self._byte()) != _STOP:
            field = field + (head >> 4) if head >> 4 else self._number()
            kind = head & 15
            if kind in _NUMBERS:
                value = self._number()
                if field in found:  # of a field that stands twice the larger: which counts is the reader's choice
                    found[field] = value if value < 0 else max(found[field], value)
            else:
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int, *, inside: bool = False) -> None:
        if depth > _DEEPEST:
            raise ValueError("a page's header is nested too deeply")
        if kind in (_TRUE, _FALSE):
            self.at += inside  # a field's truth value is its kind
        elif kind == _BYTE:
            self.at += 1
        elif kind in _NUMBERS:
            self._number()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._varint()
            self.at += length
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._skip(head & 15, depth + 1, inside=True)
        elif kind == _STRUCT:
            self.struct({}, depth + 1)
        else:
            raise ValueError("a page's header is damaged")

    def _byte(self) -> int:
        if self.at >= len(self.content):
            raise ValueError("a page's header is cut off")
        self.at += 1
        return self.content[self.at - 1]

    def _varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a page's header is damaged")

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
