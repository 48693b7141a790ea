"""A trial in this process: what it leaves behind, and that an interruption changes nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_trial import Stop, small_trial

from orchestrator.storage.layout import Storage
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import ExecutionSpec, TrialSpec, trial_id
from orchestrator.trial.train import TrialOptions, _out_of_memory, run_trial
from planners.specs import PlannerSpec, TrainingSpec

SPEC = small_trial(epochs=3)
NUMBERS = ("test_success_rate", "test_optimality", "test_spl", "train_loss", "forward_residual", "peak_bytes", "epochs")


def test_a_trial_leaves_the_contract_behind(storage):
    seen = []
    result = run_trial(SPEC, Storage(storage), seen.append)
    directory = Storage(storage).trial(trial_id(SPEC)).path
    assert {path.name for path in directory.iterdir()} == {
        "spec.json", "result.json", "curves.parquet", "checkpoint.pt", "log.txt", ".lease-000002",
    }  # fmt: skip
    assert TrialDirectory(directory).read_result() == result and result.status == "COMPLETED"
    assert TrialSpec.model_validate_json((directory / "spec.json").read_text()) == SPEC
    raw = json.loads((directory / "result.json").read_text())
    for field in (
        "status", "test_success_rate", "test_optimality", "test_spl", "trial_diverged", "forward_diverged",
        "forward_seconds", "backward_seconds", "forward_steps", "forward_residual", "peak_bytes", "train_seconds",
        "provenance",
    ):  # fmt: skip
        assert raw[field] is not None, field
    assert 0 <= raw["test_spl"] <= raw["test_success_rate"] <= 1
    assert raw["provenance"]["dataset_id"] == "navigation-9-" + raw["provenance"]["dataset_id"].split("-")[-1]
    curves = TrialDirectory(directory).read_curves()
    assert [row["epoch"] for row in curves] == [1, 2, 3] == [record["epoch"] for record in seen]
    assert torch.load(directory / "checkpoint.pt", weights_only=True)["trainer"]["epoch"] == 3


def test_an_adjoint_that_grows_is_told(storage):
    """SymVIN from the steerable library's weights is no contraction: its transposed Jacobian is none either."""
    symvin = {"core": "symvin", "initialisation": "library", "adjoint": "implicit", "k_fwd": 30, "k_bwd": 15}
    told = {}
    for solver in ("forward", "anderson"):
        spec = SPEC.model_copy(update={"planner": PlannerSpec(**symvin, solver_bwd=solver)})
        told[solver] = run_trial(spec, Storage(storage)).backward_stalled
    assert told == {"forward": True, "anderson": False}


def test_what_was_timed_on_a_shared_device_is_timed_again_where_that_is_asked_for(storage):
    first = run_trial(SPEC, Storage(storage))
    assert (
        not first.provenance.exclusive
        and run_trial(SPEC, Storage(storage), options=TrialOptions(exclusive=True)) == first
    )
    seen = []
    again = run_trial(SPEC, Storage(storage), seen.append, options=TrialOptions(exclusive=True, retime=True))
    assert again.provenance.exclusive and len(seen) == 3
    assert [getattr(again, name) for name in NUMBERS] == [getattr(first, name) for name in NUMBERS]
    assert run_trial(SPEC, Storage(storage), options=TrialOptions(exclusive=True, retime=True)) == again


def test_a_trial_that_shared_its_device_for_an_epoch_has_not_had_it_to_itself(storage):
    def stop(record):
        raise Stop

    with pytest.raises(Stop):
        run_trial(SPEC, Storage(storage), stop)
    assert not run_trial(SPEC, Storage(storage), options=TrialOptions(exclusive=True)).provenance.exclusive


def test_an_interrupted_trial_ends_with_the_numbers_of_an_undisturbed_one(storage):
    expected = run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    for path in directory.iterdir():
        path.unlink()

    def stop(record):
        if record["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        run_trial(SPEC, Storage(storage), stop)
    assert TrialDirectory(directory).read_result() is None
    epochs = []
    result = run_trial(SPEC, Storage(storage), lambda record: epochs.append(record["epoch"]))
    assert epochs == [3]
    assert [getattr(result, name) for name in NUMBERS] == [getattr(expected, name) for name in NUMBERS]


def test_epochs_of_other_code_are_not_mixed_in(storage):
    run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    state = torch.load(directory / "checkpoint.pt", weights_only=True)
    torch.save({**state, "code": "of yesterday"}, directory / "checkpoint.pt")
    (directory / "result.json").unlink()
    epochs = []
    run_trial(SPEC, Storage(storage), lambda record: epochs.append(record["epoch"]))
    assert epochs == [1, 2, 3]
    assert "made by other code" in (directory / "log.txt").read_text()


def test_out_of_memory_is_an_outcome(storage):
    spec = SPEC.model_copy(update={"execution": ExecutionSpec(memory_limit_gib=1e-4)})
    result = run_trial(spec, Storage(storage))
    assert result.status == "OUT_OF_MEMORY" and result.final
    assert result.peak_bytes > 1e-4 * 2**30
    assert "the limit is 0.00 GiB" in result.reason


def test_a_failure_keeps_its_traceback(tmp_path):
    result = run_trial(SPEC, Storage(tmp_path))
    assert result.status == "FAILED" and not result.final
    assert "Traceback" in result.traceback and result.reason in result.traceback
    assert Storage(tmp_path).trial(trial_id(SPEC)).read_result() == result


def test_a_trial_of_no_epochs_tests_the_initial_planner(storage):
    spec = SPEC.model_copy(update={"training": TrainingSpec(epochs=0)})
    result = run_trial(spec, Storage(storage))
    assert result.status == "COMPLETED" and result.epochs == 0
    assert result.forward_seconds is None and math.isfinite(result.test_success_rate)


def test_a_trial_reads_the_nodes_own_copy_where_there_is_a_place_for_it(storage, tmp_path, monkeypatch):
    expected = run_trial(SPEC, Storage(storage))
    (Storage(storage).trial(trial_id(SPEC)).path / "result.json").unlink()
    (Storage(storage).trial(trial_id(SPEC)).path / "checkpoint.pt").unlink()
    monkeypatch.setenv("IDP_CACHE", str(tmp_path / "node"))
    result = run_trial(SPEC, Storage(storage))
    assert [getattr(result, name) for name in NUMBERS] == [getattr(expected, name) for name in NUMBERS]
    assert list((tmp_path / "node").glob(f"*/{result.provenance.dataset_id}/manifest.json"))


def test_a_device_that_was_too_small_for_a_trial_without_a_limit_is_no_outcome():
    error, identity = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), {"trial_id": "0" * 16}
    result = _out_of_memory(error, "cuda", None, identity)
    assert result.status == "FAILED" and not result.final
    assert "PlacementError" in result.reason and "execution.memory_limit_gib" in result.reason
