"""One array of an `.npz` file from anybody: its header is read by our own rule, its numbers in pieces.

NumPy's reader gives the header to Python's parser, which strange ones bring down in a dozen ways, and believes it.
"""

from __future__ import annotations

import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from datagen.storage.manifest import DatasetError

DAMAGE = (
    *(ValueError, EOFError, OSError, KeyError, OverflowError, RuntimeError, MemoryError),
    *(struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What zipfile and the decompressors raise for damaged, encrypted or foreign files."""

_HEADER_BYTES = 10_000
_FORTRAN_BYTES = 2**28
_ENTRY = r"'descr':'[^'\"\\]{1,40}'|'fortran_order':(?:True|False)|'shape':\([0-9L,]*\)"
_HEADER = re.compile(rf"\{{(?:(?:{_ENTRY}),?){{3}}\}}")
_NUMBERS = re.compile(r"[<>|=]?[?biufcOSUVmM][0-9]{0,5}")


def reason(error: BaseException) -> str:
    """Return what an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class NpzArray:
    """One array of the file, read from its start in pieces."""

    def __init__(self, archive: zipfile.ZipFile, path: object, array: int | str) -> None:
        own = array if isinstance(array, str) else f"arr_{array}"
        self.name = f"{path}: {own}"
        self._archive, self._member = archive, f"{own}.npy"
        with self._damage("not a readable array"), archive.open(self._member) as file:
            self.shape, self._fortran, self.dtype, header = npy_header(file)
        self._bytes = math.prod(self.shape) * self.dtype.itemsize
        if self.dtype.kind not in "buif":
            raise DatasetError(f"{self.name}: expected numbers, got {self.dtype} (pickled objects are never loaded)")
        if (held := archive.getinfo(self._member).file_size) != header + self._bytes:
            raise DatasetError(
                f"{self.name}: truncated or damaged: {self._bytes:,} bytes make {_listed(self.shape)} of {self.dtype}, "
                f"but there are {held - header:,}"
            )
        if self._fortran and self._bytes > _FORTRAN_BYTES:
            raise DatasetError(
                f"{self.name}: {self._bytes:,} bytes in Fortran order, which can't be read in pieces; save it in C "
                "order (numpy.ascontiguousarray)"
            )

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        try:
            yield
        except DatasetError:
            raise
        except DAMAGE as error:
            raise DatasetError(f"{self.name}: {what}: {reason(error):.300}") from error

    def pieces(self, counts: Iterable[int]) -> Iterator[NDArray[Any]]:
        """Yield the array from its first row on, as many rows at a time as `counts` says, which are all of them."""
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        what = "truncated or damaged"
        with self._damage(what):
            file = self._archive.open(self._member)
        with file:
            with self._damage(what):
                npy_header(file)
                content = file.read(self._bytes) if self._fortran else b""
            whole = np.frombuffer(content, self.dtype).reshape(self.shape, order="F") if self._fortran else None
            start = 0
            for count in counts:
                with self._damage(what):
                    if whole is not None:
                        piece = whole[start : start + count]
                    else:
                        piece = np.frombuffer(file.read(count * width), self.dtype).reshape(count, *self.shape[1:])
                yield piece
                start += count
            with self._damage(what):
                file.read(1)  # at the end of the member its checksum is compared

    def expect(self, shape: tuple[int, ...], meaning: str) -> None:
        """Raise DatasetError unless the array has `shape`."""
        if self.shape != shape:
            raise DatasetError(f"{self.name}: {meaning} should be {list(shape)}, got {_listed(self.shape)}")


def _listed(shape: tuple[int, ...]) -> str:
    return f"{list(shape)!s:.100}"


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order, type, and how many bytes said so."""
    begin = file.read(8)
    if begin[:6] != b"\x93NUMPY" or len(begin) < 8:
        raise ValueError("it does not begin as an .npy file")
    if begin[6:] not in (b"\1\0", b"\2\0"):
        raise ValueError(f"npy version {tuple(begin[6:])} is unknown")
    layout = "<H" if begin[6:] == b"\1\0" else "<I"
    (length,) = struct.unpack(layout, file.read(struct.calcsize(layout)))
    if length > _HEADER_BYTES:
        raise ValueError(f"a header of {length:,} bytes")
    content = file.read(length)
    text = re.sub(r"[ \n]+", "", content.decode("latin-1")).replace('"', "'")
    if len(content) != length or not _HEADER.fullmatch(text):
        raise ValueError(f"expected the header of an array of numbers, got {text!r:.120}")
    found = [
        re.findall(pattern, text) for pattern in (r"'descr':'(.*?)'", "'fortran_order':(True|False)", r"\((.*?)\)")
    ]
    if any(len(values) != 1 for values in found):
        raise ValueError(f"expected the header of an array of numbers, got {text!r:.120}")
    (descr,), (fortran,), (shape,) = found
    if not _NUMBERS.fullmatch(descr):
        raise ValueError(f"expected numbers, got {descr!r}")
    sizes = [size.removesuffix("L") for size in shape.removesuffix(",").split(",")] if shape else []
    if not all(re.fullmatch("[0-9]{1,18}", size) for size in sizes):
        raise ValueError(f"expected a shape, got ({shape:.80})")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"expected numbers, got {descr!r}") from None
    return tuple(int(size) for size in sizes), fortran == "True", dtype, 8 + struct.calcsize(layout) + length
