"""A storage's names are spelled in one place, and how a trial has ended is written under its lease alone."""

import ast
from pathlib import Path

import pytest

import orchestrator
from orchestrator.storage.layout import Storage, is_dataset_id
from orchestrator.storage.leases import LeaseLost, Owner
from orchestrator.storage.results import TrialResult

ID = "0123456789abcdef"
NAMES = {
    *("spec.json", "result.json", "curves.parquet", "checkpoint.pt", "checkpoint.previous.pt", "divergence.pt"),
    *("log.txt", "mlflow.db", "variants.json", "working", "measurements", "IDP_STORAGE"),
}
COMPLETED = TrialResult(trial_id=ID, status="COMPLETED")
FAILED = TrialResult(trial_id=ID, status="FAILED")


@pytest.fixture
def trial(tmp_path):
    return Storage(tmp_path).trial(ID)


def test_every_name_is_spelled_in_one_place():
    places = {name: set() for name in NAMES}
    for path in Path(orchestrator.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in NAMES:
                places[node.value].add(path.name)
    assert all(len(files) == 1 for files in places.values()), places


def test_a_result_is_published_by_the_holder_of_the_lease_alone(trial):
    first = trial.take(Owner.here("a run"))
    second = trial.take(Owner.here("a run"))
    for write in (
        lambda: trial.publish(first, COMPLETED),
        lambda: trial.write_curves(first, [{"epoch": 1}]),
        lambda: trial.forget_result(first),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert trial.read_result() is None and trial.read_curves() == []
    assert trial.publish(second, COMPLETED) == trial.read_result() == COMPLETED


def test_a_lease_of_another_trial_is_none(tmp_path, trial):
    lease = Storage(tmp_path).trial("f" * 16).take(Owner.here())
    with pytest.raises(AssertionError, match=f"is not {trial}"):
        trial.publish(lease, COMPLETED)
    assert trial.read_result() is None


def test_a_final_result_is_replaced_by_a_final_one_alone_and_ends_what_is_left_of_the_run(trial):
    lease = trial.take(Owner.here())
    trial.previous_checkpoint.write_bytes(b"")
    trial.cancel("enough")
    assert trial.publish(lease, FAILED) == trial.read_result() == FAILED
    assert trial.previous_checkpoint.exists() and trial.why_cancelled() == "enough"
    assert trial.publish(lease, COMPLETED) == COMPLETED
    assert not trial.previous_checkpoint.exists() and not trial.is_cancelled()
    assert trial.publish(lease, FAILED) == trial.read_result() == COMPLETED
    with pytest.raises(AssertionError, match="a final result is kept"):
        trial.forget_result(lease)


@pytest.mark.parametrize("wrong", ["../maze-5-0123456789ab", "/a/maze-5-0123456789ab", "maze-5-0123456789ab\n", ".."])
def test_no_dataset_has_a_name_that_leads_elsewhere(wrong):
    assert is_dataset_id("maze-5-0123456789ab") and not is_dataset_id(wrong)


def test_looking_makes_nothing(tmp_path, trial):
    storage = Storage(tmp_path / "none")
    assert storage.results() == {} and storage.trial_folders() == storage.dataset_folders() == []
    assert trial.read_result() is trial.latest_lease() is trial.known_spec() is None and trial.read_curves() == []
    assert not trial.is_cancelled() and not trial.trained and trial.evaluations == []
    assert list(tmp_path.iterdir()) == []
