"""Ids of the environments, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium

from datagen.environments.episodes import Episodes
from datagen.environments.single import PlanningEnv
from datagen.environments.vector import PlanningVectorEnv
from datagen.storage.dataset import load_manifest, read_split
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split

_SIZES = {"maze_unique": 30, "manipulation": 18, "workspace_manipulation": 18}
"""Rows of the maps where the literature has others than 15."""


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
    return PlanningEnv(episodes_of(task, **asked), max_steps=max_steps, render_mode=render_mode)


def make_vector(
    task: str, num_envs: int = 1, *, max_steps: int | None = None, render_mode: str | None = None, **asked: Any
) -> PlanningVectorEnv:
    """Return many agents of a task as one environment; `gymnasium.make_vec` calls this. Arguments as of `make`."""
    return PlanningVectorEnv(episodes_of(task, **asked), num_envs, max_steps=max_steps, render_mode=render_mode)


def episodes_of(
    task: str,
    *,
    split: Split = "train",
    problems: int = 100,
    dataset: str | Path | None = None,
    map_size: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    distinct: str = "up_to_symmetry",
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
    if split not in SPLITS:
        raise ValueError(f"split: expected {', '.join(SPLITS)}, got {split!r:.40}")
    if problems < 1:
        raise ValueError(f"problems: expected at least 1, got {problems}")
    if dataset is not None:
        return _from_dataset(task, Path(dataset), split, problems)
    spec = DatasetSpec.model_validate(
        {
            "task": task, "map_size": map_size or _SIZES.get(task, 15), "seed": seed, "options": options or {},
            "distinct": distinct, **dict.fromkeys(SPLITS, 0), split: problems,
        }
    )  # fmt: skip
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
