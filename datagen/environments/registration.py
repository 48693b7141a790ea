"""Ids of the environments, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import gymnasium
from pydantic import ValidationError

from datagen.environments.episodes import Episodes
from datagen.environments.single import PlanningEnv
from datagen.environments.vector import PlanningVectorEnv
from datagen.errors import UserError
from datagen.spec import first_problem, nearest
from datagen.storage.dataset import load_manifest, read_split
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split

_SIZES = {"maze_unique": 30, "manipulation": 18, "workspace_manipulation": 18}
"""Rows of the maps where the literature has others than 15."""
DISTINCT = "up_to_symmetry"


def environment_id(task: str) -> str:
    """Return the id of a task's environment, `idp/MazeUnique-v0` of `maze_unique`."""
    return f"idp/{''.join(part.capitalize() for part in task.split('_'))}-v0"


def register_tasks() -> None:
    """Register an environment for each task in `TASKS` that has none yet: again after plug-ins were loaded."""
    for task in TASKS:
        if environment_id(task) not in gymnasium.registry:
            gymnasium.register(
                environment_id(task),
                entry_point="datagen.environments.registration:make",
                vector_entry_point="datagen.environments.registration:make_vector",
                kwargs={"task": task},
            )


def make(task: str, *, max_steps: int | None = None, render_mode: str | None = None, **asked: Any) -> PlanningEnv:
    """Return an environment of a task; `gymnasium.make("idp/Navigation-v0", ...)` calls this.

    Args:
        task: A name in `TASKS`.
        max_steps: See `PlanningEnv`.
        render_mode: See `PlanningEnv`.
        asked: See `episodes_of`.
    """
    return PlanningEnv(_episodes_of(task, asked), max_steps=max_steps, render_mode=render_mode)


def make_vector(
    task: str, num_envs: int = 1, *, max_steps: int | None = None, render_mode: str | None = None, **asked: Any
) -> PlanningVectorEnv:
    """Return many agents of a task as one environment; `gymnasium.make_vec` calls this. Arguments as of `make`."""
    return PlanningVectorEnv(_episodes_of(task, asked), num_envs, max_steps=max_steps, render_mode=render_mode)


def _episodes_of(task: str, asked: Mapping[str, Any]) -> Episodes:
    known = [name for name in signature(episodes_of).parameters if name != "task"]
    for name in asked:
        if name not in known:
            known += ["max_steps", "render_mode"]
            raise UserError(f"{environment_id(task)}: unknown argument {name!r}; {nearest(name, known)}")
    return episodes_of(task, **asked)


def episodes_of(
    task: str,
    *,
    split: Split = "train",
    problems: int = 100,
    dataset: str | Path | None = None,
    map_size: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    distinct: str = DISTINCT,
) -> Episodes:
    """Return the problems that an environment draws its episodes from.

    Args:
        task: A name in `TASKS`.
        split: "train", "valid" or "test"; no map is in two of them.
        problems: How many, the first ones of the split; those of a dataset at most.
        dataset: Folder of a set on disk to take them from; None draws them, of the four below.
        map_size: Rows of the maps; None is 15, 30 for `maze_unique`, 18 for the arms.
        seed: Of the problems; which of them an episode is in is drawn from the seed of `reset`.
        options: The task's own choices, as in a sweep.
        distinct: As in a sweep: splits share no map, "up_to_symmetry" nor turned or mirrored.

    Raises:
        ValueError: One of them is none that can be.
        DatasetError: The dataset is missing or damaged, or of another task.
    """
    given = {"map_size": map_size is not None, "seed": seed != 0, "options": options, "distinct": distinct != DISTINCT}
    if split not in SPLITS:
        raise ValueError(f"split: expected {', '.join(SPLITS)}, got {split!r:.40}")
    if not isinstance(problems, int) or problems < 1:
        raise ValueError(f"problems: expected at least 1, got {problems!r:.40}")
    if dataset is not None:
        if beside := [name for name, is_given in given.items() if is_given]:
            raise UserError(f"dataset: {dataset} has its own {beside[0]}; give one of the two")
        return _from_dataset(task, Path(dataset), split, problems)
    size = _SIZES.get(task, 15) if map_size is None else map_size
    try:
        spec = DatasetSpec.model_validate(
            {
                "task": task, "map_size": size, "seed": seed, "options": options or {},
                "distinct": distinct, **dict.fromkeys(SPLITS, 0), split: problems,
            }
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(first_problem(error)) from None
    return _drawn(spec, split, problems)


@lru_cache(maxsize=4)
def _drawn(spec: DatasetSpec, split: Split, count: int) -> Episodes:
    """Return problems that are drawn once for all environments that want the same."""
    task = TASKS[spec.task]
    return Episodes(task.draw()(spec, split, 0, count), task.moves, task.mapper == "identity")


def _from_dataset(task: str, folder: Path, split: Split, count: int) -> Episodes:
    found = load_manifest(folder).spec.task
    if found != task:
        raise ValueError(f"dataset: {folder} is of the task {found!r}, this environment of {task!r}")
    return Episodes(read_split(folder, split)[:count], TASKS[task].moves, TASKS[task].mapper == "identity")
