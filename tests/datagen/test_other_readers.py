"""Datasets load with what other people use, as they are."""

import importlib.util
import re

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from datagen.storage.dataset import directory_of, make_dataset, read_split
from datagen.tasks.registry import DatasetSpec, dataset_id

SETS = {
    "navigation": DatasetSpec(map_size=9, train=4, valid=2, test=3),
    "workspace_manipulation": DatasetSpec(task="workspace_manipulation", map_size=8, train=3, valid=1, test=1),
    "maze_unique": DatasetSpec(
        task="maze_unique", map_size=11, train=3, valid=1, test=1, options={"shortest": 8, "longest": 30}
    ),
}
ARRAYS = ("map", "distance", "optimal_actions", "label", "observation")


@pytest.fixture(scope="module", params=SETS)
def folder(request, tmp_path_factory):
    root, spec = tmp_path_factory.mktemp("sets"), SETS[request.param]
    make_dataset(spec, root)
    return directory_of(spec, root)


def arrays_of(file, columns):
    """What the schema alone tells a stranger: bytes of each column to an array."""
    for field in pq.read_schema(file):
        if b"shape" in (field.metadata or {}):
            shape = [int(size) for size in re.findall(r"[0-9]+", field.metadata[b"shape"].decode())]
            kind = field.metadata[b"dtype"].decode()
            yield field.name, np.stack([np.frombuffer(cells, kind).reshape(shape) for cells in columns[field.name]])


def compare(file, columns, split, folder):
    ours = read_split(folder, split)
    found = dict(arrays_of(file, columns))
    assert set(found) == {name for name in ARRAYS if getattr(ours, name) is not None}
    for name, array in found.items():
        assert np.array_equal(array, getattr(ours, name)), name
    assert np.array_equal(np.stack([columns["goal_row"], columns["goal_col"]], 1), ours.goal)
    if ours.start is not None:
        assert np.array_equal(np.stack([columns["start_row"], columns["start_col"]], 1), ours.start)


def test_the_card_names_every_column(folder):
    (file,) = folder.glob("train-*.parquet")
    rows = [line.split("|")[1] for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(pq.read_schema(file).names)


@pytest.mark.parametrize("split", ["train", "test"])
def test_pandas(folder, split):
    (file,) = folder.glob(f"{split}-*.parquet")
    compare(file, pandas.read_parquet(file), split, folder)


has_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the datasets library is not installed"
)


@has_datasets
def test_the_datasets_library(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    loaded = load_dataset(str(folder), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation", "test"}
    for split, ours in (("train", "train"), ("validation", "valid"), ("test", "test")):
        (file,) = folder.glob(f"{ours}-*.parquet")
        compare(file, {name: loaded[split][name] for name in loaded[split].column_names}, ours, folder)


@has_datasets
@pytest.mark.parametrize("counts", [(4, 0, 2), (4, 2, 0), (4, 0, 0), (0, 2, 0)], ids=str)
def test_the_datasets_library_leaves_out_splits_that_are_empty(counts, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    train, valid, test = counts
    spec = DatasetSpec(map_size=9, train=train, valid=valid, test=test)
    make_dataset(spec, tmp_path / "sets")
    loaded = load_dataset(str(tmp_path / "sets" / dataset_id(spec)), cache_dir=str(tmp_path / "cache"))
    named = zip(("train", "validation", "test"), counts, strict=True)
    assert loaded.num_rows == {split: rows for split, rows in named if rows}
