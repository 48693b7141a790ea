"""`idp gc` frees what this project's own processes left behind, and nothing of anybody else's."""

import json
import os
import time
from dataclasses import replace

import pytest
from samples import put_result

from datagen.storage import dataset as parquet
from datagen.tasks.registry import DatasetSpec, dataset_id
from orchestrator.cli.main import main
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner, take
from orchestrator.storage.results import TrialResult
from orchestrator.storage.runs import RunNote, runs, write_note

DATA = DatasetSpec(map_size=5, train=2, valid=2, test=2)
ID = "0123456789abcdef"


@pytest.fixture
def storage(tmp_path):
    directory = Storage(tmp_path / "storage").trial(ID).path
    put_result(directory, TrialResult(trial_id=ID, status="COMPLETED"))
    return tmp_path / "storage"


@pytest.fixture
def dataset(storage):
    root = storage / "datasets"
    parquet.make_dataset(DATA, root)
    return root / dataset_id(DATA)


def gc(storage, *more):
    return main(["gc", "--storage", str(storage), *more])


def elsewhere(directory):
    """Have a process hold a lease that another start of this machine has taken with it."""
    take(directory, replace(Owner.here(), boot="before the power cut"))
    return directory


def everything(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def old(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.utime(path, (0, 0))
    return path


def test_it_only_lists_until_it_is_told_to_remove(storage, dataset, capsys):
    left = [
        old(storage / "trials" / ID / ".result.json.0123456789ab.tmp"),
        old(storage / "trials" / ID / "evaluations" / ".x.json.0123456789ab.tmp"),
        old(dataset / ".manifest.json.ab_cdef1.tmp"),
        old(storage / "sweeps" / "s" / ".report.html.0123456789ab.tmp"),
        old(storage / "sweeps" / "s" / "ray" / "0123456789ab" / "notes.json"),
    ]
    (storage / "sweeps" / "good" / "ray").mkdir(parents=True)  # of a run that went well
    before = everything(storage)
    assert gc(storage) == gc(storage, "--dry-run") == gc(storage, "--remove", "--dry-run") == 0
    assert everything(storage) == before
    out = capsys.readouterr().out
    assert all(path.name in out or path.parent.name in out for path in left) and "good" not in out
    assert out.count(" can be freed; ") == 3
    assert gc(storage, "--remove") == 0 and " B freed; " in capsys.readouterr().out
    assert not any(path.exists() for path in left) and dataset.is_dir()
    assert gc(storage, "--datasets", "--remove") == 0
    assert not dataset.exists() and (storage / "trials" / ID / "result.json").exists()


FOREIGN = [".draft.tmp", ".notes.txt.tmp", ".x.0123456789AB.tmp", "x.0123456789ab.tmp", ".0123456789ab.tmp"]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_named_otherwise_or_lies_elsewhere_is_not_ours(storage, dataset, name):
    for folder in (storage, storage / "trials" / ID, dataset, storage / "mine", storage / "trials" / "lost+found"):
        old(folder / name)
        old(folder / ".cache.0123456789ab.tmp" / "data")
    old(storage / "mine" / ".x.json.0123456789ab.tmp")
    old(storage / "trials" / ".x.json.0123456789ab.tmp")
    old(storage / "datasets" / "deadbeef")
    before = everything(storage)
    assert gc(storage, "--remove") == 0
    assert everything(storage) == before


def test_no_link_is_followed(storage, dataset, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    shared = elsewhere / dataset.name
    elsewhere.mkdir()
    dataset.rename(shared)
    dataset.symlink_to(shared)
    old(elsewhere / "thesis" / "manifest.json")
    (storage / "trials" / ID / ".x.0123456789ab.tmp").symlink_to(elsewhere / "thesis")
    (storage / "trials" / ID / ".y.0123456789ab.tmp").symlink_to("/nowhere")
    (storage / "trials" / ("f" * 16)).symlink_to(elsewhere / "thesis")
    old(elsewhere / "thesis" / ".x.json.0123456789ab.tmp")
    (storage / "sweeps").symlink_to(elsewhere)
    old(elsewhere / "ray" / "0123456789ab" / "x")
    before = everything(tmp_path)
    assert gc(storage, "--datasets", "--remove") == 0
    assert everything(tmp_path) == before and parquet.is_complete(DATA, storage / "datasets")
    assert "behind a link, so it stays" in capsys.readouterr().out


@pytest.mark.parametrize("inside", [[], ["datasets/mine/x"], ["trials/run-1/x"], ["sweeps/table1.yaml"]])
def test_a_folder_that_is_no_storage_is_refused(tmp_path, capsys, inside):
    for name in inside:
        old(tmp_path / name)
    old(tmp_path / ".x.json.0123456789ab.tmp")
    before = everything(tmp_path)
    assert gc(tmp_path, "--remove") == gc(tmp_path / "absent", "--remove") == 2
    assert everything(tmp_path) == before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("expected a storage" in line for line in said)


def test_an_empty_storage_variable_means_no_folder(storage, monkeypatch, capsys):
    monkeypatch.chdir(storage)
    monkeypatch.setenv("IDP_STORAGE", "")
    path = old(storage / "trials" / ID / ".result.json.0123456789ab.tmp")
    assert main(["gc", "--remove"]) == 2 and path.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_beside_a_run_that_lives_only_what_it_can_not_use_is_freed(storage, dataset, capsys, monkeypatch):
    monkeypatch.setattr("orchestrator.storage.leases.EXPIRY_SECONDS", 1.2)
    other, path = "f" * 16, old(storage / "trials" / ID / ".result.json.0123456789ab.tmp")
    kept = [
        old(storage / "trials" / other / ".result.json.0123456789ab.tmp"),
        old(dataset / ".manifest.json.ab_cdef1.tmp"),
        old(storage / "sweeps" / "s" / "ray" / "0123456789ab" / "notes.json"),
    ]
    lost = elsewhere(storage / "working" / "0123456789ab")
    with Storage(storage).at_work() as mark, take(storage / "trials" / other, Owner.here()).beating():
        assert gc(storage, "--datasets", "--remove") == 0
        assert "2 runs or trials are at work" in capsys.readouterr().err
        assert not path.exists() and not lost.exists() and dataset.is_dir() and all(path.exists() for path in kept)
        assert gc(storage, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert set(said["running"]) == {mark.name, other} and said["items"] == []
    assert not (storage / "working").exists()


def test_a_run_that_begins_removes_the_marks_of_runs_that_are_lost(storage, monkeypatch):
    monkeypatch.setattr("orchestrator.storage.leases.EXPIRY_SECONDS", 60.0)
    lost, silent, patient = (elsewhere(storage / "working" / name) for name in ("lost", "silent", "patient"))
    for mark, seconds in (lost, 700), (silent, 500), (patient, 700):
        write_note(mark, RunNote(sweep="s", user="u"))
        os.utime(mark / ".lease-000001", (time.time() - seconds,) * 2)
    lease = patient / ".lease-000001"
    lease.write_text(lease.read_text().replace("60.0", "3600.0"))
    os.utime(lease, (time.time() - 700,) * 2)
    assert {run.path: run.lost for run in runs(Storage(storage))} == {lost: True, silent: False, patient: False}
    with Storage(storage).at_work():
        assert not lost.exists() and silent.is_dir() and patient.is_dir()


def test_what_was_just_written_without_a_sign_stays(storage, dataset):
    live = dataset / ".train-00000.parquet.ab_cdef1.tmp"
    live.write_text("x")
    notes = storage / "sweeps" / "s" / "ray" / "0123456789ab"
    old(notes / "old.json")
    (notes / "new.json").write_text("x")
    assert gc(storage, "--remove") == 0
    assert live.exists() and (notes / "old.json").exists()


def test_a_power_cut_does_not_block_for_ever(storage, monkeypatch, capsys):
    monkeypatch.setattr("orchestrator.storage.leases.EXPIRY_SECONDS", 0.3)
    elsewhere(storage / "trials" / ID)
    elsewhere(storage / "working" / "0123456789ab")
    path = old(storage / "trials" / ID / ".result.json.0123456789ab.tmp")
    assert gc(storage, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["running"]) == {ID, "0123456789ab"}
    assert gc(storage, "--remove") == 0
    assert not path.exists() and not (storage / "working" / "0123456789ab").exists()
