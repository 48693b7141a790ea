"""Streaming: every problem once an epoch, well mixed, the same order again, and bounded memory."""

import tracemalloc
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

import datagen.storage.dataset as parquet
from datagen.storage import encoding
from datagen.storage.dataset import directory_of, make_dataset, read_split
from datagen.storage.manifest import DatasetError
from datagen.storage.stream import ProblemStream
from datagen.tasks.registry import DatasetSpec

SPEC = DatasetSpec(map_size=7, train=50, valid=7, test=1, seed=5)
BYTES = 7 * 49 + 4


def make(root, spec=SPEC):
    make_dataset(spec, root)
    return directory_of(spec, root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "PROBLEMS_PER_SHARD", 20)
        patch.setattr(encoding, "_ROW_GROUP", 4)
        return make(tmp_path_factory.mktemp("datasets"))


def keys(batches):
    """Return which problems of the split came, by their content."""
    return [[map_.tobytes() + goal.tobytes() for map_, goal in zip(b.map, b.goal, strict=True)] for b in batches]


def everything(dataset):
    return keys([read_split(dataset, "train")])[0]


def smallest(size):
    return (size + 4 + 2 * 4 + 3 * size) * BYTES


@pytest.mark.parametrize("max_bytes", [smallest(8), 2**20])
def test_an_epoch_gives_every_problem_once_in_full_batches(dataset, max_bytes):
    stream = ProblemStream(dataset, "train", max_bytes=max_bytes)
    batches = list(stream.batches(8, seed=1, epoch=0))
    assert len(stream) == 50 and [len(b) for b in batches] == [8] * 6
    came = list(chain(*keys(batches)))
    assert len(set(came)) == 48 and set(came) <= set(everything(dataset))
    whole = read_split(dataset, "train")
    index = {key: i for i, key in enumerate(everything(dataset))}
    for batch, names in zip(batches, keys(batches), strict=True):
        expected = whole.take(np.array([index[name] for name in names]))
        for field in ("distance", "optimal_actions", "label"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))


def test_batches_already_given_out_do_not_change(dataset):
    stream = ProblemStream(dataset, "train", max_bytes=smallest(8))
    kept, copies = [], []
    for batch in stream.batches(8, seed=1, epoch=0):
        kept.append(batch)
        copies.append(batch.map.copy())
    for batch, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(batch.map, copy)


def test_order_depends_on_seed_and_epoch_alone(dataset):
    def order(seed, epoch):
        return keys(ProblemStream(dataset, "train").batches(8, seed, epoch))

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4)
    assert order(1, 3) != order(2, 3)


def test_an_abandoned_epoch_leaves_the_next_one_as_it_is(dataset):
    stream = ProblemStream(dataset, "train", max_bytes=smallest(8))
    next(stream.batches(8, seed=1, epoch=0))
    fresh = ProblemStream(dataset, "train", max_bytes=smallest(8))
    assert keys(stream.batches(8, 1, 1)) == keys(fresh.batches(8, 1, 1))


def test_batches_mix_the_shards(dataset):
    place = {key: i // 20 for i, key in enumerate(everything(dataset))}
    first = keys(ProblemStream(dataset, "train").batches(10, 0, 0))[0]
    assert {place[key] for key in first} == {0, 1, 2}


def test_in_order_gives_the_split_as_it_is_stored(dataset):
    parts = list(ProblemStream(dataset, "train", max_bytes=2**20).in_order(9))
    assert [len(part) for part in parts] == [9] * 5 + [5]
    assert all(part.map.flags.writeable for part in parts)
    assert list(chain(*keys(parts))) == everything(dataset)


def test_a_split_smaller_than_a_batch_gives_none(dataset):
    assert list(ProblemStream(dataset, "valid").batches(8, 0, 0)) == []


def test_an_empty_split_gives_nothing(tmp_path):
    directory = make(tmp_path, DatasetSpec(map_size=7, train=3, valid=0, test=1))
    stream = ProblemStream(directory, "valid")
    assert len(stream) == 0 and list(stream.in_order(4)) == [] and list(stream.batches(4, 0, 0)) == []


@pytest.mark.slow
def test_memory_stays_within_the_bound(tmp_path, monkeypatch):
    """Images of 0.6 MB a problem, 26 problems, 7 MB allowed."""
    spec = DatasetSpec(task="visual_navigation", map_size=7, train=26, valid=1, test=1)
    monkeypatch.setattr(encoding, "_IMAGE_ROW_GROUP", 1)
    directory = make(tmp_path, spec)
    each = 49 * 4 * 32 * 32 * 3
    stream = ProblemStream(directory, "train", max_bytes=12 * each)
    whole = read_split(directory, "train")
    index = {key: i for i, key in enumerate(keys([whole])[0])}
    for batch in stream.batches(2, 0, 0):
        expected = whole.observation[[index[name] for name in keys([batch])[0]]]
        np.testing.assert_array_equal(batch.observation, expected)
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    most = seen = 0
    for batch in stream.batches(2, 0, 1):
        seen += len(batch)
        most = max(most, tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - arrow)
    tracemalloc.stop()
    assert seen == 26
    assert 4 * each < most < 12.5 * each


def test_too_little_memory_is_refused_with_what_is_needed(dataset):
    stream = ProblemStream(dataset, "train", max_bytes=smallest(8) - 1)
    with pytest.raises(ValueError, match=rf"max_bytes: expected at least {smallest(8):,}"):
        next(stream.batches(8, 0, 0))


def test_an_altered_shard_is_found_when_it_is_read(tmp_path):
    directory = make(tmp_path)
    path = next(directory.glob("train-*.parquet"))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=path.name):
        list(ProblemStream(directory, "train").batches(8, 0, 0))
