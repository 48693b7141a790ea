"""The `.npz` layout of GPPN and DiffPlan: bring sets of other code, and take ours to it.

    arr_0 .. arr_8     {train, valid, test} x {maps (N,m,m), goal maps (N,1,m,m), policies (N,A,1,m,m)}, float64
    arr_9 .. arr_11    {train, valid, test} x observations: (N,m,m,4,32,32,3) uint8, or (N,1,96,96) float64

A file may leave the policies out, either as gaps in the numbers or as {train, valid, test} x {maps, goal maps} without
gaps; then the labels are computed. Arrays are read and written in pieces, so panoramas need not fit in memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from datagen.expert.grid import goal_distances, one_hot_label, optimal_actions, tied_actions
from datagen.problem import Moves, Problems, concatenate
from datagen.sampling.splitmix import label_seeds, problem_seeds
from datagen.spec import first_problem
from datagen.storage.checks import empty_problems
from datagen.storage.dataset import directory_of, finish_dataset, load_manifest, read_shards, shards, store_shard
from datagen.storage.files import open_file
from datagen.storage.manifest import DatasetError
from datagen.storage.npy import DAMAGE, NpzArray, reason
from datagen.tasks.registry import MOST_ROWS, SPLITS, TASKS, DatasetSpec, Split

ActionOrder = Literal["4abs-cc", "news"]
Labels = Literal["one_hot", "full"]
_NEWS = (0, 2, 3, 1)
"""Where north, west, south and east stand in "news" files, whose order is north, east, west, south."""

_PIECE_BYTES = 128_000_000


@dataclass(frozen=True)
class _Layout:
    """The arrays of each split; policies and observations may be missing."""

    maps: dict[Split, NpzArray]
    goals: dict[Split, NpzArray]
    policies: dict[Split, NpzArray] | None
    observations: dict[Split, NpzArray] | None


def _layout(archive: zipfile.ZipFile, path: Path) -> _Layout:
    members = archive.namelist()
    expected = {f"arr_{i}.npy": i for i in range(12)}
    if unknown := sorted(set(members) - expected.keys()):
        raise DatasetError(f"{path}: unknown array {unknown[0].removesuffix('.npy')!r:.80}; expected arr_0 .. arr_11")
    if len(members) != len(set(members)):
        raise DatasetError(f"{path}: an array is there twice")
    numbers = sorted(expected[name] for name in members)
    arrays = {number: NpzArray(archive, path, number) for number in numbers}
    if len(numbers) == 12 and len(arrays[3].shape) == 4:
        raise DatasetError(
            f"{path}: four arrays of each split (arr_3 is {list(arrays[3].shape)}); expected three: maps, goal maps "
            "and policies, without distances"
        )

    def per_split(first: int, step: int) -> dict[Split, NpzArray]:
        return {split: arrays[first + step * k] for k, split in enumerate(SPLITS)}

    with_gaps = [0, 1, 3, 4, 6, 7]
    if numbers in (list(range(9)), list(range(12))) and len(arrays[2].shape) == 5:
        observations = per_split(9, 1) if len(numbers) == 12 else None
        return _Layout(per_split(0, 3), per_split(1, 3), per_split(2, 3), observations)
    if numbers in (list(range(6)), list(range(9))):
        return _Layout(per_split(0, 2), per_split(1, 2), None, per_split(6, 1) if len(numbers) == 9 else None)
    if numbers in (with_gaps, [*with_gaps, 9, 10, 11]):
        observations = per_split(9, 1) if len(numbers) == 9 else None
        return _Layout(per_split(0, 3), per_split(1, 3), None, observations)
    found = ", ".join(f"arr_{number}" for number in numbers) or "no arrays"
    raise DatasetError(
        f"{path}: expected arr_0 .. arr_8 (maps, goal maps and policies of train, valid and test), then observations "
        f"arr_9 .. arr_11 where the task has them; policies may be missing; found {found}"
    )


def _spec(layout: _Layout, path: Path, task: str) -> DatasetSpec:
    """Return what the set is, but for the sum of its content; checks the shape of every array."""
    train, (low, high) = layout.maps["train"], (5, MOST_ROWS)
    for array in layout.maps.values():
        if len(array.shape) != 3:
            got = f"{list(array.shape)!s:.100}" if array.shape else "a single number"
            raise DatasetError(f"{array.name}: maps should be [N, m, m], got {got}")
    if not low <= train.shape[1] <= high:
        raise DatasetError(f"{train.name}: maps should be [N, m, m], m in {low} .. {high}, got {list(train.shape)}")
    counts = {split: layout.maps[split].shape[0] for split in SPLITS}
    try:
        spec = DatasetSpec(task=task, map_size=train.shape[1], **counts, imported="0" * 64)
    except ValidationError as error:
        raise DatasetError(f"{path}: {first_problem(error)}") from None
    if TASKS[task].moves.links:
        raise DatasetError(f"{path}: problems of task {task!r} are graphs, for whose roads the layout has no place")
    if TASKS[task].starts(spec) or TASKS[task].cell_costs:
        what = "name their starts" if TASKS[task].starts(spec) else "have costs of cells"
        raise DatasetError(f"{path}: problems of task {task!r} {what}, for which the layout has no place")
    shape, of, observation = (
        TASKS[task].map_shape(spec),
        len(TASKS[task].moves.names),
        TASKS[task].observation_shape(spec),
    )
    if observation is None and layout.observations is not None:
        array = layout.observations["train"]
        raise DatasetError(f"{array.name}: task {task!r} has no observations; is it another task's file?")
    if observation is not None and layout.observations is None:
        raise DatasetError(f"{path}: task {task!r} needs observations (arr_9 .. arr_11), found none")
    for split in SPLITS:
        count = spec.count(split)
        layout.maps[split].expect((count, *shape), f"{split} maps")
        layout.goals[split].expect((count, 1, *shape), f"{split} goal maps")
        if layout.policies is not None:
            layout.policies[split].expect((count, of, 1, *shape), f"{split} policies")
        if layout.observations is not None and observation is not None:
            layout.observations[split].expect((count, *observation), f"{split} observations")
    return spec


def _binary(piece: NDArray[Any], name: str, meaning: str) -> NDArray[np.uint8]:
    wrong = (piece != 0) & (piece != 1)
    if wrong.any():
        where = [int(i) for i in np.argwhere(wrong)[0]]
        raise DatasetError(f"{name}: {meaning} should be 0 or 1, got {piece[tuple(where)]} in problem {where[0]}")
    return piece.astype(np.uint8)


def _refuse(wrong: Any, first: int, name: str, what: str) -> None:
    if wrong.any():
        raise DatasetError(f"{name}: problem {first + int(wrong.argmax())} {what}")


def _label(
    policy: NDArray[np.uint8],
    problems: Problems,
    moves: Moves,
    order: ActionOrder,
    seeds: NDArray[np.uint64],
    first: int,
    name: str,
) -> NDArray[np.uint8]:
    """Return the one-hot labels of a policy piece [n, A, h, w] of the file, checked against the expert."""
    _refuse((policy.sum(axis=1) == 0).reshape(len(policy), -1).any(axis=1), first, name, "has a cell without an action")
    label, wrong, what = _judged(_ours(policy, order), problems, moves)
    if wrong.any():
        where = " on the torus" if moves.wrap else ""
        hint = f"expected the order {', '.join(moves.names)}{where}"
        other: ActionOrder = "4abs-cc" if order == "news" else "news"
        if len(moves.names) == len(_NEWS) and not _judged(_ours(policy, other), problems, moves)[1].any():
            hint = f"its actions are in another order: read it with --actions {other}"
        _refuse(wrong.reshape(len(policy), -1).any(axis=1), first, name, f"{what}; {hint}")
    return one_hot_label(problems.map, problems.distance, moves, seeds) if label is None else label


def _ours(policy: NDArray[np.uint8], order: ActionOrder) -> NDArray[np.uint8]:
    return policy[:, list(_NEWS)] if order == "news" else policy


def _judged(
    policy: NDArray[np.uint8], problems: Problems, moves: Moves
) -> tuple[NDArray[np.uint8] | None, NDArray[np.bool_], str]:
    """Return the labels of a policy, None where they are still to be drawn; where it is wrong; and what is."""
    if (policy.sum(axis=1) > 1).any():
        # All optimal actions of every cell ("full"): nothing is drawn, so the rule must give the same.
        bits = np.packbits(policy, axis=1, bitorder="little")[:, 0]
        wrong = bits != tied_actions(problems.map, problems.distance, moves)
        return None, wrong, "has several actions in a cell, but not exactly its optimal ones"
    label = policy.argmax(axis=1).astype(np.uint8)
    wrong = (problems.optimal_actions != 0) & (problems.optimal_actions >> label & 1 == 0)
    return label, wrong, "is labelled with an action that is not optimal"


def _pieces(
    layout: _Layout, spec: DatasetSpec, split: Split, counts: list[int], order: ActionOrder
) -> Iterator[Problems]:
    """Yield a split, as many problems at a time as `counts` says, checked and with all its labels."""
    moves = TASKS[spec.task].moves
    first = 0
    arrays = [layout.maps[split], layout.goals[split]]
    arrays += [layout.policies[split]] if layout.policies is not None else []
    arrays += [layout.observations[split]] if layout.observations is not None else []
    for maps, goal_maps, *rest in zip(*(array.pieces(counts) for array in arrays), strict=True):
        map_ = _binary(maps, layout.maps[split].name, "a cell")
        name, goal_map = layout.goals[split].name, _binary(goal_maps, layout.goals[split].name, "a goal map's cell")
        flat = goal_map.reshape(len(map_), -1)
        _refuse(flat.sum(axis=1) != 1, first, name, "should have exactly one goal")
        goal = np.stack(np.unravel_index(flat.argmax(axis=1), map_.shape[1:]), axis=1).astype(np.int16)
        blocked = map_[np.arange(len(map_)), goal[:, 0], goal[:, 1]] == 0
        _refuse(blocked, first, name, "has its goal on an obstacle")
        seeds = label_seeds(problem_seeds(spec.seed, SPLITS.index(split), first, first + len(map_)))
        distance = goal_distances(map_, goal, moves)
        optimal = optimal_actions(map_, distance, moves)
        problems = Problems(map_, goal, distance, optimal, label=np.zeros_like(map_))
        if layout.policies is not None:
            name = layout.policies[split].name
            policy = _binary(rest.pop(0)[:, :, 0], name, "a policy's entry")
            label = _label(policy, problems, moves, order, seeds, first, name)
        else:
            label = one_hot_label(map_, distance, moves, seeds)
        observation = None
        if layout.observations is not None:
            name, seen = layout.observations[split].name, rest.pop(0)
            grey = seen.dtype == np.uint8 and TASKS[spec.task].mapper != "unet"  # which reads 1 as an obstacle
            observation = seen if grey else _binary(seen, name, "a pixel")
        yield replace(problems, label=label, observation=observation)
        first += len(map_)


def _content_hash(layout: _Layout, spec: DatasetSpec, order: ActionOrder) -> str:
    """Return the sha256 of what the file says, however it is compressed, typed or cut into pieces; checks all of it."""
    total = hashlib.sha256()
    for split in SPLITS:
        sums = [hashlib.sha256() for _ in range(4)]
        for piece in _pieces(layout, spec, split, _counts(spec, spec.count(split)), order):
            for one, array in zip(sums, (piece.map, piece.goal, piece.label, piece.observation), strict=True):
                one.update(b"" if array is None else np.ascontiguousarray(array).data)
        total.update(f"{spec.task} {split} {spec.count(split)} {spec.map_size} ".encode())
        total.update(b"".join(one.digest() for one in sums))
    return total.hexdigest()


def _counts(spec: DatasetSpec, problems: int) -> list[int]:
    """Return how many of so many problems to have in memory at a time."""
    observation = math.prod(TASKS[spec.task].observation_shape(spec) or (0,))
    rows = max(1, _PIECE_BYTES // (math.prod(TASKS[spec.task].map_shape(spec)) * 64 + observation * 8))
    return [min(rows, problems - start) for start in range(0, problems, rows)]


def import_npz(path: Path, task: str, root: Path, *, actions: ActionOrder = "4abs-cc") -> Path:
    """Make a dataset of a file in the GPPN layout.

    Distances and optimal actions are computed; the file's one-hot labels are kept, and must be optimal wherever the
    goal can be reached. Maps that are in two splits are counted in the manifest and named in the card.

    Args:
        path: The file.
        task: A name in `TASKS`: tells the moves and the observations.
        root: Folder of all datasets; the set is written to root / dataset_id, which follows from the content alone.
        actions: Order of the file's actions: "4abs-cc" is north, west, south, east; "news" north, east, west, south.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: The file is missing, malformed, or not of this task; names the file and the array.
    """
    path = Path(path)
    _check_choice("actions", actions, ActionOrder)
    if actions == "news" and task in TASKS and len(TASKS[task].moves.names) != len(_NEWS):
        raise DatasetError(f"actions: 'news' is an order of four moves, task {task!r} has others")
    with ExitStack() as open_files:
        try:
            archive = open_files.enter_context(zipfile.ZipFile(open_files.enter_context(open_file(path))))
        except FileNotFoundError:
            raise DatasetError(f"{path}: no such file") from None
        except DAMAGE as error:
            what = getattr(error, "strerror", None) or reason(error)
            raise DatasetError(f"{path}: not an .npz file: {what:.300}") from error
        layout = _layout(archive, path)
        spec = _spec(layout, path, task)
        spec = spec.model_copy(update={"imported": _content_hash(layout, spec, actions)})
        directory = directory_of(spec, Path(root))
        for split in SPLITS:
            parts = {shard: _counts(spec, shard.stop - shard.start) for shard in shards(spec) if shard.split == split}
            pieces = _pieces(layout, spec, split, [count for counts in parts.values() for count in counts], actions)
            for shard, counts in parts.items():
                found = [next(pieces) for _ in counts]
                store_shard(spec, shard, concatenate(found) if found else empty_problems(spec), directory)
        finish_dataset(spec, Path(root))
    return directory


def _check_choice(name: str, given: str, choices: Any) -> None:
    """Raise DatasetError unless it is one of the choices: any other would be taken for one of them without a word."""
    if given not in get_args(choices):
        raise DatasetError(f"{name}: expected {' or '.join(map(repr, get_args(choices)))}, got {given!r:.40}")


def _policy(problems: Problems, moves: Moves, labels: Labels, order: ActionOrder) -> NDArray[Any]:
    actions = np.arange(len(moves.names), dtype=np.uint8)[None, :, None, None]
    if labels == "one_hot":
        policy = problems.label[:, None] == actions
    else:
        policy = tied_actions(problems.map, problems.distance, moves)[:, None] >> actions & 1
    if order == "news":
        policy = policy[:, np.argsort(_NEWS)]
    return policy[:, :, None].astype(np.float64)


def export_npz(
    directory: Path,
    path: Path,
    *,
    labels: Labels = "one_hot",
    actions: ActionOrder = "4abs-cc",
) -> None:
    """Write a dataset as one file in the GPPN layout.

    The same dataset gives the same bytes. Distances, optimal actions and obstacle polygons have no place in the layout.

    Args:
        directory: The dataset's folder.
        path: The file to write; appears whole or not at all.
        labels: One action per cell, or all that tie for the best next state, in every cell.
        actions: Order of the actions in the file, see `import_npz`.

    Raises:
        DatasetError: The dataset is damaged, the file cannot be written, or "news" was asked for other than four moves.
    """
    directory, path = Path(directory), Path(path)
    _check_choice("labels", labels, Labels)
    _check_choice("actions", actions, ActionOrder)
    spec = load_manifest(directory).spec
    if TASKS[spec.task].cell_costs:
        raise DatasetError(f"{directory}: cells of task {spec.task!r} have costs, for which the layout has no place")
    moves, observation = TASKS[spec.task].moves, TASKS[spec.task].observation_shape(spec)
    if actions == "news" and len(moves.names) != len(_NEWS):
        raise DatasetError(f"actions: 'news' is an order of four moves, task {spec.task!r} has {len(moves.names)}")
    (height, width), of = TASKS[spec.task].map_shape(spec), len(moves.names)

    def content(kind: str, problems: Problems) -> NDArray[Any]:
        if kind == "maps":
            return problems.map.astype(np.float64)
        if kind == "goals":
            goal_map = np.zeros((len(problems), 1, height, width))
            goal_map[np.arange(len(problems)), 0, problems.goal[:, 0], problems.goal[:, 1]] = 1.0
            return goal_map
        if kind == "policies":
            return _policy(problems, moves, labels, actions)
        assert problems.observation is not None
        # DiffPlan keeps binary images as float64 and colours as uint8.
        return problems.observation.astype(np.float64 if spec.task == "workspace_manipulation" else np.uint8)

    shapes: dict[str, tuple[int, ...]] = {
        "maps": (height, width),
        "goals": (1, height, width),
        "policies": (of, 1, height, width),
    }
    members = [(split, kind) for split in SPLITS for kind in shapes]
    if observation is not None:
        shapes["observations"] = observation
        members += [(split, "observations") for split in SPLITS]
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, (split, kind) in enumerate(members):
                dtype = np.uint8 if kind == "observations" and spec.task != "workspace_manipulation" else np.float64
                header = {"descr": np.dtype(dtype).str, "fortran_order": False}
                # A fixed date, so that the same dataset gives the same bytes.
                entry = zipfile.ZipInfo(f"arr_{number}.npy")
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(
                        member, {**header, "shape": (spec.count(split), *shapes[kind])}
                    )
                    for problems in read_shards(directory, split):
                        member.write(np.ascontiguousarray(content(kind, problems)).data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise DatasetError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
