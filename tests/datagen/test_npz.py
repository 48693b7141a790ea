"""The GPPN layout: exact round trips for every task, and one clear message for every malformed file."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest

import datagen.storage.dataset as parquet
import datagen.storage.npz as npz
from datagen.expert.grid import goal_distances, optimal_actions, tied_actions
from datagen.storage.dataset import (
    directory_of,
    finish_dataset,
    is_complete,
    load_manifest,
    missing_shards,
    read_split,
    shards,
    store_shard,
    write_shard,
)
from datagen.storage.manifest import DatasetError
from datagen.storage.npz import export_npz, import_npz
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, dataset_id

PARTS = ("map", "goal", "distance", "optimal_actions", "label")
SPECS = {
    "navigation": DatasetSpec(map_size=9, train=23, valid=5, test=7, seed=1),
    "manipulation": DatasetSpec(task="manipulation", map_size=18, train=8, valid=2, test=3),
    "workspace_manipulation": DatasetSpec(task="workspace_manipulation", map_size=18, train=8, valid=2, test=3),
    "visual_navigation": DatasetSpec(task="visual_navigation", map_size=7, train=5, valid=2, test=3),
}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(parquet, "PROBLEMS_PER_SHARD", 10)
    monkeypatch.setattr(npz, "_PIECE_BYTES", 20_000)


def make(spec, root):
    """Write a set; panoramas are noise, for this is about their bytes and not about rendering."""
    if spec.task != "visual_navigation":
        for shard in shards(spec):
            write_shard(spec, shard, root)
    else:
        rng = np.random.default_rng(0)
        plain = DatasetSpec(map_size=spec.map_size)
        for shard in shards(spec):
            problems = TASKS["navigation"].draw()(plain, shard.split, shard.start, shard.stop)
            shape = (len(problems), *TASKS[spec.task].observation_shape(spec))
            images = rng.integers(0, 256, shape, np.uint8)
            store_shard(spec, shard, replace(problems, observation=images), directory_of(spec, root))
    finish_dataset(spec, root)
    return root / dataset_id(spec)


def same(first, second, observation=True):
    for name in PARTS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    if observation:
        np.testing.assert_array_equal(first.observation, second.observation)


@pytest.mark.slow
@pytest.mark.parametrize("task", SPECS)
@pytest.mark.parametrize("order", ["4abs-cc", "news"])
def test_round_trip(task, order, tmp_path):
    spec = SPECS[task]
    directory = make(spec, tmp_path)
    export_npz(directory, tmp_path / "a.npz", actions=order)
    brought = import_npz(tmp_path / "a.npz", task, tmp_path / "lab", actions=order)
    for split in SPLITS:
        same(read_split(directory, split), read_split(brought, split))
    manifest = load_manifest(brought)
    assert manifest.source == "imported" and manifest.shared_maps == 0
    assert is_complete(manifest.spec, tmp_path / "lab")
    export_npz(brought, tmp_path / "b.npz", actions=order)
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        assert first.files == second.files == [f"arr_{i}" for i in range(len(first.files))]
        for name in first.files:
            assert first[name].dtype == second[name].dtype
            np.testing.assert_array_equal(first[name], second[name])
    # The set is named by what it says, not by the file it came in.
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as file:
        np.savez(tmp_path / "plain.npz", *(file[name] for name in file.files))
    assert import_npz(tmp_path / "plain.npz", task, tmp_path / "lab", actions=order) == brought


def test_layout_of_the_file(tmp_path):
    spec = SPECS["navigation"]
    directory = make(spec, tmp_path)
    export_npz(directory, tmp_path / "a.npz")
    problems = read_split(directory, "valid")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert [file[name].shape for name in file.files] == [
            shape for n in (23, 5, 7) for shape in ((n, 9, 9), (n, 1, 9, 9), (n, 4, 1, 9, 9))
        ]
        assert {file[name].dtype for name in file.files} == {np.dtype(np.float64)}
        np.testing.assert_array_equal(file["arr_3"], problems.map)
        assert [tuple(np.argwhere(g)[0]) for g in file["arr_4"][:, 0]] == [tuple(g) for g in problems.goal]
        np.testing.assert_array_equal(file["arr_5"][:, :, 0].argmax(axis=1), problems.label)
        assert (file["arr_5"].sum(axis=1) == 1).all()


def test_layout_of_observations(tmp_path):
    export_npz(make(SPECS["visual_navigation"], tmp_path), tmp_path / "visual.npz")
    export_npz(make(SPECS["workspace_manipulation"], tmp_path), tmp_path / "workspace.npz")
    with np.load(tmp_path / "visual.npz") as file:
        assert file["arr_10"].shape == (2, 7, 7, 4, 32, 32, 3) and file["arr_10"].dtype == np.uint8
    with np.load(tmp_path / "workspace.npz") as file:
        assert file["arr_9"].shape == (8, 1, 96, 96) and file["arr_9"].dtype == np.float64


def test_a_picture_of_a_workspace_is_of_zeros_and_ones(tmp_path):
    export_npz(make(SPECS["workspace_manipulation"], tmp_path), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    for number in (9, 10, 11):
        arrays[f"arr_{number}"] = arrays[f"arr_{number}"].astype(np.uint8) * 255
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(DatasetError, match="arr_9: a pixel should be 0 or 1, got 255 in problem 0"):
        import_npz(tmp_path / "b.npz", "workspace_manipulation", tmp_path / "lab")


@pytest.mark.parametrize("task", ["navigation", "manipulation"])
def test_full_policies_survive(task, tmp_path):
    directory = make(SPECS[task], tmp_path)
    export_npz(directory, tmp_path / "a.npz", labels="full")
    brought = import_npz(tmp_path / "a.npz", task, tmp_path / "lab")
    export_npz(brought, tmp_path / "b.npz", labels="full")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    problems = read_split(brought, "train")
    tied = tied_actions(problems.map, problems.distance, TASKS[task].moves)
    assert (tied >> problems.label & 1).all()
    optimal = problems.optimal_actions
    np.testing.assert_array_equal(tied[optimal != 0], optimal[optimal != 0])


@pytest.mark.parametrize("names", ["compact", "gaps"])
def test_maps_and_goals_only_get_labels(names, tmp_path):
    directory = make(SPECS["manipulation"], tmp_path)
    export_npz(directory, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        kept = {name: file[name] for name in ("arr_0", "arr_1", "arr_3", "arr_4", "arr_6", "arr_7")}
    if names == "compact":
        np.savez(tmp_path / "maps.npz", *kept.values())
    else:
        np.savez(tmp_path / "maps.npz", **kept)
    brought = import_npz(tmp_path / "maps.npz", "manipulation", tmp_path / "lab")
    problems, original = read_split(brought, "train"), read_split(directory, "train")
    np.testing.assert_array_equal(problems.distance, original.distance)
    np.testing.assert_array_equal(problems.optimal_actions, original.optimal_actions)
    moves = TASKS["manipulation"].moves
    np.testing.assert_array_equal(problems.distance, goal_distances(problems.map, problems.goal, moves))
    np.testing.assert_array_equal(problems.optimal_actions, optimal_actions(problems.map, problems.distance, moves))
    reach = problems.optimal_actions != 0
    assert (problems.optimal_actions >> problems.label & 1)[reach].all()


def test_shared_maps_are_counted_and_named(tmp_path):
    export_npz(make(SPECS["navigation"], tmp_path), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        arrays = [file[name] for name in file.files]
    for kind in range(3):
        arrays[6 + kind][:2] = arrays[kind][:2]
    np.savez(tmp_path / "b.npz", *arrays)
    directory = import_npz(tmp_path / "b.npz", "navigation", tmp_path / "lab")
    assert load_manifest(directory).shared_maps == 2
    assert "2 maps are in more than one split" in (directory / "README.md").read_text()


def test_fortran_order_and_empty_splits(tmp_path):
    export_npz(make(SPECS["navigation"], tmp_path), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        arrays = [np.asfortranarray(file[name]) for name in file.files]
    np.savez(tmp_path / "b.npz", *arrays)
    first = import_npz(tmp_path / "a.npz", "navigation", tmp_path / "lab")
    assert import_npz(tmp_path / "b.npz", "navigation", tmp_path / "lab") == first
    np.savez(tmp_path / "c.npz", *[array if k < 3 else array[:0] for k, array in enumerate(arrays)])
    brought = import_npz(tmp_path / "c.npz", "navigation", tmp_path / "lab")
    assert len(read_split(brought, "train")) == 23 and len(read_split(brought, "test")) == 0


def test_a_damaged_imported_set_is_not_generated(tmp_path):
    export_npz(make(SPECS["navigation"], tmp_path), tmp_path / "a.npz")
    brought = import_npz(tmp_path / "a.npz", "navigation", tmp_path / "lab")
    spec = load_manifest(brought).spec
    victim = shards(spec)[0]
    content = (brought / victim.name).read_bytes()
    (brought / victim.name).write_bytes(content[:-1])
    assert missing_shards(spec, tmp_path / "lab") == [victim]
    with pytest.raises(DatasetError, match="import its file again"):
        write_shard(spec, victim, tmp_path / "lab")
    import_npz(tmp_path / "a.npz", "navigation", tmp_path / "lab")
    assert (brought / victim.name).read_bytes() == content and is_complete(spec, tmp_path / "lab")


def _set(arrays, number, index, value):
    arrays[number] = arrays[number].copy()
    arrays[number][index] = value


MALFORMED = {
    "value": (lambda a: _set(a, 0, (3, 1, 1), 0.5), r"arr_0: a cell should be 0 or 1, got 0.5 in problem"),
    "nan": (lambda a: _set(a, 3, (0, 1, 1), np.nan), r"arr_3: a cell should be 0 or 1, got nan"),
    "two goals": (lambda a: _set(a, 1, (2, 0), 1), r"arr_1: problem 2 should have exactly one goal"),
    "no goal": (lambda a: _set(a, 7, (1, 0), 0), r"arr_7: problem 1 should have exactly one goal"),
    "no action": (lambda a: _set(a, 2, (0, slice(None), 0, 4, 4), 0), r"arr_2: problem 0 has a cell without"),
    "two actions": (lambda a: _set(a, 2, (0, slice(None), 0, 4, 4), 1), r"arr_2: problem 0 has several actions"),
    "size": (lambda a: a.__setitem__(3, a[3][:, :8, :8]), r"arr_3: valid maps should be \[5, 9, 9\], got \[5, 8, 8\]"),
    "count": (lambda a: a.__setitem__(4, a[4][:4]), r"arr_4: valid goal maps should be \[5, 1, 9, 9\], got"),
    "actions": (lambda a: a.__setitem__(2, a[2][:, :3]), r"arr_2: train policies should be \[23, 4, 1, 9, 9\]"),
    "oblong": (lambda a: a.__setitem__(0, a[0][:, :8]), r"arr_0: train maps should be \[23, 8, 8\], got \[23, 8, 9\]"),
    "objects": (lambda a: a.__setitem__(0, np.array([{}, 1], object)), r"arr_0: expected numbers, got object"),
    "too few": (lambda a: a.pop(), r"expected arr_0 .. arr_8 .*found arr_0, "),
    "observations": (lambda a: a.extend(a[:3]), r"arr_9: task 'navigation' has no observations"),
    "scalar": (lambda a: a.__setitem__(6, np.float64(1)), r"arr_6: maps should be \[N, m, m\], got a single number"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused(case, tmp_path):
    export_npz(make(SPECS["navigation"], tmp_path), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        arrays = [file[name] for name in file.files]
    change, message = MALFORMED[case]
    change(arrays)
    np.savez(tmp_path / "b.npz", *arrays)
    with pytest.raises(DatasetError, match=message):
        import_npz(tmp_path / "b.npz", "navigation", tmp_path / "lab")
    assert not list((tmp_path / "lab").glob("*/manifest.json"))


def test_other_action_orders_and_moves_are_noticed(tmp_path):
    directory = make(SPECS["navigation"], tmp_path)
    export_npz(directory, tmp_path / "news.npz", actions="news")
    with pytest.raises(DatasetError, match=r"not optimal.*in another order: read it with --actions news"):
        import_npz(tmp_path / "news.npz", "navigation", tmp_path / "lab")
    export_npz(make(SPECS["manipulation"], tmp_path), tmp_path / "torus.npz")
    with pytest.raises(DatasetError, match=r"not optimal; expected the order north, west, south, east$"):
        import_npz(tmp_path / "torus.npz", "navigation", tmp_path / "lab")
    export_npz(directory, tmp_path / "full.npz", labels="full", actions="news")
    with pytest.raises(DatasetError, match=r"several actions.*read it with --actions news"):
        import_npz(tmp_path / "full.npz", "navigation", tmp_path / "lab")
    export_npz(directory, tmp_path / "ours.npz", labels="full")
    with pytest.raises(DatasetError, match=r"several actions.*read it with --actions 4abs-cc"):
        import_npz(tmp_path / "ours.npz", "navigation", tmp_path / "lab", actions="news")


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(DatasetError, match=r"missing\.npz: no such file"):
        import_npz(tmp_path / "missing.npz", "navigation", tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DatasetError, match=r"text\.npz: not an \.npz file"):
        import_npz(tmp_path / "text.npz", "navigation", tmp_path)
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DatasetError, match=r"unknown array 'readme\.txt'"):
        import_npz(tmp_path / "odd.npz", "navigation", tmp_path)
    with pytest.raises(DatasetError, match="needs observations"):
        export_npz(make(SPECS["navigation"], tmp_path), tmp_path / "a.npz")
        import_npz(tmp_path / "a.npz", "visual_navigation", tmp_path)
    for task, what in (("maze_unique", "name their starts"), ("terrain", "name their starts")):
        with pytest.raises(DatasetError, match=f"a.npz: problems of task '{task}' {what}, for which the layout has no"):
            import_npz(tmp_path / "a.npz", task, tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "onehot"}, "labels: expected 'one_hot' or 'full', got 'onehot'"),
        ({"actions": "NEWS"}, "actions: expected '4abs-cc' or 'news', got 'NEWS'"),
        ({"actions": None}, "actions: expected '4abs-cc' or 'news', got None"),
    ],
    ids=str,
)
def test_a_choice_that_there_is_not_is_told(tmp_path, options, message):
    directory = make(SPECS["navigation"], tmp_path)
    with pytest.raises(DatasetError, match=message):
        export_npz(directory, tmp_path / "a.npz", **options)
    assert not (tmp_path / "a.npz").exists()
    if "actions" in options:
        export_npz(directory, tmp_path / "a.npz")
        with pytest.raises(DatasetError, match=message):
            import_npz(tmp_path / "a.npz", "navigation", tmp_path / "lab", **options)


def test_a_truncated_array_is_refused(tmp_path):
    export_npz(make(SPECS["navigation"], tmp_path), tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as source, zipfile.ZipFile(tmp_path / "b.npz", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:-64] if name == "arr_5.npy" else content)
    with pytest.raises(DatasetError, match="arr_5: truncated or damaged"):
        import_npz(tmp_path / "b.npz", "navigation", tmp_path / "lab")
