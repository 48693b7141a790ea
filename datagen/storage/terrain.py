"""Terrain in the layout of the Warcraft and Pokémon maps (Archetti et al., 2021): bring such sets.

{train,valid,test}.npz, of which any may be missing; `validation` and `val` are other names of valid:

    maps      [N, H, W, 3]         pictures, uint8, or floats 0..1
    costs     [N, h, w]            what a tile costs; may be called tmaps
    targets   [N, T, 2]            row and column of goals
    sources   [N, T, S, 2]         of starts, for each goal
    paths     [N, T, S, h, w]      1 on a cheapest way, both ends included

Each start makes a problem; its labels lead along the file's own way. Pictures are read in pieces.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from datagen.expert.cells import solve_cells
from datagen.options import TerrainOptions
from datagen.problem import EIGHT, Problems, concatenate
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.spec import first_problem
from datagen.storage.checks import empty_problems
from datagen.storage.dataset import directory_of, finish_dataset, shards, store_shard
from datagen.storage.files import open_file
from datagen.storage.manifest import DatasetError
from datagen.storage.npy import DAMAGE, NpzArray, reason
from datagen.tasks.registry import SPLITS, DatasetSpec, Split

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "val"),
    "test": ("test",),
}
_PIECE_BYTES = 64_000_000


@dataclass(frozen=True)
class _File:
    """The arrays of one split, whose shapes fit each other; `each` problems a map."""

    path: Path
    maps: NpzArray
    costs: NpzArray
    targets: NpzArray
    sources: NpzArray
    paths: NpzArray

    @classmethod
    def of(cls, path: Path, files: ExitStack) -> _File:
        try:
            archive = files.enter_context(zipfile.ZipFile(files.enter_context(open_file(path))))
        except DAMAGE as error:
            raise DatasetError(f"{path}: not an .npz file: {reason(error):.300}") from error
        members = archive.namelist()
        costs = "tmaps" if "tmaps.npy" in members and "costs.npy" not in members else "costs"
        names = ("maps", costs, "targets", "sources", "paths")
        if missing := [name for name in names if members.count(f"{name}.npy") != 1]:
            raise DatasetError(
                f"{path}: expected the arrays {', '.join(names)}, each once; {missing[0]!r} is not there"
            )
        found = cls(path, *(NpzArray(archive, path, name) for name in names))
        found._check()
        return found

    def _check(self) -> None:
        sources, costs, maps = self.sources.shape, self.costs.shape, self.maps.shape
        if len(sources) != 4 or len(costs) != 3 or len(maps) != 4:
            raise DatasetError(
                f"{self.path}: expected maps [N, H, W, 3], costs [N, h, w] and sources [N, T, S, 2], got "
                f"{list(maps)!s:.60}, {list(costs)!s:.60} and {list(sources)!s:.60}"
            )
        n, goals, starts, _ = sources
        self.sources.expect((n, goals, starts, 2), "sources")
        self.targets.expect((n, goals, 2), "targets")
        self.costs.expect((n, *costs[1:]), "costs")
        self.paths.expect((n, goals, starts, *costs[1:]), "paths")
        rows, columns = costs[1:]
        pixels = maps[1] // rows if rows else 0
        self.maps.expect((n, rows * pixels, columns * pixels, 3), "maps")
        if rows != columns or not rows:
            raise DatasetError(f"{self.costs.name}: expected as many rows as columns, and some, got {list(costs)}")

    @property
    def side(self) -> int:
        return self.costs.shape[1]

    @property
    def pixels(self) -> int:
        return self.maps.shape[1] // self.side

    @property
    def each(self) -> int:
        return self.sources.shape[1] * self.sources.shape[2]

    def problems(self, split: Split) -> Iterator[Problems]:
        """Yield the problems in pieces, all of them checked."""
        count, wide = self.maps.shape[0], self.each * (3 * (self.side * self.pixels) ** 2 + 100 * self.side**2)
        rows = max(1, _PIECE_BYTES // max(1, wide))
        counts = [min(rows, count - start) for start in range(0, count, rows)]
        arrays = (self.maps, self.costs, self.targets, self.sources, self.paths)
        first = 0
        for parts in zip(*(array.pieces(counts) for array in arrays), strict=True):
            if self.each:
                yield self._piece(split, first, *parts)
            first += len(parts[0])

    def _piece(self, split: Split, first: int, *parts: NDArray[Any]) -> Problems:
        maps, costs, targets, sources, paths = parts
        n, goals, starts = sources.shape[:3]
        with np.errstate(over="ignore"):  # what float32 can't hold is refused as not finite
            price = costs.astype(np.float32)
        _refuse(~(np.isfinite(price) & (price > 0)), first, self.costs, "is not positive and finite")
        image = self._image(maps, first).transpose(0, 3, 1, 2)

        def each(array: NDArray[Any], of: int) -> NDArray[Any]:
            return array.repeat(of, axis=0)

        goal = each(_places(targets, self.side, first, self.targets).reshape(n * goals, 2), starts)
        start = _places(sources, self.side, first, self.sources).reshape(-1, 2)
        _refuse((paths != 0) & (paths != 1), first, self.paths, "is neither 0 nor 1")
        way = paths.reshape(-1, self.side, self.side) == 1
        price = each(price, self.each)
        from_, to = first * self.each, (first + n) * self.each
        seeds = label_seeds(problem_seeds(0, SPLITS.index(split), from_, to))
        solved = solve_cells(np.ones(price.shape, np.uint8), goal, price, EIGHT, seeds)
        label, follows = _along(solved, start, way)
        _refuse(~follows.reshape(n, goals, starts), first, self.paths, "is not the cheapest way from source to target")
        return replace(solved, label=label, start=start, observation=each(image, self.each))

    def _image(self, maps: NDArray[Any], first: int) -> NDArray[np.uint8]:
        if maps.dtype == np.uint8:
            return maps
        _refuse(~((maps >= 0) & (maps <= 1)), first, self.maps, "is neither uint8 nor 0..1")
        return np.rint(255 * maps.astype(np.float32)).astype(np.uint8)


def _refuse(wrong: NDArray[np.bool_], first: int, array: NpzArray, what: str) -> None:
    if wrong.any():
        number, *place = (int(at) for at in np.argwhere(wrong)[0])
        raise DatasetError(f"{array.name}: map {first + number}: entry {place} {what}")


def _places(places: NDArray[Any], side: int, first: int, array: NpzArray) -> NDArray[np.int16]:
    with np.errstate(invalid="ignore"):  # of NaN no integer can be made, which is refused
        whole = places == places.astype(np.int64)
    _refuse(~((places >= 0) & (places < side) & whole), first, array, "is on no tile")
    return places.astype(np.int16)


def _along(
    problems: Problems, start: NDArray[np.int16], way: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return labels that lead along ways, and which ways optimal actions lead along, from the start to the goal."""
    label, number, at = problems.label.copy(), np.arange(len(problems)), start.astype(np.int64)
    left, goal, side = way.copy(), problems.goal.astype(np.int64), way.shape[1]
    follows = way[number, at[:, 0], at[:, 1]]
    left[number, at[:, 0], at[:, 1]] = False
    for _ in range(side * side):
        away = follows & (at != goal).any(1)
        if not away.any():
            break
        ahead = at[:, None] + np.array(EIGHT.offsets)
        inside = ((ahead >= 0) & (ahead < side)).all(2)
        row, column = ahead.clip(0, side - 1).transpose(2, 0, 1)
        optimal = problems.optimal_actions[number, at[:, 0], at[:, 1], None] >> np.arange(len(EIGHT.names)) & 1
        leads = inside & left[number[:, None], row, column] & (optimal == 1)
        action = leads.argmax(1)
        follows &= ~away | leads.any(1)
        moved = away & follows
        label[number[moved], at[moved, 0], at[moved, 1]] = action[moved]
        at = np.where(moved[:, None], ahead[number, action], at)
        left[number[moved], at[moved, 0], at[moved, 1]] = False
    return label, follows & (at == goal).all(1) & ~left.any((1, 2))


def import_terrain(folder: str | Path, root: str | Path) -> Path:
    """Make a dataset of the task `terrain` of a folder in the publisher's layout.

    Args:
        folder: Has `train.npz`, `valid.npz`, `test.npz` or any of them.
        root: Folder of all datasets.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: A file is malformed, or a way is no cheapest one; names the file, the array and the map.
    """
    folder = Path(folder)
    with ExitStack() as open_files:
        files: dict[Split, _File] = {}
        for split, names in _NAMES.items():
            if found := [path for name in names if (path := folder / f"{name}.npz").exists()]:
                files[split] = _File.of(found[0], open_files)
        if not files:
            raise DatasetError(f"{folder}: expected a folder with train.npz, valid.npz or test.npz")
        spec = _spec(files, folder)
        spec = spec.model_copy(update={"imported": _content_hash(files, spec)})
        directory = directory_of(spec, Path(root))
        for split in SPLITS:
            pieces = files[split].problems(split) if split in files else iter(())
            waiting: list[Problems] = []
            for shard in (shard for shard in shards(spec) if shard.split == split):
                wanted = shard.stop - shard.start
                while sum(map(len, waiting)) < wanted:
                    waiting.append(next(pieces))
                ready = concatenate(waiting) if waiting else empty_problems(spec)
                store_shard(spec, shard, ready[:wanted], directory)
                waiting = [ready[wanted:]] if len(ready) > wanted else []
        finish_dataset(spec, Path(root))
    return directory


def _spec(files: dict[Split, _File], folder: Path) -> DatasetSpec:
    sizes = {(file.side, file.pixels) for file in files.values()}
    if len(sizes) != 1:
        told = ", ".join(f"{side} tiles of {pixels} pixels" for side, pixels in sorted(sizes))
        raise DatasetError(f"{folder}: expected maps of one size, got {told}")
    ((side, pixels),) = sizes
    counts: dict[str, Any] = dict.fromkeys(SPLITS, 0)
    counts |= {split: file.maps.shape[0] * file.each for split, file in files.items()}
    try:
        options = TerrainOptions(ends="anywhere", noise=0.0, pixels=pixels)
        return DatasetSpec(task="terrain", map_size=side, **counts, options=options, imported="0" * 64)
    except ValidationError as error:
        raise DatasetError(f"{folder}: {first_problem(error)}") from None


def _content_hash(files: dict[Split, _File], spec: DatasetSpec) -> str:
    """Return the sha256 of what the files say, however they are packed; checks all of it."""
    content = hashlib.sha256(spec.task.encode())
    for split, file in files.items():
        content.update(f" {split} {spec.count(split)} ".encode())
        sums = {field.name: hashlib.sha256() for field in fields(Problems)}
        for piece in file.problems(split):
            for name, one in sums.items():
                if (array := getattr(piece, name)) is not None:
                    one.update(np.ascontiguousarray(array).data)
        content.update(b"".join(one.digest() for one in sums.values()))
    return content.hexdigest()
