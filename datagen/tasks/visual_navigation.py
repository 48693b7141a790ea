"""Visual navigation: the mazes of `navigation`, seen as egocentric views from every free cell (section 5.4, D.1)."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from datagen.problem import Problems
from datagen.spec import Spec, nearest

if TYPE_CHECKING:
    from datagen.tasks.registry import DatasetSpec, Split


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


def observation_shape(spec: DatasetSpec) -> tuple[int, ...]:
    """Return the shape of one problem's observation: row, column, view, pixel row, pixel column, colour."""
    options = spec.options
    assert isinstance(options, VisualOptions)
    return (spec.map_size, spec.map_size, len(options.views), options.resolution, options.resolution, 3)


def check_visual(spec: DatasetSpec) -> None:
    """Raise ValueError for a spec of which no view can be drawn."""
    if spec.map_size % 2 == 0:
        raise ValueError(
            "map_size: task 'visual_navigation' draws mazes with walls all round, which have odd sizes; got "
            f"{spec.map_size}"
        )
    assert isinstance(spec.options, VisualOptions)
    known = textures()
    for field in ("wall_texture", "floor_texture", "ceiling_texture"):
        name = getattr(spec.options, field)
        if known and name not in known:
            raise ValueError(f"options.{field}: MiniWorld has no texture {name!r}; {nearest(name, known)}")


@cache
def textures() -> frozenset[str]:
    """Return the names of MiniWorld's textures, found without its import, which needs OpenGL; none where it is not."""
    package = importlib.util.find_spec("miniworld")
    folders = (package and package.submodule_search_locations) or []
    paths = (path for folder in folders for path in Path(folder).glob("textures/*_1.png"))
    return frozenset(path.name.removesuffix("_1.png") for path in paths)


@cache
def _renderer(size: int, options: VisualOptions) -> Any:
    # Imported here: this module is part of planning a sweep, which needs no OpenGL.
    from datagen.rendering.panorama import PanoramaRenderer

    return PanoramaRenderer(size, options)


def draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    """Make the visual navigation problems `start` to `stop` of a split.

    Args:
        spec: Maps, goals and labels are those of `navigation` with this size and seed.
        split: Which split.
        start: First problem.
        stop: One past the last problem.

    Returns:
        The problems; observation uint8 [n, h, w, views, resolution, resolution, 3], 0 on obstacles.

    Raises:
        RendererError: OpenGL cannot be used on this machine; the message says what to install.
        ValueError: MiniWorld has no such texture.
    """
    from datagen.tasks import navigation

    assert isinstance(spec.options, VisualOptions)
    problems = navigation.draw(spec, split, start, stop)
    renderer = _renderer(spec.map_size, spec.options)
    observation = np.empty((len(problems), *observation_shape(spec)), np.uint8)
    for i, map_ in enumerate(problems.map):
        observation[i] = renderer.render(map_)
    return replace(problems, observation=observation)
