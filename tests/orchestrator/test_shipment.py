"""What is sent to a cluster: what git would keep, the sweep, its plug-ins, and nothing large."""

from __future__ import annotations

import subprocess
import zipfile

import pytest

from orchestrator import shipment
from orchestrator.shipment import pack
from orchestrator.specs import SweepError
from orchestrator.sweep_files import load_sweep, sweep_files

SWEEP = "name: small\nplanners: {vin: {core: vin}}\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "project"
    (folder / "sweeps").mkdir(parents=True)
    (folder / "sweeps" / "small.yaml").write_text(SWEEP)
    (folder / "notes.txt").write_text("notes")
    for name in (
        ".env",
        "docker/secrets/token",
        ".venv/big",
        "idp-storage/trials/1/result.json",
        "code/__pycache__/x.pyc",
        "code/x.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def git(folder, *words):
    subprocess.run(["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True)


def names(package):
    return set(zipfile.ZipFile(package).namelist())


def test_outside_git_all_but_environments_caches_and_storages_is_sent(folder, tmp_path):
    pack(folder, tmp_path / "p.zip")
    assert names(tmp_path / "p.zip") == {"sweeps/small.yaml", "notes.txt", "code/x.py"}


def test_in_git_it_is_what_is_tracked_or_new_and_not_ignored_and_still_there(folder, tmp_path):
    (folder / ".gitignore").write_text(
        ".env\nsecrets/\n.venv/\nidp-storage/\n__pycache__/\n*.secret\n/sweeps/mine.yaml\n"
    )
    (folder / "gone.txt").write_text("x")
    git(folder, "init", "-q")
    git(folder, "add", "code", "gone.txt", ".gitignore")
    (folder / "gone.txt").unlink()
    (folder / "key.secret").write_text("secret")
    (folder / "sweeps" / "mine.yaml").write_text("extends: small.yaml\nname: mine\n")
    mine = folder / "sweeps" / "mine.yaml"
    pack(folder, tmp_path / "p.zip", sweep_files(mine))
    # The sweep is sent although git ignores it: without it there would be nothing to run.
    expected = {".gitignore", "code/x.py", "notes.txt", "sweeps/small.yaml", "sweeps/mine.yaml"}
    assert names(tmp_path / "p.zip") == expected


def test_a_storage_by_any_name_stays_here(folder, tmp_path):
    (folder / "results" / "trials").mkdir(parents=True)
    (folder / "results" / "trials" / "1.json").write_text("x")
    pack(folder, tmp_path / "p.zip", storage=folder / "results")
    assert "notes.txt" in names(tmp_path / "p.zip")
    assert not any(name.startswith("results") for name in names(tmp_path / "p.zip"))


def test_the_same_files_give_the_same_bytes_whenever_they_were_written(folder, tmp_path):
    pack(folder, tmp_path / "one.zip")
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").write_text("notes")
    pack(folder, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_plugins_from_elsewhere_come_to_the_top_and_those_in_place_stay(folder, tmp_path):
    away = tmp_path / "site" / "far"
    (away / "__pycache__").mkdir(parents=True)
    (away / "__init__.py").write_text("")
    (away / "__pycache__" / "x.pyc").write_text("x")
    near = folder / "sweeps" / "near.py"
    near.write_text("")
    pack(folder, tmp_path / "p.zip", [folder / "sweeps" / "small.yaml"], [away, near])
    found = names(tmp_path / "p.zip")
    assert "far/__init__.py" in found and "sweeps/near.py" in found
    assert not found & {"near.py", "far/__pycache__/x.pyc"}


def test_too_much_is_refused_and_the_largest_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shipment, "MOST_BYTES", 1000)
    (folder / "weights.bin").write_bytes(b"x" * 5000)
    with pytest.raises(SweepError, match=r"5\.0 kB to send, at most 1\.0 kB can be; the largest: weights\.bin"):
        pack(folder, tmp_path / "p.zip")


def test_a_sweep_outside_the_folder_is_refused(folder, tmp_path):
    with pytest.raises(SweepError, match="submit from a folder above it"):
        pack(folder / "code", tmp_path / "p.zip", sweep_files(folder / "sweeps" / "small.yaml"))


def test_the_files_of_a_sweep_are_it_and_what_it_extends(folder):
    mine = folder / "mine.yaml"
    mine.write_text("extends: sweeps/small.yaml\nname: mine\n")
    assert sweep_files(mine) == [mine, folder / "sweeps" / "small.yaml"]
    assert load_sweep(mine).name == "mine"
