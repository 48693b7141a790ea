"""Pictures as numbers: how light each pixel is, of PNG and PGM files from anybody."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from datagen.shapes import shaped
from datagen.storage.files import read_file
from datagen.storage.manifest import DatasetError
from datagen.storage.npy import reason

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

MOST_SIDE = 4096
"""Rows or columns of a map or a picture of one: 16 million cells."""
MOST_BYTES = 2**27
"""Of a file: 16 million numbers of eight bytes."""

_FORMATS = ("PNG", "PPM")
_HEADER = re.compile(rb"P(?:[14](?:(?:\s|#[^\n]*\n)+[0-9]+){2}|[2356](?:(?:\s|#[^\n]*\n)+[0-9]+){3})\s")
_MOST_HEADER = 2**16
"""Bytes: Pillow reads a comment byte by byte, a minute for one as long as a file may be."""
_WIDE = ("I", "I;16", "I;16B", "I;16L")


@shaped
@dataclass(frozen=True, eq=False)
class Picture:
    """How light a picture is, row 0 at its top.

    Attributes:
        shade: float64 [h, w], 0 black, 1 white; of colours the mean of red, green and blue.
        opaque: bool [h, w], False where anything shines through.
    """

    shade: Float64[NDArray[np.float64], "h w"]
    opaque: Bool[NDArray[np.bool_], "h w"]


def content_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file of at most so many bytes.

    Raises:
        DatasetError: There is none, or it is longer; names it.
    """
    try:
        return read_file(path, most)
    except (OSError, ValueError) as error:  # a name with NUL is a ValueError
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def check_sides(path: Path, height: int, width: int) -> None:
    """Raise DatasetError for a map that has no cells, or more than are planned on."""
    if not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
        raise DatasetError(f"{path}: expected 1 to {MOST_SIDE} rows and columns, got {height} x {width}")


def read_picture(path: Path) -> Picture:
    """Return how light the pixels of a PNG or a PGM are.

    Raises:
        DatasetError: It is neither, damaged, or too large; names the file.
    """
    content = content_of(path)
    if re.match(rb"P[1-6]\s", content) and not _HEADER.match(content[:_MOST_HEADER]):
        raise DatasetError(f"{path}: not a readable PNG or PGM: its header has no end")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Pillow warns of is damage, or a size that is not believed
            if content.startswith(b"\x89PNG"):
                Image.open(BytesIO(content), formats=_FORMATS).verify()  # every check sum; loading leaves pixels' out
            with Image.open(BytesIO(content), formats=_FORMATS) as image:
                check_sides(path, image.height, image.width)
                image.load()
                return _picture(image)
    except DatasetError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise DatasetError(f"{path}: not a readable PNG or PGM: {_told(error):.200}") from error


def _told(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it does not begin as one"
    return reason(error)


def _picture(image: Image.Image) -> Picture:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{image.n_frames} pictures in one file")  # type: ignore[attr-defined]
    if image.mode in _WIDE:
        if image.has_transparency_data:
            raise ValueError("16 bits with transparency; save it with 8 bits")
        wide = np.asarray(image).astype(np.float64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"expected pixels of 8 or 16 bits, got values from {wide.min():.0f} to {wide.max():.0f}")
        return Picture(wide / 65535, np.ones(wide.shape, np.bool_))
    if image.mode == "F":
        raise ValueError("expected pixels of 8 or 16 bits, got floats")
    pixels: NDArray[Any] = np.asarray(image.convert("RGBA"))
    return Picture(pixels[..., :3].sum(2, dtype=np.uint16) / 765, pixels[..., 3] == 255)
