"""The kinds of map that the task `mazes` draws, and where their ways start."""

import numpy as np
import pytest
from pydantic import ValidationError

from datagen.options import MAZE_ALGORITHMS, MAZE_KINDS
from datagen.spec import first_problem
from datagen.storage.dataset import directory_of, make_dataset, read_split
from datagen.tasks.mazes import draw
from datagen.tasks.registry import DatasetSpec, dataset_id

NEW = ("percolated", "caves", "rooms", "spirals", "blocks")


def spec(size=15, test=12, **options):
    return DatasetSpec(
        task="mazes", map_size=size, train=0, valid=0, test=test, distinct="up_to_symmetry", options=options
    )


def drawn(size=15, test=12, **options):
    return draw(spec(size, test, **options), "test", 0, test)


def roads(maps):
    """Return how many pairs of neighbouring free cells there are on each map."""
    return (maps[:, 1:] & maps[:, :-1]).sum((1, 2)) + (maps[:, :, 1:] & maps[:, :, :-1]).sum((1, 2))


def neighbours(map_, row, column):
    return int(map_[row - 1, column]) + map_[row + 1, column] + map_[row, column - 1] + map_[row, column + 1]


def test_old_choices_have_their_old_names():
    assert dataset_id(DatasetSpec(task="mazes")) == "mazes-15-28d596b3daa1"
    chosen = DatasetSpec(task="mazes", options={"kinds": ["perfect"], "opened": 0.2})
    assert dataset_id(chosen) == "mazes-15-0e9f32b45562"


@pytest.mark.parametrize("size", [15, 18])
@pytest.mark.parametrize("algorithm", MAZE_ALGORITHMS)
def test_each_algorithm_carves_a_tree_over_all_rooms(algorithm, size):
    found = drawn(size, kinds=["perfect"], algorithm=algorithm)
    free = found.map.sum((1, 2))
    assert (np.isfinite(found.distance).sum((1, 2)) == free).all()
    assert (roads(found.map) == free - 1).all() and (free == 2 * (size // 2) ** 2 - 1).all()


def test_algorithms_differ_in_how_far_their_ways_lead():
    longest = {
        name: np.mean([d[np.isfinite(d)].max() for d in drawn(33, 20, kinds=["perfect"], algorithm=name).distance])
        for name in MAZE_ALGORITHMS
    }
    assert longest["depth_first"] > longest["wilson"] > longest["prim"]


def test_ranges_end_in_perfect_mazes_and_open_ones():
    for kind, name in (("percolated", "percolation"), ("thinned", "thinning")):
        perfect = drawn(kinds=[kind], **{name: 0}).map
        assert (roads(perfect) == perfect.sum((1, 2)) - 1).all()
    lattice = drawn(9, 1, kinds=["percolated"], percolation=0.999).map[0]
    assert lattice[1:-1, 1:-1].sum() == 49 - 9  # all but the pillars
    assert (drawn(9, 1, kinds=["thinned"], thinning=[0.99999, 1]).map[0][1:-1, 1:-1] == 1).all()


def test_shares_are_those_asked_for():
    for share in (0.05, 0.4):
        inside = drawn(99, 10, kinds=["noise"], noise=share).map[:, 1:-1, 1:-1]
        assert 1 - inside.mean() == pytest.approx(share, abs=0.01)
    walls = 2 * 49 * 48
    some, none = (drawn(99, 10, kinds=["percolated"], percolation=share).map.sum() for share in (0.1, 0))
    assert (some - none) / (10 * (walls - (49**2 - 1))) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("size", [9, 15, 18, 33])
def test_maps_are_walled_and_hang_together(kind, size):
    found = drawn(size, 8, kinds=[kind])
    inner = size - 1 if kind != "percolated" or size % 2 else size  # the last rooms of even sizes lie at the edge
    assert not found.map[:, 0].any() and not found.map[:, :, 0].any()
    assert not found.map[:, inner:].any() and not found.map[:, :, inner:].any()
    reached = np.isfinite(found.distance).sum((1, 2))
    assert (2 * reached >= found.map.sum((1, 2))).all() and (reached > 1).all()
    if kind in ("rooms", "spirals", "percolated"):
        assert (reached == found.map.sum((1, 2))).all()


def test_a_spiral_is_as_long_as_a_map_allows_and_rooms_are_not():
    spiral, room = (drawn(49, 8, kinds=[kind]).distance for kind in ("spirals", "rooms"))
    assert np.isfinite(spiral).sum((1, 2)).max() > 49**2 // 2 - 49
    assert spiral[np.isfinite(spiral)].max() > 2 * room[np.isfinite(room)].max()


@pytest.mark.parametrize("start", ["dead_end", "elsewhere"])
@pytest.mark.parametrize("kind", ["perfect", "noise", "percolated"])
def test_starts_are_in_dead_ends_or_not(kind, start):
    found = drawn(15, 20, kinds=[kind], start=start)
    for map_, goal, distance, (row, column) in zip(found.map, found.goal, found.distance, found.start, strict=True):
        assert 0 < distance[row, column] < np.inf and (row, column) != tuple(goal)
        assert (neighbours(map_, row, column) == 1) == (start == "dead_end")


def test_starts_are_kept_in_parquet(tmp_path):
    made = spec(9, 6, kinds=["perfect"], start="dead_end")
    make_dataset(made, tmp_path)
    stored = read_split(directory_of(made, tmp_path), "test")
    np.testing.assert_array_equal(stored.start, draw(made, "test", 0, 6).start)


def test_the_same_seed_gives_the_same_maps_in_any_order():
    every = spec(15, 40, kinds=list(MAZE_KINDS), start="elsewhere")
    whole, part = draw(every, "test", 0, 40), draw(every, "test", 23, 40)
    np.testing.assert_array_equal(whole.map[23:], part.map)
    np.testing.assert_array_equal(whole.start[23:], part.start)
    again = draw(every.model_copy(update={"seed": 1}), "test", 0, 40)
    assert not np.array_equal(whole.map, again.map)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"percolation": [0.5, 0.1]}, "percolation: expected the lowest first, got [0.5, 0.1]"),
        ({"noise": 1.5}, "noise.0: expected 1.0 or less, got 1.5"),
        ({"thinning": True}, "thinning: expected a list, got True"),
        ({"kinds": ["cave"]}, "kinds.0: expected"),
    ],
)
def test_what_no_map_can_have_is_refused(options, said):
    with pytest.raises(ValidationError) as refused:
        spec(**options)
    assert said in first_problem(refused.value)


def test_a_size_without_such_maps_is_told():
    with pytest.raises(
        ValueError, match="no perfect maze of size 5 with a start of 'elsewhere' belongs to split 'valid'"
    ):
        draw(spec(5, kinds=["perfect"], start="elsewhere").model_copy(update={"valid": 4}), "valid", 0, 4)
