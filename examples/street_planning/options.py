"""What the plug-in's parts can be told, as data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from datagen.problem import Moves
from datagen.spec import Spec
from datagen.tasks.registry import DatasetSpec

MAPS = Path(__file__).parent / "maps"

MOORE = Moves(
    names=("north", "northwest", "west", "southwest", "south", "southeast", "east", "northeast"),
    offsets=((-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1)),
    costs=(1.0, 2**0.5, 1.0, 2**0.5, 1.0, 2**0.5, 1.0, 2**0.5),
)
"""Eight moves, counter-clockwise; a diagonal costs what it is long. Corners may be cut."""


class StreetOptions(Spec):
    """Crops of a map file.

    Attributes:
        file: Name of a file in `maps/`.
        sha256: Of that file; filled in where it is left out, so that other content is another dataset.
        width: Columns of a crop; None for as many as `map_size`, its rows.
    """

    file: str = "town.map"
    sha256: str = ""
    width: int | None = Field(None, ge=5)

    @model_validator(mode="before")
    @classmethod
    def _fingerprint(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("sha256"):
            return data
        path = MAPS / str(data.get("file", "town.map"))
        if not path.is_file():
            raise ValueError(f"file: {path} does not exist; expected one of {sorted(p.name for p in MAPS.iterdir())}")
        return {**data, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def crop_shape(spec: DatasetSpec) -> tuple[int, int]:
    """Return rows and columns of a crop."""
    assert isinstance(spec.options, StreetOptions)
    return spec.map_size, spec.options.width or spec.map_size


class ResidualOptions(Spec):
    """Choices of the residual VIN.

    Attributes:
        value_channels: Values per cell.
        q_channels: Latent actions per value.
        kernel_size: Cells that a latent action may move over, odd.
        discount: g, below 1.
    """

    value_channels: int = Field(4, ge=1)
    q_channels: int = Field(10, ge=1)
    kernel_size: int = Field(3, ge=1)
    discount: float = Field(0.99, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd so that the map keeps its size, got {self.kernel_size}")
        return self
