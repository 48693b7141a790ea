"""`idp import` and `idp export`, as a lab would use them."""

from __future__ import annotations

import numpy as np
import pytest

from datagen.storage import dataset as parquet
from datagen.tasks.registry import DatasetSpec
from orchestrator.cli.main import main


def test_a_set_goes_out_and_comes_back(tmp_path, capsys):
    spec = DatasetSpec(map_size=9, train=6, valid=3, test=3)
    root = tmp_path / "datasets"
    parquet.make_dataset(spec, root)
    file = tmp_path / "set.npz"
    assert main(["export", str(parquet.directory_of(spec, root)), str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert len(np.load(file).files) == 9
    assert main(["export", str(parquet.directory_of(spec, root)), str(tmp_path / "set.csv")]) == 2
    assert "set.csv: expected a name that ends in .npz" in capsys.readouterr().err
    assert main(["import", str(file), "--task", "navigation", "--out", str(tmp_path / "back")]) == 0
    back = capsys.readouterr().out.strip()
    for split in ("train", "valid", "test"):
        ours, theirs = parquet.read_split(parquet.directory_of(spec, root), split), parquet.read_split(back, split)
        for name in ("map", "goal", "distance", "optimal_actions", "label"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_file_that_is_none_is_refused_with_one_line(tmp_path, capsys):
    (tmp_path / "bad.npz").write_text("no archive")
    assert main(["import", str(tmp_path / "bad.npz"), "--task", "navigation", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "bad.npz: not an .npz file" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "words", "said"),
    [
        ("", "maze_unique --count 5", "--count: only crops, and problems on a map, are counted; leave it out for "),
        ("", "maze_unique --crops 7 --count 0", "count: expected 1 to 10,000,000, got 0"),
        ("", "maze_unique --actions news", "--actions: only .npz files"),
        ("", "terrain --count 5", "--count: only crops"),
        (
            "m.npy",
            "navigation --actions news",
            "--actions: only .npz files in the GPPN layout have actions in an order",
        ),
        ("m.npy", "navigation --threshold 5000", "--threshold: is for .png and .pgm files, got "),
        ("m.npy", "navigation --dark-is-free", "--dark-is-free: is for .png and .pgm files"),
        ("m.npy", "navigation --unknown-is-free", "--unknown-is-free: is for .yaml and .yml files"),
        ("s.npz", "navigation --count 5", "--count: only crops"),
        ("s.npz", "navigation --crops 5", "--crops: only maps, and mazes of --task maze_unique, are cut"),
        ("s.npz", "navigation --threshold 5", "--threshold: is for .png and .pgm files"),
    ],
)
def test_an_option_that_would_mean_nothing_is_refused(tmp_path, capsys, file, words, said):
    np.save(tmp_path / "m.npy", np.ones((60, 60), np.uint8))
    np.save(tmp_path / "train_inputs.npy", np.tile(np.uint8([3, 4, *[2] * 79]), (40, 1)))
    arguments = ["import", str(tmp_path / file), "--out", str(tmp_path / "sets"), "--task", *words.split()]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1 and not (tmp_path / "sets").exists()
