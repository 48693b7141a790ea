"""What a dataset is (`DatasetSpec`) and which tasks there are (`TASKS`); imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, cast

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from datagen.options import (
    IMAGE_SIZE,
    ArmOptions,
    MazeOptions,
    MazeUniqueOptions,
    NoOptions,
    TerrainOptions,
    VisualOptions,
)
from datagen.plugins import extend
from datagen.problem import EIGHT, FOUR, FOUR_WRAP, Moves, Problems
from datagen.rendering.textures import textures
from datagen.spec import Spec, digest, first_problem, nearest

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

MOST_ROWS = 2001
"""Of a map: four million cells."""


class Draw(Protocol):
    """Makes problems `start` to `stop` of a split; problem i depends on (spec, split, i) alone."""

    def __call__(self, spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
        """Return the problems with their labels."""


def _no_observation(spec: DatasetSpec) -> tuple[int, ...] | None:
    return None


def _no_start(spec: DatasetSpec) -> bool:
    return False


def _start(spec: DatasetSpec) -> bool:
    return True


def _maze_start(spec: DatasetSpec) -> bool:
    return isinstance(spec.options, MazeOptions) and spec.options.start != "farthest"


def _any(spec: DatasetSpec) -> None:
    pass


def _square(spec: DatasetSpec) -> tuple[int, int]:
    return (spec.map_size, spec.map_size)


def _panorama_shape(spec: DatasetSpec) -> tuple[int, ...]:
    """Return the shape of one problem's observation: row, column, view, pixel row, pixel column, colour."""
    options = spec.options
    assert isinstance(options, VisualOptions)
    return (spec.map_size, spec.map_size, len(options.views), options.resolution, options.resolution, 3)


def _check_visual(spec: DatasetSpec) -> None:
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


def _workspace_shape(spec: DatasetSpec) -> tuple[int, ...] | None:
    return (1, IMAGE_SIZE, IMAGE_SIZE)


def _terrain_shape(spec: DatasetSpec) -> tuple[int, ...] | None:
    """Return the shape of one problem's image: colour, pixel row, pixel column."""
    assert isinstance(spec.options, TerrainOptions)
    side = spec.map_size * spec.options.pixels
    return (3, side, side)


@dataclass(frozen=True)
class Task:
    """One line of the registry of tasks.

    Attributes:
        target: Where the function of type `Draw` is; imported when used.
        moves: What the agent can do in one step.
        mapper: The planner's mapper that the observations need ("identity" where the map itself is given).
        options: The task's own choices.
        observation_shape: Shape of one problem's observation, or None where there is none; known before any is made,
            so that shards can be sized. With the mapper "identity", [channels, h, w] are further inputs per cell.
        map_shape: Rows and columns of the map; `map_size` of each where the task does not say otherwise.
        libraries: Distributions whose versions a set's manifest records, beside those that every task uses.
        starts: Whether each problem names the cell that it starts from.
        cell_costs: Whether each problem says what entering its cells costs (`Problems.costs`).
        check: Raises ValueError, naming the field, for a spec that the generator could not make.
    """

    target: str
    moves: Moves = FOUR
    mapper: str = "identity"
    options: type[Spec] = NoOptions
    observation_shape: Callable[[DatasetSpec], tuple[int, ...] | None] = _no_observation
    map_shape: Callable[[DatasetSpec], tuple[int, int]] = _square
    libraries: tuple[str, ...] = ()
    starts: Callable[[DatasetSpec], bool] = _no_start
    cell_costs: bool = False
    check: Callable[[DatasetSpec], None] = _any

    def draw(self) -> Draw:
        """Return the task's generator, importing its module."""
        module, _, name = self.target.partition(":")
        return cast(Draw, getattr(importlib.import_module(module), name))


TASKS: dict[str, Task] = {
    "navigation": Task("datagen.tasks.navigation:draw"),
    "mazes": Task("datagen.tasks.mazes:draw", options=MazeOptions, starts=_maze_start),
    "maze_unique": Task("datagen.tasks.maze_unique:draw", options=MazeUniqueOptions, starts=_start),
    "manipulation": Task("datagen.tasks.manipulation:draw", moves=FOUR_WRAP, options=ArmOptions),
    "workspace_manipulation": Task(
        "datagen.tasks.manipulation:draw",
        FOUR_WRAP,
        mapper="unet",
        options=ArmOptions,
        observation_shape=_workspace_shape,
    ),
    "visual_navigation": Task(
        "datagen.tasks.visual_navigation:draw",
        mapper="panorama",
        options=VisualOptions,
        observation_shape=_panorama_shape,
        check=_check_visual,
        libraries=("miniworld", "pyglet"),
    ),
    "terrain": Task(
        "datagen.tasks.terrain:draw",
        EIGHT,
        mapper="tiles",
        options=TerrainOptions,
        observation_shape=_terrain_shape,
        starts=_start,
        cell_costs=True,
    ),
}


def input_channels(spec: DatasetSpec) -> int:
    """Return how many channels a planner sees beside map and goal: those of observations that need no mapper.

    Such observations are images of the map's own height and width, [channels, h, w].
    """
    task = TASKS[spec.task]
    shape = task.observation_shape(spec)
    if task.mapper != "identity" or shape is None or len(shape) != 3 or shape[1:] != task.map_shape(spec):
        return 0
    return shape[0]


def load_tasks(plugins: Iterable[str]) -> None:
    """Add the tasks of plug-ins to `TASKS`.

    Raises:
        PluginError: A plug-in can't be used.
    """
    extend(TASKS, "TASKS", Task, plugins)


class DatasetSpec(Spec):
    """A dataset, fully determined: the same spec gives the same bytes.

    Attributes:
        task: A name in `TASKS`.
        map_size: Rows of the map that is planned on, and its columns unless the task says otherwise.
        train: Number of training problems.
        valid: Number of validation problems.
        test: Number of test problems.
        seed: Seed of the whole set.
        options: The task's own choices.
        imported: sha256 of the content of a set that was brought from elsewhere; None where the spec makes the set.
        distinct: Of what no two are in a generated set: "maps" that are equal cell for cell, or, as sweeps have it
            unless they say otherwise, maps that are equal "up_to_symmetry" (see `datagen.sampling.symmetry`).
    """

    task: str = "navigation"
    map_size: int = Field(15, ge=5, le=MOST_ROWS)
    train: int = Field(10_000, ge=0, le=10**9)
    valid: int = Field(2_000, ge=0, le=10**9)
    test: int = Field(2_000, ge=0, le=10**9)
    seed: int = Field(0, ge=0, lt=2**32)
    options: SerializeAsAny[Spec] = NoOptions()
    imported: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    # The default is what every set was made by before there was a choice: it stands in no identity.
    distinct: Literal["maps", "up_to_symmetry"] = "maps"

    @model_validator(mode="before")
    @classmethod
    def _resolve_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        name = data.get("task", cls.model_fields["task"].default)
        if not isinstance(name, str) or name not in TASKS:
            raise ValueError(f"task: unknown name {name!r:.80}; {nearest(str(name), TASKS)}")
        given = data.get("options", {})
        options_type = TASKS[name].options
        try:
            options = given if isinstance(given, options_type) else options_type.model_validate(given)
        except ValidationError as error:
            raise ValueError(f"task {name!r}: {first_problem(error)}") from None
        return {**data, "options": options}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.imported is None:
            TASKS[self.task].check(self)
        elif self.distinct != "maps":
            raise ValueError("distinct: says how a set is made; an imported one has the maps it came with")
        return self

    def count(self, split: Split) -> int:
        """Return the number of problems in `split`."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]


def dataset_id(spec: DatasetSpec) -> str:
    """Return the folder name of the dataset: task, size and twelve digits of the spec's sha256."""
    return f"{spec.task}-{spec.map_size}-{digest(spec, 12)}"
