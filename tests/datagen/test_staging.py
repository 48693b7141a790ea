"""Node-local copies: checked, shared, capped, and safe with several processes."""

import json
import multiprocessing
import os
import shutil
import time

import pytest

from datagen.storage import staging
from datagen.storage.dataset import directory_of, make_dataset, read_split
from datagen.storage.manifest import DatasetError
from datagen.storage.staging import staged
from datagen.tasks.registry import DatasetSpec

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # reads the libraries once for all of them


def make(root, seed):
    spec = DatasetSpec(map_size=7, train=30, valid=5, test=5, seed=seed)
    make_dataset(spec, root)
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
    return tmp_path / "node's cache"


def stage(directory, cache, room=10**8):
    """Stage and let go at once."""
    with staged(directory, cache, room) as copy:
        return copy


def copies(cache):
    return {path.name for path in cache.rglob("*") if path.is_dir() and (path / "manifest.json").exists()}


def room_for(far, count):
    return count * max(sum(path.stat().st_size for path in directory.iterdir()) for directory in far)


def test_a_copy_reads_like_the_dataset_and_is_made_once(far, cache):
    copy = stage(far[0], cache)
    assert (read_split(copy, "train").map == read_split(far[0], "train").map).all()
    made_at = [path.stat().st_mtime_ns for path in sorted(copy.iterdir())]
    assert stage(far[0], cache) == copy
    assert [path.stat().st_mtime_ns for path in sorted(copy.iterdir())] == made_at


def test_an_altered_dataset_is_not_staged(far, cache):
    path = next(far[0].glob("test-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match=path.name):
        stage(far[0], cache)
    assert copies(cache) == set()


@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_damaged_copy_is_made_again(far, cache, damage):
    path = next(stage(far[0], cache).glob("train-*.parquet"))
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    stage(far[0], cache)
    assert path.read_bytes() == content


def test_the_least_recently_used_copy_goes_first(far, cache):
    first, second = (stage(directory, cache) for directory in far[:2])
    os.utime(second.parent, (1, 1))
    third = stage(far[2], cache, room_for(far, 2))
    assert copies(cache) == {first.name, third.name}


def test_a_copy_in_use_stays_and_the_user_is_told(far, cache):
    room = room_for(far, 1)
    with staged(far[0], cache, room) as copy:
        with pytest.raises(DatasetError, match="other processes use"):
            stage(far[1], cache, room)
        assert read_split(copy, "test").map.any()
    other = stage(far[1], cache, room)
    assert copies(cache) == {other.name}


def test_a_dataset_larger_than_the_limit_is_refused(far, cache):
    with pytest.raises(DatasetError, match=r"exceed the limit .* 1,000"):
        stage(far[0], cache, 1000)


def test_what_a_killed_process_left_is_cleared(far, cache):
    leftover = cache / ".navigation-7-0.abc.tmp"
    leftover.mkdir(parents=True)
    (leftover / "train-00000-of-00001.parquet").write_bytes(b"half")
    copy = stage(far[0], cache)
    assert copies(cache) == {copy.name}


def test_a_full_disk_is_told_and_leaves_nothing(far, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_copy", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        stage(far[0], cache)
    assert copies(cache) == set()


def _stage_and_read(directory, cache, room, queue, linger):
    with staged(directory, cache, room) as copy:
        queue.put((str(copy), len(read_split(copy, "train"))))
        time.sleep(linger)


@pytest.mark.slow
def test_processes_share_one_copy_and_a_killed_one_lets_go(far, cache):
    queue = PROCESSES.Queue()
    room = room_for(far, 1)
    workers = [PROCESSES.Process(target=_stage_and_read, args=(far[0], cache, room, queue, 60)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    assert len(set(results)) == 1 and results[0][1] == 30
    with pytest.raises(DatasetError, match="other processes use"):
        stage(far[1], cache, room)
    for worker in workers:
        worker.kill()
        worker.join()
    other = stage(far[1], cache, room)
    assert copies(cache) == {other.name}


def alter(directory, change):
    """Let `change` alter the manifest, read as JSON."""
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def outside(far, cache):
    """Return what is beside the cache and the sets: a file and a folder that no manifest may reach."""
    cache.parent.joinpath("home/jane").mkdir(parents=True)
    thesis = cache.parent / "home/jane/thesis.tex"
    thesis.write_text("years of work")
    return thesis


@pytest.mark.parametrize(
    "change",
    [
        lambda m, thesis: m.update(dataset_id="../home/jane"),
        lambda m, thesis: m.update(dataset_id=str(thesis.parent)),
        lambda m, thesis: m["shards"][-1].update(name=str(thesis)),
        lambda m, thesis: m["shards"][-1].update(name="../home/jane/thesis.tex"),
        lambda m, thesis: m["shards"].append({**m["shards"][-1], "name": "../../home/jane/authorized_keys"}),
        lambda m, thesis: m["shards"][-1].update(bytes=1),
    ],
)
def test_no_manifest_reaches_what_is_outside_the_cache(far, cache, change):
    thesis = outside(far, cache)
    before = sorted(thesis.parent.parent.rglob("*"))
    alter(far[0], lambda m: change(m, thesis))
    with pytest.raises(DatasetError):
        stage(far[0], cache)
    assert thesis.read_text() == "years of work" and sorted(thesis.parent.parent.rglob("*")) == before
    assert copies(cache) == set()


def test_bytes_beyond_what_the_manifest_says_are_not_copied(far, cache):
    alter(far[0], lambda m: [record.update(bytes=1) for record in m["shards"]])
    with pytest.raises(DatasetError, match="altered"):
        stage(far[0], cache, 10)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) == 0


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_shard_that_is_no_file_is_not_copied(far, cache, kind):
    path = next(far[0].glob("test-*.parquet"))
    path.unlink()
    kind(path)
    with pytest.raises(DatasetError, match="expected a file"):
        stage(far[0], cache)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "manifest.json"])
def test_a_copy_of_the_right_size_and_the_wrong_bytes_heals(far, cache, name):
    path = stage(far[0], cache) / name
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with staged(far[0], cache, 10**8) as copy:
        assert len(read_split(copy, "train")) == 30
    assert path.read_bytes() == content


def test_a_set_that_was_made_again_leaves_the_copy_that_others_hold(far, cache):
    with staged(far[0], cache, 10**8) as held:
        alter(far[0], lambda m: m["versions"].update(numpy="1.0"))
        with staged(far[0], cache, 10**8) as other:
            assert other != held and other.name == held.name
            assert len(read_split(held, "train")) == len(read_split(other, "train")) == 30


def test_a_damaged_shard_is_replaced_and_not_removed_under_a_reader(far, cache):
    with staged(far[0], cache, 10**8) as copy:
        path = next(copy.glob("train-*.parquet"))
        with path.open("rb") as reader:
            content = path.read_bytes()
            path.with_suffix(".bad").write_bytes(content[:-1] + b"x")
            os.replace(path.with_suffix(".bad"), path)
            stage(far[0], cache)
            assert path.read_bytes() == reader.read() == content


def test_strangers_files_in_the_cache_do_no_harm(far, cache):
    (cache / "theirs" / "deeper").mkdir(parents=True)
    (cache / "theirs" / "gone").symlink_to("nowhere")
    (cache / "README").write_text("x")
    stage(far[0], cache)
    stage(far[1], cache, room_for(far, 1))
    assert (cache / "README").exists()


def test_strangers_folders_in_the_cache_stay_whatever_room_is_needed(far, cache):
    theirs = cache / "thesis"
    theirs.mkdir(parents=True)
    (theirs / "chapter.tex").write_bytes(b"x" * 10_000)
    os.utime(theirs, (1, 1))
    _first, second = (stage(directory, cache, room_for(far, 1)) for directory in far[:2])
    assert (theirs / "chapter.tex").exists() and copies(cache) == {second.name}


def test_a_cache_that_is_a_file_is_one_line(far, cache):
    cache.write_text("x")
    with pytest.raises(DatasetError, match="cannot copy"):
        stage(far[0], cache)
