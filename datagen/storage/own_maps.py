"""Datasets of one's own maps: a whole map with goals drawn on it, the problems of a `.scen`, or crops to train on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from datagen.expert.grid import solve
from datagen.options import MazeOptions
from datagen.problem import Moves, Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.storage.dataset import directory_of, finish_dataset, shards, store_shard
from datagen.storage.imports import check_count, crops, imported_spec, store_splits
from datagen.storage.manifest import DatasetError
from datagen.storage.map_files import READERS, MapFile, Reading, read_map
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec

WHOLE, CROPS = 100, 10_000
"""How many problems there are where nobody says."""


def is_map(path: Path) -> bool:
    """Return whether a file's name is one of a map that `import_map` takes."""
    return path.suffix.lower() in READERS


def import_map(
    path: str | Path,
    task: str,
    root: str | Path,
    *,
    count: int | None = None,
    size: int | None = None,
    seed: int = 0,
    reading: Reading | None = None,
) -> Path:
    """Make a dataset of a map.

    Without `size` the whole map is planned on in each problem, and all are of the split `test`: those of a `.scen`,
    else with goals that are uniform over the cells of its largest connected part. A map that is not square gets
    obstacles below or on the right. With `size` problems are square crops: of the map's longer side the first eight
    tenths give those of `train`, the others in halves those of `valid` and `test`.

    Args:
        path: A file that `datagen.storage.map_files` reads.
        task: A name in `TASKS`: tells the moves. Of a `.scen`: "mazes", whose problems may name their starts.
        root: Folder of all datasets.
        count: Problems; of a `.scen` its first ones (default: all), of crops those of `train`.
        size: Rows and columns of crops, cells; None for the whole map.
        seed: Seed of goals and crops.
        reading: How the file is read.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: The file is no such map, or the task is not for it; names the file and the field.
    """
    path, root = Path(path), Path(root)
    if seed < 0:
        raise DatasetError(f"{path}: seed: expected a whole number from 0 on, got {seed}")
    found = read_map(path, reading)
    if count is not None:
        check_count(count, path)
    if size is None:
        return _whole(path, task, root, found, count, seed)
    free = found.free.astype(np.bool_)
    side = max(free.shape)
    cuts = [side * 8 // 10, side * 9 // 10]
    parts = tuple(part[None] for part in np.split(free, cuts, axis=int(np.argmax(free.shape))))
    if not 5 <= size <= min(min(part.shape[1:]) for part in parts):
        raise DatasetError(
            f"{path}: crops of {size}: expected 5 cells or more; a tenth of the map's longer side, {side} cells, must "
            "hold them"
        )
    _moves(path, imported_spec(path, task=task, map_size=size, train=0, valid=0, test=0, imported="0" * 64))
    splits = crops(parts, size=size, count=count or CROPS, seed=seed, moves=TASKS[task].moves, path=path)
    return store_splits(task, splits, root, path)


def _whole(path: Path, task: str, root: Path, found: MapFile, count: int | None, seed: int) -> Path:
    given: dict[str, Any] = {"options": {"start": "elsewhere"}} if found.ends else {}
    if found.ends and TASKS[task].options is not MazeOptions:
        raise DatasetError(
            f"{path}: its problems name their starts, for which task {task!r} has no place; take 'mazes'"
        )
    side = max(*found.free.shape, 5)
    given |= {"task": task, "map_size": side, "train": 0, "valid": 0}
    moves = _moves(path, imported_spec(path, **given, test=0, imported="0" * 64))
    if moves.wrap and found.free.shape != (side, side):
        raise DatasetError(f"{path}: expected as many rows as columns for the torus, got {found.free.shape}")
    height, width = found.free.shape
    free = np.pad(found.free, ((0, side - height), (0, side - width)))
    if found.ends:
        ends = np.array(found.ends[:count], np.int16)
        _check_ways(path, free, ends)
        starts, goals = ends[:, 0], ends[:, 1]
    else:
        starts, goals = None, _goals(path, free, count or WHOLE, seed)
    content = hashlib.sha256(f"{task} {list(free.shape)} {len(goals)} ".encode())
    for array in (free, goals, starts):
        content.update(b"" if array is None else np.ascontiguousarray(array).data)
    spec = imported_spec(path, **given, test=len(goals), imported=content.hexdigest())
    directory = directory_of(spec, Path(root))
    for shard in shards(spec):
        chosen = slice(shard.start, shard.stop) if shard.split == "test" else slice(0)
        problems = _problems(free, goals[chosen], None if starts is None else starts[chosen], shard.start, moves)
        store_shard(spec, shard, problems, directory)
    finish_dataset(spec, Path(root))
    return directory


def _moves(path: Path, spec: DatasetSpec) -> Moves:
    """Return the moves of a task that plans on a map as it is."""
    task = TASKS[spec.task]
    if task.starts(spec) and task.options is not MazeOptions:
        raise DatasetError(
            f"{path}: problems of task {spec.task!r} name their starts, which a map has not; take 'mazes'"
        )
    seen = task.mapper != "identity" or task.observation_shape(spec) is not None or task.cell_costs
    if seen or task.moves.links or task.map_shape(spec) != (spec.map_size, spec.map_size):
        plain = [name for name in ("navigation", "mazes", "manipulation") if name in TASKS]
        raise DatasetError(f"{path}: task {spec.task!r} needs more than a square map; take one of {', '.join(plain)}")
    return task.moves


def _goals(path: Path, free: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int16]:
    parts, _ = label(free)
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes) or sizes.max() < 2:
        raise DatasetError(f"{path}: no two free cells that touch; of a picture, is dark free?")
    cells = np.argwhere(parts == 1 + sizes.argmax())
    return cells[np.random.default_rng(seed).integers(len(cells), size=count)].astype(np.int16)


def _problems(
    free: NDArray[np.uint8], goals: NDArray[np.int16], starts: NDArray[np.int16] | None, first: int, moves: Moves
) -> Problems:
    seeds = label_seeds(problem_seeds(0, SPLITS.index("test"), first, first + len(goals)))
    solved = solve(np.repeat(free[None], len(goals), axis=0), goals, moves, seeds)
    return replace(solved, start=starts)


def _check_ways(path: Path, free: NDArray[np.uint8], ends: NDArray[np.int16]) -> None:
    """Raise where start and goal, [n, 2, 2], are in parts of the map that do not touch."""
    parts = label(free)[0][*ends.transpose(2, 0, 1)]
    lost = parts[:, 0] != parts[:, 1]
    if lost.any():
        raise DatasetError(f"{path}: problem {int(lost.argmax())}: no way leads from its start to its goal")
