"""What importers share: crops of maps with goals of their own, and splits written as a dataset."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from datagen.expert.grid import solve
from datagen.problem import Moves, Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.spec import first_problem
from datagen.storage.checks import empty_problems
from datagen.storage.dataset import directory_of, finish_dataset, shards, store_shard
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

MOST_PROBLEMS = 10_000_000
"""That are drawn on maps: more would take days, and the goals alone more memory than machines have."""

_FEWEST_FREE = 20
"""Free cells that a crop must have."""


def check_count(count: int, path: Path) -> None:
    """Raise DatasetError for a number of problems that nobody can draw."""
    if not 1 <= count <= MOST_PROBLEMS:
        raise DatasetError(f"{path}: count: expected 1 to {MOST_PROBLEMS:,}, got {count}")


def crops(
    parts: tuple[NDArray[np.bool_], ...], *, size: int, count: int, seed: int, moves: Moves, path: Path
) -> dict[Split, Problems]:
    """Return problems on square crops of maps, each with a goal that is uniform over its free cells.

    Args:
        parts: For each split the maps [n, h, w] that its crops are cut from, True = free.
        size: Rows and columns of a crop, cells.
        count: Problems of `train`; `valid` and `test` have a tenth each.
        seed: Seed of the crops and goals.
        moves: What the agent can do.
        path: Named in messages.

    Raises:
        DatasetError: The maps have next to no free cells, or there can't be so many problems.
    """
    check_count(count, path)
    tenth = max(1, count // 10)
    splits: dict[Split, Problems] = {}
    for number, (split, maps, problems) in enumerate(zip(SPLITS, parts, (count, tenth, tenth), strict=True)):
        generator = np.random.default_rng([seed, number])
        found, goals = zip(*(_crop(maps, size, generator, path) for _ in range(problems)), strict=True)
        seeds = label_seeds(problem_seeds(seed, number, 0, problems))
        splits[split] = solve(np.array(found, np.uint8), np.array(goals, np.int16), moves, seeds)
    return splits


def _crop(
    maps: NDArray[np.bool_], size: int, generator: np.random.Generator, path: Path
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    places = [side - size + 1 for side in maps.shape[1:]]
    # Of square maps in one draw of two: sets that were brought in before maps could be oblong keep their ids.
    below = places[0] if places[0] == places[1] else places
    for _ in range(10_000):
        row, column = generator.integers(below, size=2)
        crop = maps[generator.integers(len(maps)), row : row + size, column : column + size]
        cells = np.argwhere(crop)
        if len(cells) >= min(_FEWEST_FREE, size):
            return crop, cells[generator.integers(len(cells))]
    raise DatasetError(f"{path}: its maps have next to no free cells")


def store_splits(task: str, splits: dict[Split, Problems], root: Path, source: Path) -> Path:
    """Write the problems of each split as a dataset, whose name follows from its content; return its folder.

    Args:
        task: A name in `TASKS`.
        splits: The problems, all of one size; a split that is left out is empty.
        root: Folder of all datasets.
        source: Named in messages.
    """
    sizes = {problems.map.shape[1] for problems in splits.values()}
    if len(sizes) != 1:
        raise DatasetError(f"{source}: expected mazes of one size, got {', '.join(map(str, sorted(sizes)))}")
    content = hashlib.sha256(task.encode())
    for split, problems in splits.items():
        content.update(f" {split} {len(problems)} ".encode())
        for part in (getattr(problems, field.name) for field in fields(problems)):
            content.update(b"" if part is None else np.ascontiguousarray(part).data)
    counts = {split: len(splits[split]) if split in splits else 0 for split in SPLITS}
    spec = imported_spec(source, task=task, map_size=sizes.pop(), imported=content.hexdigest(), **counts)
    directory = directory_of(spec, Path(root))
    for shard in shards(spec):
        problems = splits.get(shard.split, empty_problems(spec))
        store_shard(spec, shard, problems[shard.start : shard.stop], directory)
    finish_dataset(spec, Path(root))
    return directory


def imported_spec(source: Path, **given: Any) -> DatasetSpec:
    """Return the spec of a set that is brought in.

    Raises:
        DatasetError: There can be no such set; names the source and the field.
    """
    try:
        return DatasetSpec(**given)
    except ValidationError as error:
        raise DatasetError(f"{source}: {first_problem(error)}") from None
