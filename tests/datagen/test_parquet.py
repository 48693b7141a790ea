"""Datasets on disk: same bytes whoever writes them; damage is found, and only what is damaged is made again."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import datagen.storage.dataset as parquet
from datagen.problem import Problems
from datagen.storage.dataset import (
    directory_of,
    finish_dataset,
    is_complete,
    load_manifest,
    make_dataset,
    missing_shards,
    read_split,
    shards,
    write_shard,
)
from datagen.storage.manifest import DatasetError, card
from datagen.storage.schema import problems_from_table
from datagen.tasks.navigation import draw
from datagen.tasks.registry import MOST_ROWS, SPLITS, DatasetSpec, dataset_id

SPEC = DatasetSpec(map_size=7, train=25, valid=10, test=1, seed=3)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # reads the libraries once for all of them
PARTS = ("map", "goal", "distance", "optimal_actions", "label")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(parquet, "PROBLEMS_PER_SHARD", 10)


def make(root, spec=SPEC, order=1):
    for shard in shards(spec)[::order]:
        write_shard(spec, shard, root)
    return finish_dataset(spec, root)


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _write(job):
    spec, shard, root = job
    parquet.PROBLEMS_PER_SHARD = 10
    write_shard(spec, shard, root)


def test_shards_cover_every_split():
    found = shards(SPEC)
    assert [s.name for s in found] == [
        "train-00000-of-00003.parquet",
        "train-00001-of-00003.parquet",
        "train-00002-of-00003.parquet",
        "valid-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    ]
    assert [(s.start, s.stop) for s in found] == [(0, 10), (10, 20), (20, 25), (0, 10), (0, 1)]


def test_what_is_read_is_what_was_drawn(tmp_path):
    manifest = make(tmp_path)
    directory = tmp_path / dataset_id(SPEC)
    assert is_complete(SPEC, tmp_path) and missing_shards(SPEC, tmp_path) == []
    assert load_manifest(directory) == manifest
    for split in SPLITS:
        found, expected = read_split(directory, split), draw(SPEC, split, 0, SPEC.count(split))
        for name in PARTS:
            assert getattr(found, name).dtype == getattr(expected, name).dtype
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.observation is None and found.obstacles is None


@pytest.mark.slow
def test_the_largest_maps_are_stored(tmp_path):
    spec = DatasetSpec(task="mazes", map_size=MOST_ROWS, train=0, valid=0, test=1, options={"kinds": ["perfect"]})
    make(tmp_path, spec)
    (distance,) = read_split(directory_of(spec, tmp_path), "test").distance
    assert distance.shape == (2001, 2001) and np.isfinite(distance).sum() == 1999999  # a tree of 1000^2 cells
    with pytest.raises(ValueError, match="less than or equal to 2001"):
        DatasetSpec(map_size=MOST_ROWS + 1)


@pytest.mark.slow
def test_bytes_depend_on_the_spec_alone(tmp_path):
    make(tmp_path / "forwards")
    make(tmp_path / "backwards", order=-1)
    jobs = [(SPEC, shard, tmp_path / "processes") for shard in shards(SPEC)]
    with PROCESSES.Pool(2) as pool:
        pool.map(_write, jobs, chunksize=1)
    finish_dataset(SPEC, tmp_path / "processes")
    assert digests(tmp_path / "forwards") == digests(tmp_path / "backwards") == digests(tmp_path / "processes")


def test_a_longer_split_begins_with_the_shorter(tmp_path):
    longer = SPEC.model_copy(update={"train": 40})
    make(tmp_path)
    make(tmp_path, longer)
    short = read_split(tmp_path / dataset_id(SPEC), "train")
    long = read_split(tmp_path / dataset_id(longer), "train")
    np.testing.assert_array_equal(short.map, long.map[:25])
    np.testing.assert_array_equal(short.label, long.label[:25])


def test_interrupted_generation_goes_on_with_what_is_missing(tmp_path):
    first, second, *rest = shards(SPEC)
    assert missing_shards(SPEC, tmp_path) == [first, second, *rest]
    write_shard(SPEC, first, tmp_path)
    write_shard(SPEC, second, tmp_path)
    assert not is_complete(SPEC, tmp_path)
    assert missing_shards(SPEC, tmp_path) == rest
    directory = directory_of(SPEC, tmp_path)
    # Killed between the shard and its sum: the shard counts as missing.
    (directory / f"{second.name}.sum.json").unlink()
    assert missing_shards(SPEC, tmp_path) == [second, *rest]
    # Killed while writing the sum, or a sum of older code.
    (directory / f"{first.name}.sum.json").write_text('{"name": "tr')
    assert missing_shards(SPEC, tmp_path) == [first, second, *rest]
    with pytest.raises(DatasetError, match=first.name):
        finish_dataset(SPEC, tmp_path)
    with pytest.raises(DatasetError, match=r"manifest\.json: no such file"):
        load_manifest(directory)
    make_dataset(SPEC, tmp_path)
    make(tmp_path / "fresh")
    assert digests(directory) == digests(tmp_path / "fresh" / dataset_id(SPEC))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_found_and_made_again(tmp_path, damage, finished):
    for shard in shards(SPEC):
        write_shard(SPEC, shard, tmp_path)
    if finished:
        finish_dataset(SPEC, tmp_path)
    victim = shards(SPEC)[1]
    path = directory_of(SPEC, tmp_path) / victim.name
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-7])
    elif damage == "flip":
        path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    else:
        path.unlink()
    assert missing_shards(SPEC, tmp_path) == [victim]
    assert not is_complete(SPEC, tmp_path)
    with pytest.raises(DatasetError, match=victim.name):
        finish_dataset(SPEC, tmp_path)
    if finished:
        with pytest.raises(DatasetError, match=victim.name):
            read_split(path.parent, "train")
        assert len(read_split(path.parent, "valid")) == 10
    write_shard(SPEC, victim, tmp_path)
    finish_dataset(SPEC, tmp_path)
    assert path.read_bytes() == content
    assert is_complete(SPEC, tmp_path)


def _write_until_killed(root):
    """Die by SIGKILL when the third shard is written but not yet in its place."""
    parquet.PROBLEMS_PER_SHARD = 10
    rename, renamed = os.replace, []

    def dying(source, target):
        if str(target).endswith(".parquet"):
            renamed.append(target)
        if len(renamed) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = dying
    for shard in shards(SPEC):
        write_shard(SPEC, shard, root)


@pytest.mark.slow
def test_a_killed_writer_leaves_a_state_to_go_on_from(tmp_path):
    worker = PROCESSES.Process(target=_write_until_killed, args=(tmp_path / "killed",))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    (left,) = directory_of(SPEC, tmp_path / "killed").glob(".*.tmp")
    assert missing_shards(SPEC, tmp_path / "killed") == shards(SPEC)[2:]
    make_dataset(SPEC, tmp_path / "killed")
    assert left.exists(), "it may be a live writer's"
    os.utime(left, (1, 1))
    finish_dataset(SPEC, tmp_path / "killed")
    make(tmp_path / "whole")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_shards_of_other_code_are_not_mixed_in(tmp_path, monkeypatch):
    write_shard(SPEC, shards(SPEC)[0], tmp_path)
    monkeypatch.setattr(parquet, "code_hash", lambda task: "f" * 16)
    assert missing_shards(SPEC, tmp_path) == shards(SPEC)


def test_a_whole_set_of_older_code_stays_but_is_not_mended_by_newer(tmp_path, monkeypatch):
    older = make(tmp_path)
    monkeypatch.setattr(parquet, "code_hash", lambda task: "f" * 16)
    assert is_complete(SPEC, tmp_path) and missing_shards(SPEC, tmp_path) == []
    assert load_manifest(directory_of(SPEC, tmp_path)).code == older.code != "f" * 16
    (directory_of(SPEC, tmp_path) / shards(SPEC)[2].name).unlink()
    assert missing_shards(SPEC, tmp_path) == shards(SPEC)


def test_disk_full_is_one_clear_message_and_resumable(tmp_path, monkeypatch):
    first, second, *_ = shards(SPEC)
    write_shard(SPEC, first, tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DatasetError, match=f"{second.name}.*No space left on device.*run the same command again"):
            write_shard(SPEC, second, tmp_path)
    left = sorted(path.name for path in directory_of(SPEC, tmp_path).iterdir())
    assert left == [first.name, f"{first.name}.sum.json"]
    assert first not in missing_shards(SPEC, tmp_path)
    make(tmp_path)


def test_a_map_in_two_splits_is_refused(tmp_path, monkeypatch):
    make_it = {"train": "train", "valid": "train", "test": "test"}
    monkeypatch.setattr(
        "datagen.tasks.navigation.draw", lambda spec, split, start, stop: draw(spec, make_it[split], start, stop)
    )
    with pytest.raises(DatasetError, match="10 maps are in more than one split"):
        make(tmp_path)
    assert not is_complete(SPEC, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("shards"), "shards: Field required"),
        (lambda m: m["shards"][0].update(sha256="0"), "shards.0.sha256"),
        (lambda m: m.update(surprise=1), ".*surprise"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path, change, message):
    make(tmp_path)
    path = directory_of(SPEC, tmp_path) / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"manifest.json: {message}"):
        load_manifest(path.parent)


def test_an_imported_set_cannot_be_generated(tmp_path):
    spec = DatasetSpec(map_size=7, train=5, valid=0, test=0, imported="0" * 64)
    with pytest.raises(DatasetError, match="imported"):
        write_shard(spec, shards(spec)[0], tmp_path)


def test_empty_splits_are_read_as_empty(tmp_path):
    spec = DatasetSpec(map_size=7, train=0, valid=3, test=0)
    make(tmp_path, spec)
    assert read_split(directory_of(spec, tmp_path), "train").map.shape == (0, 7, 7)


def test_the_file_explains_itself(tmp_path):
    make(tmp_path)
    directory = directory_of(SPEC, tmp_path)
    schema = pq.read_schema(directory / shards(SPEC)[0].name)
    assert json.loads(schema.metadata[b"actions"]) == ["north", "west", "south", "east"]
    assert json.loads(schema.metadata[b"wrap"]) is False
    assert json.loads(schema.metadata[b"moves"]) == [[-1, 0], [0, -1], [1, 0], [0, 1]]
    assert DatasetSpec.model_validate_json(schema.metadata[b"spec"]) == SPEC
    assert json.loads(schema.field("distance").metadata[b"shape"]) == [7, 7]
    front = yaml.safe_load((directory / "README.md").read_text().split("---")[1])
    assert front["configs"][0]["data_files"][1] == {"split": "validation", "path": "valid-*.parquet"}


def test_observations_and_obstacles_survive(tmp_path):
    rng = np.random.default_rng(0)
    plain = draw(SPEC, "train", 0, 10)
    scenes = [[rng.random((3 + k, 2)).astype(np.float32) for k in range(i % 3)] for i in range(10)]
    images = rng.integers(0, 256, (10, 2, 4, 8, 3), np.uint8)
    problems = Problems(**{name: getattr(plain, name) for name in PARTS}, observation=images, obstacles=scenes)
    path = tmp_path / "shard.parquet"
    path.write_bytes(parquet.shard_bytes(SPEC, shards(SPEC)[0].split, shards(SPEC)[0].start, problems))
    found = problems_from_table(pq.read_table(path))
    np.testing.assert_array_equal(found.observation, images)
    assert [len(scene) for scene in found.obstacles] == [len(scene) for scene in scenes]
    for scene, expected in zip(found.obstacles, scenes, strict=True):
        for polygon, other in zip(scene, expected, strict=True):
            np.testing.assert_array_equal(polygon, other)


def _make_rounds(roots, together, found):
    """Make a set in each of `roots` as soon as the other processes do the same."""
    for root in roots:
        together.wait()
        try:
            parquet.make_dataset(SPEC, root)
            read_split(directory_of(SPEC, root), "train")
        except Exception as error:
            found.put(f"{type(error).__name__}: {error}")
    found.put(None)


def _race(processes, roots, found):
    """Start the processes from one that has loaded all that they need, which each would load for itself otherwise."""
    parquet.PROBLEMS_PER_SHARD = 10
    draw(SPEC, "train", 0, 1)
    parquet.code_hash(SPEC.task)
    forking = multiprocessing.get_context("fork")
    together = forking.Barrier(processes)
    makers = [forking.Process(target=_make_rounds, args=(roots, together, found)) for _ in range(processes)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()


@pytest.mark.slow
def test_processes_that_make_one_set_at_once_do_not_fail_each_other(tmp_path):
    processes = 4
    roots = [tmp_path / str(number) for number in range(12)]
    found = PROCESSES.Queue()
    race = PROCESSES.Process(target=_race, args=(processes, roots, found))
    race.start()
    failures, ended = [], 0
    while ended < processes:
        told = found.get(timeout=120)
        ended += told is None
        failures += [told] if told else []
    race.join()
    assert failures == []
    make(tmp_path / "alone")
    assert all(digests(root) == digests(tmp_path / "alone") for root in roots)


def test_what_another_process_has_made_is_left_as_it_is(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr("datagen.tasks.navigation.draw", lambda *_: pytest.fail("drawn again"))
    write_shard(SPEC, shards(SPEC)[0], tmp_path)


def test_a_temporary_that_somebody_cleared_is_written_again(tmp_path, monkeypatch):
    rename, cleared = os.replace, []

    def clearing(source, target):
        if len(cleared) < 2:
            cleared.append(os.unlink(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", clearing)
    write_shard(SPEC, shards(SPEC)[0], tmp_path)
    assert cleared and shards(SPEC)[0] not in missing_shards(SPEC, tmp_path)


def test_a_card_claims_no_licence_of_others_and_the_right_size(tmp_path):
    made = make(tmp_path)
    ours, theirs = card(made), card(made.model_copy(update={"plugins": ("theirs",)}))
    assert "license: mit" in ours and "Licence: MIT." in ours
    assert "license:" not in theirs and "Licence: that of plug-in theirs" in theirs
    spec = SPEC.model_copy(update={"imported": "0" * 64})
    imported = card(made.model_copy(update={"source": "imported", "spec": spec}))
    assert "license:" not in imported and "Licence: that of the file that was imported" in imported
    assert yaml.safe_load(imported.split("---")[1])["tags"] == ["differentiable-planning", "navigation"]


@pytest.mark.parametrize(
    ("rows", "category"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (999_999, "100K<n<1M"), (20_000_000, "10M<n<100M"), (10**9, "1B<n<10B")],
)
def test_size_categories_are_the_hubs(rows, category, tmp_path):
    made = make(tmp_path)
    larger = made.shards[0].model_copy(update={"rows": rows - 11})  # beside those of valid and test
    front = card(made.model_copy(update={"shards": (larger, *made.shards[3:])})).split("---")[1]
    assert yaml.safe_load(front)["size_categories"] == [category]
