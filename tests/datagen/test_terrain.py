"""Terrain: labels against brute force, pictures that tell the costs, and the publishers' own files."""

import hashlib
import heapq

import numpy as np
import pytest
from mutations import EXAMPLES, mutated

from datagen.expert.cells import cell_links, solve_cells
from datagen.expert.grid import solve
from datagen.problem import EIGHT, FOUR, Moves
from datagen.rendering.tiles import COSTS, picture, textures
from datagen.storage.dataset import load_manifest, make_dataset, read_split
from datagen.storage.manifest import DatasetError
from datagen.storage.npz import export_npz
from datagen.storage.terrain import import_terrain
from datagen.tasks.distinct import distinct_hashes
from datagen.tasks.registry import DatasetSpec
from datagen.tasks.terrain import draw
from orchestrator.cli.main import main

SPEC = DatasetSpec(task="terrain", map_size=7, train=9, valid=2, test=3, options={"pixels": 3, "ends": "anywhere"})
DEAR_DIAGONALS = Moves(EIGHT.names, EIGHT.offsets, (1.5, 1, 1.5, 1, 1, 1.5, 1, 1.5))


def cheapest(map_, costs, goal, moves):
    """Dijkstra's algorithm, spelled out."""
    distance = np.full(map_.shape, np.inf)
    distance[tuple(goal)] = 0
    queue = [(0.0, *map(int, goal))]
    while queue:
        reached, row, column = heapq.heappop(queue)
        for (down, right), price in zip(moves.offsets, moves.costs, strict=True):
            i, j = row - down, column - right
            if not (0 <= i < len(map_) and 0 <= j < map_.shape[1] and map_[i, j]):
                continue
            longer = reached + price * costs[row, column]
            if longer < distance[i, j]:
                distance[i, j] = longer
                heapq.heappush(queue, (longer, i, j))
    return distance


@pytest.mark.parametrize("moves", [FOUR, EIGHT, DEAR_DIAGONALS], ids=["four", "eight", "dear diagonals"])
def test_labels_are_those_of_cheapest_ways(moves):
    chance = np.random.default_rng(0)
    map_ = (chance.random((5, 6, 8)) < 0.8).astype(np.uint8)
    costs = chance.choice(np.float32([0.8, 1.2, 9.2]), map_.shape)
    goal = np.array([chance.permutation(np.argwhere(cells))[0] for cells in map_], np.int16)
    found = solve_cells(map_, goal, costs, moves, np.arange(5, dtype=np.uint64))
    for i in range(5):
        expected = cheapest(map_[i], costs[i], goal[i], moves)
        np.testing.assert_allclose(found.distance[i], expected, rtol=1e-5)
        for row, column in np.argwhere(found.optimal_actions[i] > 0):
            for action, (down, right) in enumerate(moves.offsets):
                at = row + down, column + right
                inside = 0 <= at[0] < 6 and 0 <= at[1] < 8 and map_[i][at]
                through = moves.costs[action] * costs[i][at] + expected[at] if inside else np.inf
                optimal = bool(found.optimal_actions[i, row, column] >> action & 1)
                assert optimal == (through <= expected[row, column] * (1 + 1e-6))
    away = found.optimal_actions > 0
    assert (found.optimal_actions >> found.label & 1)[away].all() and len(np.unique(found.label[away])) > 3
    assert ((found.optimal_actions > 0) == (np.isfinite(found.distance) & (found.distance > 0))).all()


def test_equal_costs_are_none():
    chance = np.random.default_rng(1)
    map_, goal = np.ones((3, 5, 5), np.uint8), chance.integers(5, size=(3, 2)).astype(np.int16)
    priced = solve_cells(map_, goal, np.ones(map_.shape, np.float32), EIGHT, np.zeros(3, np.uint64))
    plain = solve(map_, goal, EIGHT, np.zeros(3, np.uint64))
    for name in ("distance", "optimal_actions"):
        np.testing.assert_array_equal(getattr(priced, name), getattr(plain, name))


def test_a_terrain_is_what_its_options_say():
    for ends in ("corners", "anywhere"):
        options = SPEC.options.model_copy(update={"ends": ends})
        found = draw(SPEC.model_copy(update={"options": options}), "train", 0, 9)
        assert found.map.all() and found.observation.shape == (9, 3, 21, 21)
        assert set(np.unique(found.costs)) <= set(np.float32(COSTS))
        apart = np.abs(found.start.astype(int) - found.goal).max(1)
        if ends == "corners":
            assert (found.start == 0).all() and (found.goal == 6).all()
        else:
            assert apart.min() >= 4 and len(np.unique(found.goal, axis=0)) > 4


def test_the_pictures_have_not_changed():
    found = draw(SPEC, "test", 0, 3)
    assert hashlib.sha256(found.observation.tobytes() + found.start.tobytes()).hexdigest()[:16] == "69f7e79f2043a989"


def test_pictures_tell_kinds_apart_by_their_grain():
    chance = np.random.default_rng(2)
    kinds = chance.integers(len(COSTS), size=(30, 30)).astype(np.uint8)
    image = picture(kinds, 8, 0.0, chance)
    tiles = image.reshape(3, 30, 8, 30, 8).transpose(1, 3, 2, 4, 0)
    known = np.rint(255 * textures(8)).astype(np.uint8)
    assert all(
        any((tile == shown).all() for shown in known[kind])
        for tile, kind in zip(tiles.reshape(-1, 8, 8, 3), kinds.ravel(), strict=True)
    )
    means = textures(8).mean((1, 2, 3))
    assert np.abs(means[:3] - means[3:]).max() < 0.01 < np.abs(means[0] - means[1]).max()


def test_costs_tell_maps_apart_turned_or_not():
    found = draw(SPEC, "train", 0, 9)
    turned = np.rot90(found.costs, axes=(1, 2)).copy()
    tied, plain = (SPEC.model_copy(update={"distinct": rule}) for rule in ("up_to_symmetry", "maps"))
    assert np.array_equal(distinct_hashes(found.map, tied, turned), distinct_hashes(found.map, tied, found.costs))
    assert not np.isin(distinct_hashes(found.map, plain, turned), distinct_hashes(found.map, plain, found.costs)).any()
    assert len(np.unique(distinct_hashes(found.map, tied, found.costs))) == 9
    each = np.repeat(np.float32(COSTS), 1)[:, None, None] * np.ones((1, 5, 5), np.float32)
    assert len(np.unique(distinct_hashes(np.ones(each.shape, np.uint8), plain, each))) == len(COSTS)


def way_of(problems, i):
    """The cells of problem i's way by its labels, both ends included."""
    way, at = np.zeros(problems.map.shape[1:]), tuple(problems.start[i])
    while at != tuple(problems.goal[i]):
        way[at] = 1
        at = tuple(np.add(at, EIGHT.offsets[problems.label[i][at]]))
    way[at] = 1
    return way


def published(folder, split="train", change=lambda arrays: None, costs="costs"):
    """Write terrain in the publisher's layout, two goals a map with two starts each; return the arrays."""
    problems = draw(SPEC, "train", 0, 3)
    chance, free = np.random.default_rng(3), problems.map
    targets = np.stack([chance.permutation(49)[:2] for _ in range(3)])
    sources = np.stack([chance.permutation(49)[:4].reshape(2, 2) for _ in range(3)])
    targets, sources = (np.stack(np.divmod(places, 7), -1) for places in (targets, sources))
    paths = np.empty((3, 2, 2, 7, 7), np.uint8)
    for goal in range(2):
        for start in range(2):
            solved = solve_cells(
                free, targets[:, goal].astype(np.int16), problems.costs, EIGHT, np.arange(3, dtype=np.uint64)
            )
            solved = type(solved)(**{**vars(solved), "start": sources[:, goal, start].astype(np.int16)})
            paths[:, goal, start] = [way_of(solved, i) for i in range(3)]
    arrays = {
        "maps": problems.observation.transpose(0, 2, 3, 1),
        costs: problems.costs.astype(np.float64),
        "targets": targets,
        "sources": sources,
        "paths": paths,
        "exp_nodes": paths,
    }
    change(arrays)
    np.savez(folder / f"{split}.npz", **arrays)
    return arrays


def test_files_of_the_publishers_come_back_as_they_were(tmp_path, capsys):
    told = published(tmp_path)
    published(tmp_path, "validation", costs="tmaps")
    assert main(["import", str(tmp_path), "--task", "terrain", "--out", str(tmp_path / "sets")]) == 0
    directory = tmp_path / "sets" / capsys.readouterr().out.strip().rpartition("/")[2]
    spec = load_manifest(directory).spec
    assert (spec.map_size, spec.train, spec.valid, spec.test) == (7, 12, 12, 0) and spec.options.pixels == 3
    assert load_manifest(directory).shared_maps == 3
    found = read_split(directory, "train")
    places = [(n, goal, start) for n in range(3) for goal in range(2) for start in range(2)]
    for i, (n, goal, start) in enumerate(places):
        np.testing.assert_array_equal(found.observation[i].transpose(1, 2, 0), told["maps"][n])
        np.testing.assert_array_equal(found.costs[i], told["costs"][n].astype(np.float32))
        np.testing.assert_array_equal(found.goal[i], told["targets"][n, goal])
        np.testing.assert_array_equal(found.start[i], told["sources"][n, goal, start])
        np.testing.assert_array_equal(way_of(found, i), told["paths"][n, goal, start])
    card = (directory / "README.md").read_text()
    assert "`costs` | float32 [7, 7]" in card and "path: valid-*" in card and "path: test-*" not in card
    with pytest.raises(DatasetError, match="for which the layout has no place"):
        export_npz(directory, tmp_path / "out.npz")


def test_pictures_may_be_floats(tmp_path):
    told = published(tmp_path, change=lambda arrays: arrays.update(maps=arrays["maps"].astype(np.float32) / 255))
    found = read_split(import_terrain(str(tmp_path), str(tmp_path / "sets")), "train")
    np.testing.assert_allclose(found.observation[0].transpose(1, 2, 0) / 255, told["maps"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: a.pop("paths"), "'paths' is not there"),
        (lambda a: a.update(costs=a["costs"][:, :, :5]), "costs: expected as many rows|paths should be"),
        (
            lambda a: a.update(maps=a["maps"][:, :0, :0], costs=a["costs"][:, :0, :0], paths=a["paths"][..., :0, :0]),
            "costs: expected as many rows as columns, and some, got",
        ),
        (lambda a: a.update(costs=-a["costs"]), r"costs: map 0: entry \[0, 0\] is not positive"),
        (lambda a: a.update(targets=a["targets"] + 7), r"targets: map 0: entry \[0, 0\] is on no tile"),
        (lambda a: a.update(costs=a["costs"] * 1e300), r"costs: map 0: entry \[0, 0\] is not positive and finite"),
        (lambda a: a.update(targets=a["targets"] * np.nan), r"targets: map 0: entry \[0, 0\] is on no tile"),
        (lambda a: a.update(sources=a["sources"] + 1e300), r"sources: map 0: entry \[0, 0, 0\] is on no tile"),
        (lambda a: a.update(sources=a["sources"][:, :1]), "targets should be"),
        (lambda a: a.update(maps=a["maps"][:, :-1]), "maps should be"),
        (lambda a: a.update(maps=a["maps"] * 2.0), "maps: map 0: .* is neither uint8 nor 0..1"),
        (lambda a: a["paths"].__setitem__(1, 1), r"paths: map 1: entry \[0, 0\] is not the cheapest way"),
        (lambda a: a["paths"].__setitem__(0, 0), r"paths: map 0: entry \[0, 0\] is not the cheapest way"),
        (lambda a: a.update(paths=a["paths"] + 1), "paths: map 0: .* is neither 0 nor 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, change, told):
    published(tmp_path, change=change)
    with pytest.raises(DatasetError, match=told) as caught:
        import_terrain(tmp_path, tmp_path / "sets")
    assert str(tmp_path / "train.npz") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "sets").exists()


def test_a_folder_without_files_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"expected a folder with train\.npz"):
        import_terrain(tmp_path, tmp_path / "sets")


def test_fuzzed_terrain_is_refused_or_says_the_same(tmp_path):
    published(tmp_path)
    path, refused = tmp_path / "train.npz", 0
    content = path.read_bytes()
    whole = read_split(import_terrain(tmp_path, tmp_path / "sets"), "train")
    for number in range(EXAMPLES):
        path.write_bytes(mutated(content, number))
        try:
            found = read_split(import_terrain(tmp_path, tmp_path / f"sets{number}"), "train")
        except DatasetError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # members carry checksums; what nobody reads may be damaged
            for name in ("map", "costs", "goal", "start", "label", "observation"):
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert refused > EXAMPLES // 3


def test_a_set_is_made_and_read_with_its_costs(tmp_path):
    make_dataset(SPEC, tmp_path)
    found = read_split(next(tmp_path.iterdir()), "test")
    drawn = draw(SPEC, "test", 0, 3)
    np.testing.assert_array_equal(found.costs, drawn.costs)
    assert found[1:].costs.shape == (2, 7, 7) and found.take(np.array([2])).costs.shape == (1, 7, 7)
    links = cell_links(found.map, found.costs, EIGHT)
    assert np.isfinite(links.cost).sum(axis=(1, 2)).tolist() == [3 * (4 * 7 * 6 + 4 * 6 * 6) // 3] * 3
