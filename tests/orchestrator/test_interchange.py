"""`idp import` and `idp export`, as a lab would use them."""

from __future__ import annotations

import numpy as np

from datagen.storage import dataset as parquet
from datagen.tasks.registry import DatasetSpec
from orchestrator.cli.main import main


def test_a_set_goes_out_and_comes_back(tmp_path, capsys):
    spec = DatasetSpec(map_size=9, train=6, valid=3, test=3)
    root = tmp_path / "datasets"
    for shard in parquet.missing_shards(spec, root):
        parquet.write_shard(spec, shard, root)
    parquet.finish_dataset(spec, root)
    file = tmp_path / "set.npz"
    assert main(["export", str(parquet.directory_of(spec, root)), str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert len(np.load(file).files) == 9
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
