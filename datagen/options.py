"""What may be chosen of each task: the fields of `options` in a dataset's spec."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

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


MazeKind = Literal["thinned", "perfect", "opened", "noise"]
MAZE_KINDS: tuple[MazeKind, ...] = ("thinned", "perfect", "opened", "noise")


class MazeOptions(Spec):
    """Choices of the task `mazes`.

    Attributes:
        kinds: Kinds of maze, in turn: perfect ones; "thinned", each cell of the interior freed with a probability that
            is uniform in (0, 1); "opened", with one that is uniform in (0, `opened`); "noise", no maze, cells free with
            a probability that is uniform in (.55, .8).
        opened: See kinds.
    """

    kinds: tuple[MazeKind, ...] = Field(MAZE_KINDS, min_length=1)
    opened: float = Field(0.1, gt=0.0, le=1.0)


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
