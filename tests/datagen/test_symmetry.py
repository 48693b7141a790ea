"""Maps that are one problem turned, mirrored or shifted have one hash, and are in one split."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from datagen.problem import FOUR, FOUR_WRAP, Moves
from datagen.sampling.unique_maps import map_hashes, owner
from datagen.tasks import navigation
from datagen.tasks.distinct import distinct_hashes, ways_of_reading
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec

SYMMETRIC = "up_to_symmetry"
GOLDEN = {"navigation": "30d322327daadf90", "manipulation": "4cbc2e7dd0bfa468"}


def turned(map_):
    """Return the map in its eight directions, those of its own shape."""
    every = [np.rot90(part, k) for part in (map_, map_[:, ::-1]) for k in range(4)]
    return [part for part in every if part.shape == map_.shape]


def shifted(map_):
    return [np.roll(map_, (i, j), (0, 1)) for i in range(map_.shape[0]) for j in range(map_.shape[1])]


def orbit(map_, wrap):
    return [part for one in turned(map_) for part in (shifted(one) if wrap else [one])]


@pytest.fixture
def task(monkeypatch):
    """Return a function that registers a task of given moves and shape and returns its spec."""

    def registered(moves, shape):
        monkeypatch.setitem(TASKS, "any", replace(TASKS["navigation"], moves=moves, map_shape=lambda _: shape))
        return DatasetSpec(task="any", distinct=SYMMETRIC)

    return registered


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", [(7, 7), (6, 9), (5, 70)])
def test_all_readings_of_a_map_have_one_hash_and_other_maps_another(shape, wrap, task):
    spec = task(FOUR_WRAP if wrap else FOUR, shape)
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 2, (6, *shape), np.uint8)
    orbits = [distinct_hashes(np.array(orbit(map_, wrap)[:300]), spec) for map_ in maps]
    assert all(len(set(hashes.tolist())) == 1 for hashes in orbits)
    assert len({int(hashes[0]) for hashes in orbits}) == 6
    one_cell = maps[0].copy()
    one_cell[2, 3] ^= 1
    assert distinct_hashes(one_cell[None], spec)[0] != orbits[0][0]


def test_the_hash_tells_apart_exactly_what_no_symmetry_joins(task):
    """Over all maps of 3 x 3: as many hashes as there are classes, counted by brute force."""
    every = np.array([[(number >> bit) & 1 for bit in range(9)] for number in range(512)], np.uint8).reshape(-1, 3, 3)
    for moves, wrap in ((FOUR, False), (FOUR_WRAP, True)):
        classes = [min(part.tobytes() for part in orbit(map_, wrap)) for map_ in every]
        hashes = distinct_hashes(every, task(moves, (3, 3)))
        assert len(set(zip(classes, hashes.tolist(), strict=True))) == len(set(classes)) == len(set(hashes.tolist()))


def ways(spec):
    """Return in how many directions the maps may be read."""
    directions = ways_of_reading(spec).directions
    return len(directions) + int(directions[:, 3].sum())


def test_only_what_leaves_the_moves_as_they_are_counts(task):
    uphill = Moves(costs=(2.0, 1.0, 1.0, 1.0))  # mirrored east and west alone
    assert ways(task(uphill, (7, 7))) == 2
    knight = Moves(names=("a", "b"), offsets=((1, 2), (-1, -2)), costs=(1.0, 1.0))  # half turns alone
    assert ways(task(knight, (7, 7))) == 2
    assert ways(task(FOUR, (6, 9))) == 4 and ways(task(FOUR_WRAP, (6, 6))) == 8
    roads = Moves(links="somewhere:read")
    spec = task(roads, (7, 7))
    maps = np.random.default_rng(0).integers(0, 2, (4, 7, 7), np.uint8)
    np.testing.assert_array_equal(distinct_hashes(maps, spec), map_hashes(maps))


def test_the_first_rule_is_cell_for_cell():
    maps = np.random.default_rng(0).integers(0, 2, (4, 7, 7), np.uint8)
    np.testing.assert_array_equal(distinct_hashes(maps, DatasetSpec(map_size=7)), map_hashes(maps))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("navigation", 9), ("manipulation", 8)])
def test_no_test_map_is_a_training_map_turned_or_shifted(name, size):
    """By brute force, and not so by the first rule."""
    wrap = TASKS[name].moves.wrap
    found = {}
    for rule in ("maps", SYMMETRIC):
        spec = DatasetSpec(task=name, map_size=size, distinct=rule)
        parts = [TASKS[name].draw()(spec, split, 0, 200 if split == "train" else 50).map for split in SPLITS]
        train, *others = [[min(part.tobytes() for part in orbit(map_, wrap)) for map_ in maps] for maps in parts]
        found[rule] = [len(set(train) & set(other)) for other in others] + [len(set(others[0]) & set(others[1]))]
        hashes = [distinct_hashes(maps, spec) for maps in parts]
        assert [{int(owner(h)) for h in part} for part in hashes] == [{0}, {1}, {2}]
        if rule == SYMMETRIC:
            assert len({*train, *others[0], *others[1]}) == 300
    assert found[SYMMETRIC] == [0, 0, 0] and sum(found["maps"]) > 0


@pytest.mark.parametrize("size", [5, 6, 7])
def test_even_the_smallest_sizes_have_maps_for_every_split(size):
    for split in SPLITS:
        assert len(navigation.draw(DatasetSpec(map_size=size, distinct=SYMMETRIC), split, 0, 12)) == 12


@pytest.mark.parametrize("name", GOLDEN)
def test_the_numbers_have_not_changed(name):
    """A change here makes every dataset of the task another one under the same id."""
    spec = DatasetSpec(task=name, map_size=15, distinct=SYMMETRIC)
    problems = [TASKS[name].draw()(spec, split, 7, 47) for split in SPLITS]
    content = b"".join(part.map.tobytes() + part.goal.tobytes() + part.label.tobytes() for part in problems)
    assert hashlib.sha256(content).hexdigest()[:16] == GOLDEN[name]
