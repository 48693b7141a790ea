"""Compiled functions on disk are never older than the sources they come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import datagen.jit as kernel

HASH = """import numpy as np; from datagen.sampling.unique_maps import map_hashes
print(map_hashes(np.ones((1, 5, 5), np.uint8))[0])"""
ROOT = Path(kernel.__file__).parents[1]


def run(folder, code=HASH, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(folder), **environment},
    )
    return float(done.stdout)


def folders(place):
    return {path.name for path in place.rglob("kernels-*")}


def copied(tmp_path):
    """A copy of the sources."""
    shutil.copytree(ROOT / "datagen", tmp_path / "datagen", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path, before, after):
    source = path.read_text()
    assert source.count(before) == 1
    path.write_text(source.replace(before, after))


@pytest.mark.slow
def test_a_change_in_another_file_is_noticed(tmp_path):
    package = copied(tmp_path) / "datagen"
    before = run(tmp_path)
    first = folders(package)
    assert first and run(tmp_path) == before and folders(package) == first
    # The compiled function of `unique_maps` calls `mix`, which is in `splitmix`.
    edit(package / "sampling" / "splitmix.py", "0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5B7")
    assert run(tmp_path) != before
    assert folders(package) > first


CELLS = "from shop.kernels import cells; print(cells(7))"
SHOP = {  # as planners.compiled has it: a kernel reads a constant, which is made of one of a file without a kernel
    "shop/__init__.py": "",
    "shop/simd.py": "LANES = 16\n",
    "shop/layout.py": "from shop.simd import LANES\n\nBLOCK = 3 * LANES\n",
    "shop/kernels.py": "from datagen.jit import kernel\nfrom shop.layout import BLOCK\n\n"
    "@kernel\ndef cells(x):\n    return -(-x // BLOCK) * BLOCK\n",
}


def shop(folder):
    """A small package with a kernel, beside a copy of what compiles it."""
    (folder / "datagen").mkdir(parents=True)
    for name in ("jit", "sources"):
        shutil.copy(ROOT / "datagen" / f"{name}.py", folder / "datagen")
    for name, text in {"datagen/__init__.py": "", **SHOP}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
def test_a_change_of_a_constant_is_noticed_by_the_kernels_of_other_files(tmp_path):
    package = shop(tmp_path) / "shop"
    assert run(tmp_path, CELLS) == 3 * 16
    edit(package / "simd.py", "LANES = 16\n", "LANES = 8\n")
    assert run(tmp_path, CELLS) == 3 * 8
    edit(package / "layout.py", "BLOCK = 3 * LANES", "BLOCK = 2 * LANES")
    assert run(tmp_path, CELLS) == 2 * 8


@pytest.mark.slow
def test_a_plugins_kernel_notices_its_constants_wherever_they_are(tmp_path):
    folder = shop(tmp_path)
    (folder / "numbers_of_mine.py").write_text("DOUBLE = 2\n")
    (folder / "kernels_of_mine.py").write_text(
        "from datagen.jit import kernel\nfrom numbers_of_mine import DOUBLE\n\n"
        "@kernel\ndef doubled(x):\n    return DOUBLE * x\n"
    )
    code = "from kernels_of_mine import doubled; print(doubled(1.0))"
    assert run(folder, code) == 2.0
    (folder / "numbers_of_mine.py").write_text("DOUBLE = 3\n")
    assert run(folder, code) == 3.0


@pytest.mark.slow
def test_another_checkout_of_the_same_sources_takes_what_the_first_has_compiled(tmp_path):
    one, other, place = shop(tmp_path / "one"), shop(tmp_path / "other"), tmp_path / "cache"
    run(one, CELLS, NUMBA_CACHE_DIR=str(place))
    made = {path: path.stat().st_mtime_ns for path in place.rglob("*.nbc")}
    run(other, CELLS, NUMBA_CACHE_DIR=str(place))
    assert made and made == {path: path.stat().st_mtime_ns for path in place.rglob("*.nbc")}
    # A machine that lost power may have left files of any length.
    for number, path in enumerate(place.rglob("*.nb?")):
        path.write_bytes(path.read_bytes()[: 40 * (number % 2)])
    assert run(other, CELLS, NUMBA_CACHE_DIR=str(place)) == 3 * 16


@pytest.mark.slow
def test_the_place_can_be_chosen(tmp_path):
    place = tmp_path / "cache"
    run(ROOT, NUMBA_CACHE_DIR=str(place))
    assert folders(place) and folders(place) == {path.name for path in place.iterdir()}


def test_a_kernel_without_a_source_file_is_compiled_and_not_kept(tmp_path):
    code = "from datagen.jit import kernel; print(kernel(eval('lambda x: x + 1.5'))(1.0))"
    assert run(ROOT, code, NUMBA_CACHE_DIR=str(tmp_path)) == 2.5 and not folders(tmp_path)
