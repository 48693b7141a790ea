"""Compiled functions on disk are never older than the sources they come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import datagen.kernel as kernel

HASH = "import numpy as np; from datagen.splits import map_hashes; print(map_hashes(np.ones((1, 5, 5), np.uint8))[0])"


def run(folder, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", HASH],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(folder), **environment},
    )
    return int(done.stdout)


def folders(place):
    return {path.name for path in place.glob("kernels-*")}


def test_a_change_in_another_file_is_noticed(tmp_path):
    package = tmp_path / "datagen"
    shutil.copytree(Path(kernel.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = run(tmp_path)
    first = folders(package / "__pycache__")
    assert len(first) == 1 and run(tmp_path) == before and folders(package / "__pycache__") == first
    source = (package / "splitmix.py").read_text()
    assert source.count("0xBF58476D1CE4E5B9") == 1
    # The compiled function of `splits` calls `mix`, which is in `splitmix`.
    (package / "splitmix.py").write_text(source.replace("0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5B7"))
    assert run(tmp_path) != before
    assert len(folders(package / "__pycache__")) == 2


def test_the_place_can_be_chosen(tmp_path):
    place = tmp_path / "cache"
    run(Path(kernel.__file__).parents[1], NUMBA_CACHE_DIR=str(place))
    assert len(folders(place)) == 1
