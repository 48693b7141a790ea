"""Node-local copies: checked, shared, capped, and safe with several processes."""

import multiprocessing
import os
import shutil
import time

import pytest

from datagen import staging
from datagen.manifest import DatasetError
from datagen.parquet import directory_of, finish_dataset, read_split, shards, write_shard
from datagen.staging import release, stage
from datagen.task import DatasetSpec


def make(root, seed):
    spec = DatasetSpec(map_size=7, train=30, valid=5, test=5, seed=seed)
    for shard in shards(spec):
        write_shard(spec, shard, root)
    finish_dataset(spec, root)
    return directory_of(spec, root)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("far away")
    return [make(root, seed) for seed in range(3)]


@pytest.fixture
def far(made, tmp_path):
    return [shutil.copytree(directory, tmp_path / "far" / directory.name) for directory in made]


@pytest.fixture
def cache(tmp_path):
    yield tmp_path / "node's cache"
    for copy in list(staging._in_use):
        release(copy)


def copies(cache):
    return {path.name for path in cache.iterdir() if path.is_dir()}


def bytes_of(directory):
    return (
        sum(path.stat().st_size for path in directory.glob("*.parquet")) + (directory / "manifest.json").stat().st_size
    )


def test_a_copy_reads_like_the_dataset_and_is_made_once(far, cache):
    copy = stage(far[0], cache, 10**8)
    assert (read_split(copy, "train").map == read_split(far[0], "train").map).all()
    made_at = [path.stat().st_mtime_ns for path in sorted(copy.glob("*.parquet"))]
    assert stage(far[0], cache, 10**8) == copy
    assert [path.stat().st_mtime_ns for path in sorted(copy.glob("*.parquet"))] == made_at


def test_an_altered_dataset_is_not_staged(far, cache):
    path = next(far[0].glob("test-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match=path.name):
        stage(far[0], cache, 10**8)
    assert copies(cache) == set()


@pytest.mark.parametrize(("damage", "verify"), [("truncated", False), ("altered", True), ("removed", False)])
def test_a_damaged_copy_is_made_again(far, cache, damage, verify):
    copy = stage(far[0], cache, 10**8)
    path = next(copy.glob("train-*.parquet"))
    content = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + b"x")
    assert stage(far[0], cache, 10**8, verify=verify) == copy
    assert path.read_bytes() == content


def test_the_least_recently_used_copy_goes_first(far, cache):
    room = 2 * max(bytes_of(directory) for directory in far) + 100
    first, second = (stage(directory, cache, room) for directory in far[:2])
    release(first)
    release(second)
    os.utime(second, (1, 1))
    third = stage(far[2], cache, room)
    assert copies(cache) == {first.name, third.name}


def test_a_copy_in_use_stays_and_the_user_is_told(far, cache):
    room = bytes_of(far[0]) + 100
    copy = stage(far[0], cache, room)
    with pytest.raises(DatasetError, match="in use"):
        stage(far[1], cache, room)
    assert read_split(copy, "test").map.any()
    release(copy)
    assert copies(cache) == {copy.name}
    other = stage(far[1], cache, max(room, bytes_of(far[1]) + 100))
    assert copies(cache) == {other.name}


def test_a_dataset_larger_than_the_cache_is_refused(far, cache):
    with pytest.raises(DatasetError, match=r"more than the cache's 1,000"):
        stage(far[0], cache, 1000)


def test_what_a_killed_process_left_is_cleared(far, cache):
    leftover = cache / ".navigation-7-0-0.partial"
    leftover.mkdir(parents=True)
    (leftover / "train-00000-of-00001.parquet").write_bytes(b"half")
    assert copies(cache) == {leftover.name}
    copy = stage(far[0], cache, 10**8)
    assert copies(cache) == {copy.name}


def test_a_full_disk_is_told_and_leaves_nothing(far, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_copy_checked", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        stage(far[0], cache, 10**8)
    assert copies(cache) == set()


def test_a_dataset_made_anew_is_another_copy(far, cache):
    copy = stage(far[0], cache, 10**8)
    manifest = far[0] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert stage(far[0], cache, 10**8) != copy


def _stage_and_read(directory, cache, room, queue, linger):
    copy = stage(directory, cache, room)
    queue.put((str(copy), len(read_split(copy, "train"))))
    time.sleep(linger)


def test_processes_share_one_copy_and_a_killed_one_lets_go(far, cache):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    room = max(bytes_of(directory) for directory in far) + 100
    workers = [context.Process(target=_stage_and_read, args=(far[0], cache, room, queue, 60)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    assert len(set(results)) == 1 and results[0][1] == 30
    with pytest.raises(DatasetError, match="in use"):
        stage(far[1], cache, room)
    for worker in workers:
        worker.kill()
        worker.join()
    assert copies(cache) == {stage(far[1], cache, room).name}
