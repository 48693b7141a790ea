"""What every task must do, as functions that say so: for our own tests and for plug-ins'.

Each check takes a spec with at least 20 training, 8 validation and 8 test problems and raises AssertionError; its
docstring says what is asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from datagen.expert.cells import cell_links
from datagen.expert.graph import Links, link_distances, optimal_links, read_links
from datagen.expert.grid import goal_distances, optimal_actions
from datagen.problem import Problems
from datagen.storage import dataset as parquet
from datagen.tasks.distinct import distinct_hashes
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split
from datagen.tasks.samples import SampleColumns


def _draw(spec: DatasetSpec, split: Split, start: int, stop: int) -> Problems:
    return TASKS[spec.task].draw()(spec, split, start, stop)


def check_moves(spec: DatasetSpec) -> None:
    """Moves have a name, an offset and a positive cost each, and are at most eight."""
    moves = TASKS[spec.task].moves
    counts = {len(moves.names), len(moves.offsets), len(moves.costs)}
    assert len(counts) == 1, f"{len(moves.names)} names, {len(moves.offsets)} offsets, {len(moves.costs)} costs"
    assert 1 <= len(moves.names) <= 8, f"there are {len(moves.names)} moves; a byte of optimal actions holds 8"
    assert len(set(moves.names)) == len(moves.names), f"two moves have one name: {moves.names}"
    assert all(cost > 0 for cost in moves.costs), f"costs {moves.costs} are not all positive"


def check_vocabulary(spec: DatasetSpec) -> None:
    """Arrays have the types and shapes of `Problems`, maps hold 0 and 1, and every goal is a free cell."""
    problems = _draw(spec, "train", 0, 20)
    shape = (20, *TASKS[spec.task].map_shape(spec))
    kinds = {"map": np.uint8, "distance": np.float32, "optimal_actions": np.uint8, "label": np.uint8}
    for name, kind in kinds.items():
        array = getattr(problems, name)
        assert array.shape == shape and array.dtype == kind, (
            f"{name}: expected {np.dtype(kind).name} {list(shape)}, got {array.dtype} {list(array.shape)}"
        )
    assert problems.goal.shape == (20, 2) and problems.goal.dtype == np.int16, (
        f"goal: expected int16 [20, 2], got {problems.goal.dtype} {list(problems.goal.shape)}"
    )
    assert set(np.unique(problems.map)) <= {0, 1}, f"map: values {np.unique(problems.map)[:5]} are not 0 and 1"
    row, column = problems.goal.T
    blocked = np.flatnonzero(problems.map[np.arange(20), row, column] == 0)
    assert not len(blocked), f"goal: problems {blocked.tolist()} have their goal on an obstacle"
    expected = TASKS[spec.task].observation_shape(spec)
    found = None if problems.observation is None else problems.observation.shape[1:]
    assert found == expected, f"observation: observation_shape says {expected}, the problems have {found}"
    priced = TASKS[spec.task].cell_costs
    assert (problems.costs is not None) == priced, f"costs: the task says cell_costs={priced}"
    if problems.costs is not None:
        assert problems.costs.shape == shape and (problems.costs > 0).all(), f"costs: expected {list(shape)}, positive"


def check_labels(spec: DatasetSpec) -> None:
    """Distances, optimal actions and labels are those of the task's moves."""
    problems, moves = _draw(spec, "train", 0, 20), TASKS[spec.task].moves
    if moves.links or problems.costs is not None:
        if problems.costs is not None:
            links = cell_links(problems.map, problems.costs, moves)
        else:
            links = read_links(moves, problems.observation)
        _check_roads(links, problems.map)
        distance = link_distances(problems.goal, links, problems.map.shape[2])
        best = optimal_links(distance, links).reshape(problems.map.shape)
        distance = distance.reshape(problems.map.shape)
    else:
        distance = goal_distances(problems.map, problems.goal, moves)
        best = optimal_actions(problems.map, distance, moves)
    assert np.allclose(problems.distance, distance, rtol=1e-5), (
        "distance: not the cheapest path by the task's moves; datagen.expert.grid.solve makes all labels, on graphs "
        "datagen.expert.graph.solve_links"
    )
    assert np.array_equal(problems.optimal_actions, best), "optimal_actions: not those of the task's moves"
    away = best > 0
    assert ((best >> problems.label) & 1)[away].all(), "label: a cell's label is not one of its optimal actions"
    assert away.any(), "no cell of 20 problems can reach its goal"


def _check_roads(links: Links, map_: NDArray[np.uint8]) -> None:
    n, slots = len(map_), map_[0].size
    assert links.target.shape[:2] == links.cost.shape[:2] == (n, slots), (
        f"links: expected [{n}, {slots}, actions], got {list(links.target.shape)} and {list(links.cost.shape)}"
    )
    assert (links.cost > 0).all(), "links: a road's cost is not positive"
    here = links.target == np.arange(slots)[None, :, None]
    assert (np.isinf(links.cost) == here).all(), "links: roads lead elsewhere, and where there is none the cost is inf"
    occupied = map_.reshape(n, slots) == 1
    ends = np.take_along_axis(occupied, links.target.reshape(n, -1), axis=1).reshape(links.target.shape)
    assert (ends & occupied[:, :, None])[~here].all(), "links: a road begins or ends at an empty slot"


def check_any_part_by_itself(spec: DatasetSpec) -> None:
    """Problem i depends on (spec, split, i) alone, so that shards can be made anywhere in any order."""
    for split in SPLITS:
        whole, later = _draw(spec, split, 0, 8), _draw(spec, split, 5, 8)
        for name in ("map", "goal", "label"):
            same = np.array_equal(getattr(later, name), getattr(whole, name)[5:])
            assert same, f"{name}: problems 5 to 7 of {split} are others when drawn by themselves"
    longer = _draw(spec.model_copy(update={"train": spec.train + 50}), "train", 0, 8)
    assert _same_maps(longer, _draw(spec, "train", 0, 8)), "a longer training split begins differently"


def _same_maps(one: Problems, other: Problems) -> bool:
    """Return whether the cells are the same, and what they cost where that differs."""
    if one.costs is None or other.costs is None:
        return np.array_equal(one.map, other.map)
    return np.array_equal(one.map, other.map) and np.array_equal(one.costs, other.costs)


def check_seeds(spec: DatasetSpec) -> None:
    """Another seed gives other problems."""
    first, other = _draw(spec, "train", 0, 8), _draw(spec.model_copy(update={"seed": spec.seed + 1}), "train", 0, 8)
    same = _same_maps(first, other) and np.array_equal(first.goal, other.goal)
    assert not same, "seeds 0 and 1 give the same problems"


def check_splits_share_no_map(spec: DatasetSpec) -> None:
    """No map is in two splits, by either rule of what is distinct."""
    for distinct in ("maps", "up_to_symmetry"):
        ruled = DatasetSpec.model_validate({**dict(spec), "distinct": distinct})
        drawn = [_draw(ruled, split, 0, ruled.count(split)) for split in SPLITS]
        found = [set(distinct_hashes(part.map, ruled, part.costs).tolist()) for part in drawn]
        shared = len((found[0] & found[1]) | (found[0] & found[2]) | (found[1] & found[2]))
        assert not shared, (
            f"distinct: {distinct}: {shared} maps are in more than one split; "
            "datagen.tasks.proposed.draw_proposed keeps them apart"
        )


def check_dataset(spec: DatasetSpec) -> None:
    """A dataset of the task is written and read back unchanged."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        parquet.make_dataset(spec, root)
        read = parquet.read_split(parquet.directory_of(spec, root), "train")
    drawn = _draw(spec, "train", 0, spec.train)
    for name in ("map", "goal", "distance", "optimal_actions", "label", "start", "costs"):
        assert np.array_equal(getattr(read, name), getattr(drawn, name)), f"{name} is another after writing and reading"


def check_any_sample_by_itself(spec: DatasetSpec) -> None:
    """Sample 7 of a split is the same when it is made alone, and every time."""
    make = TASKS[spec.task].draw()
    several, alone = cast(SampleColumns, make(spec, "train", 5, 9)), cast(SampleColumns, make(spec, "train", 7, 8))
    for name, values in several.items():
        assert np.array_equal(values[2:3], alone[name]), f"{name}: sample 7 is {alone[name][0]} alone, {values[2]} not"


def check_samples_are_kept(spec: DatasetSpec) -> None:
    """Samples that have been written are read as they were made."""
    with tempfile.TemporaryDirectory() as root:
        parquet.make_dataset(spec, Path(root))
        read = parquet.read_samples(parquet.directory_of(spec, Path(root)), "train")
    for name, values in cast(SampleColumns, TASKS[spec.task].draw()(spec, "train", 0, spec.train)).items():
        assert np.array_equal(read[name], values), f"{name}: what was read is not what was made"


EVERY_SAMPLES: tuple[Callable[[DatasetSpec], None], ...] = (check_any_sample_by_itself, check_samples_are_kept)
"""Of a task of samples (`datagen.tasks.samples`): with at least 9 training samples."""

EVERY_TASK: tuple[Callable[[DatasetSpec], None], ...] = (
    check_moves,
    check_vocabulary,
    check_labels,
    check_any_part_by_itself,
    check_seeds,
    check_splits_share_no_map,
    check_dataset,
)
