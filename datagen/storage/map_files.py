"""One's own maps, as others keep them: pictures, ROS map_server, the benchmarks' `.map` and `.scen`, NumPy arrays.

Row 0 is the top of a picture and the first line of a text, column 0 its left, whatever the format counts from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from datagen.shapes import shaped
from datagen.spec import Spec, first_problem
from datagen.storage.manifest import DatasetError
from datagen.storage.npy import DAMAGE, npy_header, reason
from datagen.storage.pictures import Picture, check_sides, content_of, read_picture

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

Cell = tuple[int, int]

OCCUPIED_FROM = 65
"""Occupancy, of 100, from which a cell of map_server's modes scale and raw is an obstacle."""
FREE, BLOCKED = b".GS", b"@OTW"
"""Letters of a `.map`: ground, and swamp that is walked on; out of bounds, trees and water."""

_TEXT_BYTES = 2**25
_YAML_BYTES = 2**16


@dataclass(frozen=True)
class Reading:
    """How files that leave it open are read.

    Attributes:
        threshold: Of a picture: how light a free pixel is at least, of 255.
        dark_is_free: Of a picture: dark pixels are free, those at most as light as 255 less the threshold.
        unknown_is_free: Of a ROS map: so are cells where nobody has looked.
    """

    threshold: int = 128
    dark_is_free: bool = False
    unknown_is_free: bool = False


@dataclass(frozen=True)
class Place:
    """Where a ROS map lies.

    Attributes:
        resolution: Metres per cell.
        origin: x, y in metres and heading in radians of its lower left corner.
    """

    resolution: float
    origin: tuple[float, float, float]


@shaped
@dataclass(frozen=True, eq=False)
class MapFile:
    """A map that a file holds.

    Attributes:
        free: uint8 [h, w], 1 free, 0 obstacle.
        place: Of a ROS map.
        ends: Start and goal of each problem of a `.scen`.
    """

    free: UInt8[NDArray[np.uint8], "h w"]
    place: Place | None = None
    ends: tuple[tuple[Cell, Cell], ...] = ()


def read_map(path: str | Path, reading: Reading | None = None) -> MapFile:
    """Return the map in a file, whose name's ending says which format it has (`READERS`).

    Raises:
        DatasetError: It is damaged, too large, or no such map; names the file and the field.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path}: expected a name ending in {', '.join(READERS)}, got {path.suffix!r:.20}")
    return reader(path, reading or Reading())


def _read_picture(path: Path, reading: Reading) -> MapFile:
    picture = _opaque(path)
    if not 1 <= reading.threshold <= 255:
        raise DatasetError(f"{path}: threshold: expected 1 to 255, got {reading.threshold}")
    light = 1 - picture.shade if reading.dark_is_free else picture.shade
    return MapFile((light >= (reading.threshold - 1e-6) / 255).astype(np.uint8))


def _opaque(path: Path) -> Picture:
    picture = read_picture(path)
    if not picture.opaque.all():
        row, column = np.argwhere(~picture.opaque)[0].tolist()
        raise DatasetError(
            f"{path}: pixel {(row, column)} is transparent, neither free nor obstacle; save it without transparency"
        )
    return picture


class _MapServer(Spec):
    """What the text beside the picture of a ROS map says."""

    image: str = Field(min_length=1)
    resolution: float = Field(gt=0.0)
    origin: tuple[float, float, float]
    negate: Literal[0, 1, False, True]
    occupied_thresh: float = Field(ge=0.0, le=1.0)
    free_thresh: float = Field(ge=0.0, le=1.0)
    mode: Literal["trinary", "scale", "raw"] = "trinary"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, to which 1e-05 is a number too, as to YAML 1.2 and to the yaml-cpp of ROS 2."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z"), "-+0123456789")


def _read_map_server(path: Path, reading: Reading) -> MapFile:
    try:
        said = _MapServer.model_validate(_flat_yaml(content_of(path, _YAML_BYTES)))
    except ValidationError as error:
        raise DatasetError(f"{path}: {first_problem(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not the text of a ROS map: {reason(error):.200}") from error
    if said.free_thresh > said.occupied_thresh:
        raise DatasetError(f"{path}: free_thresh: {said.free_thresh} is more than occupied_thresh")
    if "\0" in said.image:
        raise DatasetError(f"{path}: image: expected the name of a file, got {said.image!r:.80}")
    image = path.parent / said.image
    picture = read_picture(image) if said.mode == "scale" else _opaque(image)
    occupancy = _occupancy(picture, said)
    unknown = occupancy < 0
    free = (occupancy < OCCUPIED_FROM) & (~unknown | reading.unknown_is_free)
    return MapFile(free.astype(np.uint8), Place(said.resolution, said.origin))


def _occupancy(picture: Picture, said: _MapServer) -> NDArray[np.int64]:
    """Return how likely each cell is occupied, of 100, -1 where that is unknown, as map_server reads its pictures."""
    if said.mode == "raw":
        raw = np.rint(picture.shade * 255).astype(np.int64)
        return np.where(raw <= 100, raw, -1)
    occupied = picture.shade if said.negate else 1 - picture.shade
    if said.mode == "trinary":
        between: Any = -1
    else:
        span = max(said.occupied_thresh - said.free_thresh, 1e-9)
        between = np.where(picture.opaque, np.rint((occupied - said.free_thresh) / span * 100), -1)
    known = picture.opaque if said.mode == "scale" else True
    found = np.where(known & (occupied > said.occupied_thresh), 100, between)
    return np.where(known & (occupied < said.free_thresh), 0, found).astype(np.int64)


def _flat_yaml(content: bytes) -> dict[str, Any]:
    """Return the fields of a `_MapServer` in a mapping of names to values and lists of values; others are ignored.

    Nothing deeper is built, and no alias followed, by which few bytes could stand for many.
    """
    if content.count(b"[") + content.count(b"{") > len(_MapServer.model_fields):
        raise ValueError("expected values, and lists of values")
    node = yaml.compose(content.decode("utf-8-sig"), _Loader)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("expected fields such as image: map.pgm")
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in _MapServer.model_fields:
            continue
        if name in found:
            raise ValueError(f"{name} is there twice")
        flat = [value] if isinstance(value, yaml.ScalarNode) else value.value
        if not all(isinstance(part, yaml.ScalarNode) for part in flat):
            raise ValueError(f"{name}: expected a value or a list of values")
        found[name] = yaml.constructor.SafeConstructor().construct_object(value, deep=True)
    return found


def _read_benchmark(path: Path, reading: Reading) -> MapFile:
    return MapFile(_letters(path, content_of(path, _TEXT_BYTES)))


def _letters(path: Path, content: bytes) -> NDArray[np.uint8]:
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    header = {name: value.strip() for name, _, value in (line.strip().partition(b" ") for line in lines[:4])}
    if set(header) != {b"type", b"height", b"width", b"map"} or header[b"map"]:
        raise DatasetError(f"{path}: expected four lines that begin with type, height, width and map")
    if header[b"type"] != b"octile":
        raise DatasetError(f"{path}: type: expected octile, got {header[b'type'].decode('latin-1')!r:.40}")
    sides = []
    for name in (b"height", b"width"):
        if not re.fullmatch(rb"[0-9]{1,9}", text := header[name]):
            raise DatasetError(f"{path}: {name.decode()}: expected a whole number, got {text.decode('latin-1')!r:.40}")
        sides.append(int(text))
    height, width = sides
    check_sides(path, height, width)
    rows = lines[4 : 4 + height]
    short = next((number for number, row in enumerate(rows) if len(row) != width), len(rows))
    if short < height or any(line.strip() for line in lines[4 + height :]):
        there = f"row {short} has {len(rows[short])}" if short < len(rows) else f"{sum(map(bool, lines[4:]))} rows"
        raise DatasetError(f"{path}: expected {height} rows of {width} letters, got {there}")
    letters = np.frombuffer(b"".join(rows), np.uint8).reshape(height, width)
    free, blocked = (np.isin(letters, np.frombuffer(known, np.uint8)) for known in (FREE, BLOCKED))
    if not (free | blocked).all():
        row, column = np.argwhere(~(free | blocked))[0].tolist()
        raise DatasetError(
            f"{path}: cell {(row, column)}: expected one of {(FREE + BLOCKED).decode()}, got "
            f"{chr(letters[row, column])!r}"
        )
    return free.astype(np.uint8)


def _read_scenarios(path: Path, reading: Reading) -> MapFile:
    """Return the map that a `.scen` names, which lies beside it, with the starts and goals of its problems."""
    try:
        first, *lines = content_of(path, _TEXT_BYTES).decode().splitlines()
    except (UnicodeDecodeError, ValueError):
        raise DatasetError(f"{path}: expected lines of text, the first of them 'version 1'") from None
    if not re.fullmatch(r"version\s+1(\.0*)?\s*", first):
        raise DatasetError(f"{path}: line 1: expected 'version 1', got {first!r:.40}")
    found: list[tuple[str, list[int]]] = []
    for number, line in enumerate(lines, 2):
        if line.strip():
            found.append(_scenario(f"{path}: line {number}", line))
    if not found:
        raise DatasetError(f"{path}: expected a problem on each line, found none")
    name, (width, height, *_) = found[0]
    map_path = path.parent / name
    free = _letters(map_path, content_of(map_path, _TEXT_BYTES))
    if free.shape != (height, width):
        raise DatasetError(
            f"{path}: line 2: expected the size of {name}, {free.shape[1]} x {free.shape[0]}, got {width} x {height}; "
            "maps are not scaled"
        )
    ends = []
    for number, (own, (own_width, own_height, *cells)) in enumerate(found):
        if (own, own_width, own_height) != (name, width, height):
            raise DatasetError(f"{path}: problem {number}: expected one map of one size, {name}, got {own!r:.80}")
        (start, goal) = ((cells[1], cells[0]), (cells[3], cells[2]))
        for what, cell in (("start", start), ("goal", goal)):
            if not (cell[0] < height and cell[1] < width and free[cell]):
                raise DatasetError(f"{path}: problem {number}: {what}: {cell} (row, column) is no free cell of {name}")
        ends.append((start, goal))
    return MapFile(free, ends=tuple(ends))


def _scenario(where: str, line: str) -> tuple[str, list[int]]:
    """Return the name of a problem's map, without folders, then width, height, and x and y of start and goal."""
    fields = line.split("\t") if "\t" in line else line.split()
    numbers = [field.strip() for field in fields[2:8]]
    if len(fields) != 9 or not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
        raise DatasetError(
            f"{where}: expected bucket, map, width, height, start x, start y, goal x, goal y and length, got "
            f"{line.strip()!r:.80}"
        )
    name = re.split(r"[/\\]", fields[1].strip())[-1]
    if not name.lower().endswith(".map") or "\0" in name:
        raise DatasetError(f"{where}: map: expected a name ending in .map, got {name!r:.80}")
    return name, [int(number) for number in numbers]


def read_array(path: Path) -> NDArray[Any]:
    """Return the numbers [h, w] of an `.npy` file; pickled objects are never loaded.

    Raises:
        DatasetError: It is damaged, too large, or holds something else; names the file.
    """
    content = content_of(path)
    try:
        shape, fortran, dtype, header = npy_header(BytesIO(content))
    except DAMAGE as error:
        raise DatasetError(f"{path}: not a readable .npy file: {reason(error):.200}") from error
    if len(shape) != 2 or dtype.kind not in "buif":
        raise DatasetError(f"{path}: expected numbers [h, w], got {dtype} {list(shape)!s:.60}")
    check_sides(path, *shape)
    if len(content) - header != math.prod(shape) * dtype.itemsize:
        raise DatasetError(
            f"{path}: truncated or damaged: {len(content) - header:,} bytes are not {list(shape)} {dtype}"
        )
    return np.frombuffer(content, dtype, offset=header).reshape(shape, order="F" if fortran else "C")


def _read_npy(path: Path, reading: Reading) -> MapFile:
    array = read_array(path)
    if (others := array[~np.isin(array, (0, 1))]).size:
        said = "NaN" if np.isnan(others).any() else f"values from {array.min():.4g} up to {array.max():.4g}"
        raise DatasetError(
            f"{path}: expected 1 (free) and 0 (obstacle), got {array.dtype} with {said}, such as {others[0]!s:.40}"
        )
    return MapFile((array == 1).astype(np.uint8))


READERS: dict[str, Callable[[Path, Reading], MapFile]] = {
    ".png": _read_picture,
    ".pgm": _read_picture,
    ".yaml": _read_map_server,
    ".yml": _read_map_server,
    ".map": _read_benchmark,
    ".scen": _read_scenarios,
    ".npy": _read_npy,
}
"""Endings of names, and what reads such files."""


@shaped
def read_costs(
    path: str | Path, *, darkest: float = 10.0, dark_is_free: bool = False
) -> Float64[NDArray[np.float64], "h w"]:
    """Return what entering each cell costs; inf for cells that are not entered.

    Args:
        path: An `.npy` of numbers, which are the costs; NaN and inf are obstacles. Or a picture: white costs 1, black
            `darkest`, and what is between in proportion.
        darkest: Of a picture, what black costs.
        dark_is_free: Of a picture: black costs 1, and white `darkest`.

    Raises:
        DatasetError: It is no such file, or a cost is negative; names the file and the cell.
    """
    path = Path(path)
    if path.suffix.lower() in (".png", ".pgm"):
        if not (math.isfinite(darkest) and darkest >= 1):
            raise DatasetError(f"{path}: what the darkest pixel costs: expected 1 or more, got {darkest}")
        shade = _opaque(path).shade
        return 1 + (darkest - 1) * (shade if dark_is_free else 1 - shade)
    if path.suffix.lower() != ".npy":
        raise DatasetError(f"{path}: expected costs in a file ending in .npy, .png or .pgm, got {path.suffix!r:.20}")
    with np.errstate(over="ignore"):
        costs = read_array(path).astype(np.float64)
    if (costs < 0).any():
        row, column = np.argwhere(costs < 0)[0].tolist()
        raise DatasetError(f"{path}: expected costs of at least 0, got {costs[row, column]:.4g} at {(row, column)}")
    return np.where(np.isnan(costs), np.inf, costs)
