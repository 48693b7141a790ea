"""Maze-Unique in its publisher's layout (locuslab/EqR, 2026): bring its mazes, whole or as crops with goals drawn anew.

{train,valid,test}_inputs.npy    [N, m * m] tokens: 1 wall, 2 free, 3 start, 4 goal
{train,valid,test}_labels.npy    the same with 5 on the way from start to goal; may be missing
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datagen.expert.grid import solve
from datagen.problem import FOUR, Problems
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.storage.files import open_file
from datagen.storage.imports import crops, store_splits
from datagen.storage.manifest import DatasetError
from datagen.storage.npy import DAMAGE, npy_header, reason
from datagen.tasks.registry import SPLITS, Split

WALL, FREE, START, GOAL, WAY = 1, 2, 3, 4, 5
_MOST_BYTES = 2**30
_MARGIN = 2
"""Cells of wall round a maze that a crop may reach into."""
_HELD_OUT = 20
"""One in so many training mazes is kept for the crops of `valid`, and one for those of `test`: the last ones."""


def import_mazes(folder: str | Path, root: str | Path) -> Path:
    """Make a dataset of the task `maze_unique` of a folder in the publisher's layout.

    Args:
        folder: Has `train_inputs.npy`, `valid_inputs.npy`, `test_inputs.npy` or any of them, with labels or without.
        root: Folder of all datasets.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: A file is malformed, a maze has not one start and one goal, there is no way, or the labels are no
            shortest one; names the file and the maze.
    """
    folder, root = Path(folder), Path(root)
    splits = {split: _problems(folder, split) for split in SPLITS if (folder / f"{split}_inputs.npy").exists()}
    if not splits:
        raise DatasetError(f"{folder}: expected a folder with train_inputs.npy, valid_inputs.npy or test_inputs.npy")
    return store_splits("maze_unique", splits, root, folder)


def import_crops(folder: str | Path, root: str | Path, *, size: int, count: int, seed: int = 0) -> Path:
    """Make a dataset of the task `mazes` of square crops of the training mazes, each with a goal of its own.

    A crop may reach two cells over the edge, where all is wall; its goal is uniform over its free cells. Nine in ten of
    the mazes, the first ones, give the problems of `train`, the others in halves those of `valid` and `test`.

    Args:
        folder: Has `train_inputs.npy`.
        root: Folder of all datasets.
        size: Rows and columns of a crop, cells.
        count: Problems of `train`; `valid` and `test` have a tenth each.
        seed: Seed of the crops and goals.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: The file is malformed, its mazes are smaller than a crop or fewer than three, or there can't be so
            many problems.
    """
    folder, root = Path(folder), Path(root)
    path = folder / "train_inputs.npy"
    free = np.pad(_tokens(path) != WALL, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))
    if len(free) < len(SPLITS):
        raise DatasetError(
            f"{path}: expected {len(SPLITS)} mazes or more, one for the crops of each split, got {len(free)}"
        )
    if not 5 <= size <= free.shape[1]:
        raise DatasetError(f"{path}: mazes of {free.shape[1] - 2 * _MARGIN} cells have no crops of {size}")
    held = max(1, len(free) // _HELD_OUT)
    parts = (free[: -2 * held], free[-2 * held : -held], free[-held:])
    return store_splits("mazes", crops(parts, size=size, count=count, seed=seed, moves=FOUR, path=path), root, path)


def _tokens(path: Path) -> NDArray[np.uint8]:
    """Return the tokens of a file, [N, m, m]."""
    try:
        with open_file(path) as file:
            shape, fortran, dtype, header = npy_header(file)
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except DAMAGE as error:
        raise DatasetError(f"{path}: not a readable .npy file: {reason(error):.300}") from error
    side = math.isqrt(shape[1]) if len(shape) == 2 else 0
    if side < 5 or side**2 != shape[1] or not shape[0] or dtype.kind not in "ui" or fortran:
        raise DatasetError(
            f"{path}: expected integers [N, m * m] in C order, N 1 or more, got {dtype} {list(shape)!s:.60}"
        )
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise DatasetError(f"{path}: truncated or damaged, or over {_MOST_BYTES:,} bytes ({header + len(content):,})")
    tokens = np.frombuffer(content, dtype).reshape(len(content) // (shape[1] * dtype.itemsize), side, side)
    if not ((tokens >= WALL) & (tokens <= WAY)).all():
        raise DatasetError(f"{path}: expected tokens {WALL} to {WAY}, got {int(tokens.min())} to {int(tokens.max())}")
    return tokens.astype(np.uint8)


def _problems(folder: Path, split: Split) -> Problems:
    path = folder / f"{split}_inputs.npy"
    tokens = _tokens(path)
    places = {}
    for what, token in (("start", START), ("goal", GOAL)):
        there = (tokens == token).reshape(len(tokens), -1)
        _refuse(there.sum(axis=1) != 1, path, f"should have exactly one {what} ({token})")
        places[what] = np.stack(np.divmod(there.argmax(axis=1), tokens.shape[1]), axis=1).astype(np.int16)
    seeds = label_seeds(problem_seeds(0, SPLITS.index(split), 0, len(tokens)))
    problems = replace(solve((tokens != WALL).astype(np.uint8), places["goal"], FOUR, seeds), start=places["start"])
    steps = problems.distance[np.arange(len(tokens)), places["start"][:, 0], places["start"][:, 1]]
    _refuse(~np.isfinite(steps), path, "has no way from its start to its goal")
    labels = folder / f"{split}_labels.npy"
    if labels.exists():
        marked = _tokens(labels)
        if marked.shape != tokens.shape:
            raise DatasetError(
                f"{labels}: expected {list(tokens.shape)} tokens as in {path.name}, got {list(marked.shape)}"
            )
        _refuse(
            (np.where(marked == WAY, FREE, marked) != tokens).any(axis=(1, 2)), labels, f"is not the one of {path.name}"
        )
        _refuse((marked == WAY).sum(axis=(1, 2)) != steps - 1, labels, "marks another way than a shortest one")
    return problems


def _refuse(wrong: NDArray[np.bool_], path: Path, what: str) -> None:
    if wrong.any():
        raise DatasetError(f"{path}: maze {int(wrong.argmax())} {what}")
