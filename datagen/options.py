"""What may be chosen of each task: the fields of `options` in a dataset's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from datagen.spec import Spec

IMAGE_SIZE = 96
"""Rows and columns of the workspace image (section 5.1)."""


class NoOptions(Spec):
    """Nothing to choose."""


class ArmOptions(Spec):
    """Choices of the manipulation tasks.

    Attributes:
        inclusive_angles: True as in the authors' generator: both ends of 0 .. 2 pi have a bin, so first and last row
            are one configuration.
    """

    inclusive_angles: bool = False


MazeKind = Literal["thinned", "perfect", "opened", "noise", "percolated", "caves", "rooms", "spirals", "blocks"]
MAZE_KINDS: tuple[MazeKind, ...] = get_args(MazeKind)
MazeAlgorithm = Literal["depth_first", "wilson", "prim"]
MAZE_ALGORITHMS: tuple[MazeAlgorithm, ...] = get_args(MazeAlgorithm)
MazeStart = Literal["farthest", "dead_end", "elsewhere"]
MAZE_STARTS: tuple[MazeStart, ...] = get_args(MazeStart)

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class MazeOptions(Spec):
    """Choices of the task `mazes`. A range is [lowest, highest], uniform between them for each map; one number is both.
    One kind may stand without its list.

    Attributes:
        kinds: Kinds of map, in turn: "perfect" mazes, with one way between any two cells; "thinned", each cell of the
            interior freed with a probability of `thinning`; "opened", with one that is uniform in (0, `opened`);
            "percolated", each wall between two neighbouring rooms opened with a probability of `percolation`. No mazes:
            "noise", a share of `noise` of the interior obstacles; "caves"; "rooms" with doors; "spirals"; "blocks".
        opened: See kinds.
        thinning: See kinds; 0 leaves a perfect maze.
        percolation: See kinds; 0 leaves a perfect maze, and 1 a lattice.
        noise: See kinds.
        algorithm: What carves the mazes: depth-first search (long corridors), Wilson's (uniform over all perfect mazes)
            or Prim's (many short dead ends).
        start: From where `exact` is judged: the cell farthest from the goal, which needs no start; or a start drawn
            uniformly over the dead ends that have a way to the goal, or over the other cells that have one.
    """

    kinds: tuple[MazeKind, ...] = Field(("thinned", "perfect", "opened", "noise"), min_length=1)
    opened: float = Field(0.1, gt=0.0, le=1.0)
    thinning: tuple[Share, Share] = (0.0, 1.0)
    percolation: tuple[Share, Share] = (0.0, 1.0)
    noise: tuple[Share, Share] = (0.2, 0.45)
    algorithm: MazeAlgorithm = "depth_first"
    start: MazeStart = "farthest"

    @model_validator(mode="before")
    @classmethod
    def _one_is_all(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        ranges = ("thinning", "percolation", "noise")
        plain = {name for name in ranges if isinstance(data.get(name), int | float) and data[name] is not True}
        given = {name: (value, value) if name in plain else value for name, value in data.items()}
        return {**given, "kinds": (kinds,)} if isinstance(kinds := data.get("kinds"), str) else given

    @field_validator("thinning", "percolation", "noise")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] < value[0]:
            raise ValueError(f"expected the lowest first, got {list(value)}")
        return value


class MazeUniqueOptions(Spec):
    """Choices of the task `maze_unique`.

    Attributes:
        shortest: Fewest steps of the way from start to goal.
        longest: Most steps.
    """

    shortest: int = Field(100, ge=1, le=10**6)
    longest: int = Field(140, ge=1, le=10**6)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.longest < self.shortest:
            raise ValueError(f"longest: expected at least shortest ({self.shortest}), got {self.longest}")
        return self


class TerrainOptions(Spec):
    """Choices of the task `terrain`.

    Attributes:
        ends: Where ways begin and end: in the upper left and lower right "corners", or "anywhere", at least half the
            map's side apart.
        noise: Standard deviation of each pixel, of a range of 1.
        pixels: Rows and columns of a tile's picture.
    """

    ends: Literal["corners", "anywhere"] = "corners"
    noise: float = Field(0.15, ge=0.0, le=1.0)
    pixels: int = Field(8, ge=2, le=64)


View = Literal["north", "west", "south", "east"]
"""A direction to look at; the names and the default order of `ACTIONS`."""


class VisualOptions(Spec):
    """What the views look like; the defaults are the literature's.

    Attributes:
        resolution: Rows and columns of a view, pixels.
        views: Directions looked at from each cell, in the order in which they are stored.
        wall_texture: Name of one of MiniWorld's textures.
        floor_texture: The same for the floor.
        ceiling_texture: The same for the ceiling.
        field_of_view: Degrees, across and up and down.
        camera_height: Metres above the floor.
        wall_height: Metres.
        gap: Metres between two neighbouring rooms of one metre.
    """

    resolution: int = Field(32, ge=8, le=256)
    # DEVIATION(D.1): the authors' views run clockwise while their actions run counter-clockwise; ours run alike.
    views: tuple[View, ...] = Field(("north", "west", "south", "east"), min_length=1)
    wall_texture: str = "brick_wall"
    # UNSPECIFIED: floor and ceiling; MiniWorld's own defaults.
    floor_texture: str = "floor_tiles_bw"
    ceiling_texture: str = "concrete_tiles"
    field_of_view: float = Field(60.0, ge=20.0, le=120.0)
    camera_height: float = Field(1.5, gt=0.0)
    wall_height: float = Field(2.74, gt=0.0)
    gap: float = Field(0.01, ge=0.0, le=0.04)
    """MiniWorld joins rooms at most 0.05 apart."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.camera_height >= self.wall_height:
            raise ValueError(
                f"camera_height: expected less than wall_height ({self.wall_height}), got {self.camera_height}"
            )
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views: expected each direction once, got {', '.join(self.views)}")
        return self
