import importlib
import itertools
import json
import math
import sys
import threading

import pytest
from samples import put_curves, put_result

from datagen.spec import Spec
from orchestrator import api
from orchestrator.api import read_results
from orchestrator.storage import results as stored
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance, provenance
from orchestrator.storage.results import (
    ResultError,
    TrialResult,
    write_bytes,
)
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import SweepError, expand
from orchestrator.trial.failure import record_failure
from orchestrator.words import outcome

ID = "0123456789abcdef"


def test_a_result_comes_back_as_it_was(tmp_path):
    result = TrialResult(
        trial_id=ID, status="COMPLETED", test_success_rate=0.5, peak_bytes=123, provenance=Provenance(code="c0de")
    )
    directory = Storage(tmp_path).trial(ID).path
    assert TrialDirectory(directory).read_result() is None
    put_result(directory, result)
    assert TrialDirectory(directory).read_result() == result
    assert Storage(tmp_path).results() == {ID: result}
    assert [path.name for path in directory.iterdir()] == ["result.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_result_json_is_json_even_where_a_number_is_not_finite(tmp_path, value):
    result = TrialResult(trial_id=ID, status="COMPLETED", forward_residual=value, of_a_later_version=value)
    put_result(tmp_path, result)
    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert content["forward_residual"] is None
    assert content["of_a_later_version"] is None


def test_fields_of_a_later_version_survive(tmp_path):
    (tmp_path / "result.json").write_text(
        json.dumps({"trial_id": ID, "status": "COMPLETED", "novel": [1, 2], "provenance": {"moon": "full"}})
    )
    result = TrialDirectory(tmp_path).read_result()
    assert result is not None
    put_result(tmp_path, result)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["novel"] == [1, 2]
    assert again["provenance"]["moon"] == "full"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"trial_id": "x"}', b'{"trial_id": "x", "status": "FINE"}', b"\xff"]
)
def test_an_unreadable_result_is_a_failed_trial_that_names_the_file(tmp_path, content):
    directory = Storage(tmp_path).trial(ID).path
    directory.mkdir(parents=True)
    (directory / "result.json").write_bytes(content)
    with pytest.raises(ResultError, match=r"result\.json"):
        TrialDirectory(directory).read_result()
    result = Storage(tmp_path).results()[ID]
    assert result.status == "FAILED" and not result.final
    assert "result.json" in result.reason


@pytest.mark.parametrize("name", ["..", "../../etc", "", "a/b", "0123456", "0123456789ABCDEF", "g" * 16])
def test_no_trial_id_leads_out_of_the_storage(tmp_path, name):
    with pytest.raises(ValueError, match="trial id"):
        Storage(tmp_path).trial(name)


def test_foreign_folders_among_the_trials_are_not_results(tmp_path):
    (tmp_path / "trials" / "lost+found").mkdir(parents=True)
    (tmp_path / "trials" / ID).mkdir()
    assert Storage(tmp_path).results() == {}


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(20)]
    write_bytes(path, contents[0])
    stop = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        write_bytes(path, content)
    stop.set()
    reader.join()
    assert seen and all(content in contents for content in seen)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(OSError):
        write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_spec_json_holds_the_defaults_too(tmp_path):
    class Small(Spec):
        width: int = 3

    TrialDirectory(tmp_path).write_spec(Small())
    assert json.loads((tmp_path / "spec.json").read_text()) == {"width": 3}


def test_curves_come_back_row_by_row(tmp_path):
    assert TrialDirectory(tmp_path).read_curves() == []
    records = [{"epoch": 1, "train_loss": 1.5, "forward_diverged": False}]
    records.append({"epoch": 2, "train_loss": 0.5, "forward_diverged": True})
    put_curves(tmp_path, records)
    assert TrialDirectory(tmp_path).read_curves() == records
    whole = (tmp_path / "curves.parquet").read_bytes()
    for damaged in (b"PAR1 no", whole[:4] + bytes(40) + whole[44:]):  # no footer, no page
        (tmp_path / "curves.parquet").write_bytes(damaged)
        with pytest.raises(ResultError, match=r"curves\.parquet"):
            TrialDirectory(tmp_path).read_curves()


@pytest.mark.slow
def test_curves_are_read_whole_while_a_trial_replaces_them(tmp_path):
    lengths, stop = (1, 2, 40), threading.Event()
    records = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in range(1, 41)]
    put_curves(tmp_path, records)

    def replace() -> None:
        for length in itertools.cycle(lengths):
            if stop.is_set():
                return
            put_curves(tmp_path, records[:length])

    trial = threading.Thread(target=replace)
    trial.start()
    try:
        found = {len(TrialDirectory(tmp_path).read_curves()) for _ in range(2000)}
    finally:
        stop.set()
        trial.join()
    assert found == set(lengths)


def test_provenance_says_what_produced_the_numbers():
    origin = provenance("navigation-15-0", "cpu")
    assert origin.code == code_hash() and len(code_hash()) == 12
    assert origin.dataset_id == "navigation-15-0"
    assert origin.accelerator == "cpu"
    assert {"python", "torch", "numpy", "ray", "mlflow"} <= origin.versions.keys()
    assert origin.host and origin.cpus >= 1


def test_a_failure_keeps_its_traceback(tmp_path):
    try:
        raise KeyError("a\nb")
    except KeyError as error:
        result = record_failure(TrialDirectory(tmp_path), error)
    assert TrialDirectory(tmp_path).read_result() == result
    assert result.status == "FAILED" and "\n" not in result.reason
    assert "test_a_failure_keeps_its_traceback" in result.traceback


def test_a_notebook_reads_a_sweep_as_a_table(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("{name: s, planners: {vin: {core: vin}}, grid: {seed: [0, 1, 2]}}")
    first, second, _ = expand(load_sweep(path))
    fresh = Provenance(code=code_hash(), host="here")
    for trial, origin in ((first, fresh), (second, Provenance(code="old"))):
        result = TrialResult(trial_id=trial.trial_id, status="COMPLETED", test_success_rate=0.5, provenance=origin)
        put_result(Storage(tmp_path).trial(trial.trial_id).path, result)
    table = read_results(path, tmp_path)
    assert table["seed"].to_pylist() == [0, 1, 2]
    assert table["status"].to_pylist() == ["COMPLETED", "COMPLETED", "MISSING"]
    assert table["stale"].to_pylist() == [False, True, False]
    assert table["test_success_rate"].to_pylist() == [0.5, 0.5, None]
    assert table["provenance_host"].to_pylist() == ["here", "", None]
    assert len(table.to_pandas()) == 3


@pytest.mark.parametrize("products", [15, 30, 60])
@pytest.mark.parametrize(
    ("growth", "stalled"), [(0.5, False), (0.9, False), (0.99, False), (1.0, False), (1.35, True), (2.0, True)]
)
def test_an_adjoint_iteration_that_grows_is_told_from_one_that_converges_slowly(products, growth, stalled):
    w, trace = 0.0, []
    for _ in range(products):
        before, w = w, growth * w + 1.0
        trace.append(abs(w - before) / abs(w))
    done = TrialResult(trial_id=ID, status="COMPLETED", test_success_rate=0.5, backward_trace=trace)
    assert done.backward_stalled == stalled
    assert ("adjoint iteration stalled" in outcome(done)) == stalled


def test_an_adjoint_that_is_not_finite_has_stalled_and_one_that_is_exact_has_not():
    traces = {True: [[0.5, 0.4, None], [0.5, None, None]], False: [[], [0.0], [0.5, 0.1, 0.0], [1e-9] * 15]}
    for stalled, those in traces.items():
        for trace in those:
            result = TrialResult(trial_id=ID, status="COMPLETED", backward_trace=trace)
            assert result.backward_stalled == stalled, trace


def test_the_old_places_of_read_results_have_it_still(monkeypatch):
    monkeypatch.delitem(sys.modules, "orchestrator.results", raising=False)
    with pytest.warns(DeprecationWarning, match=r"orchestrator\.results is now orchestrator\.storage\.results"):
        old = importlib.import_module("orchestrator.results")
    assert old.read_results is stored.read_results is api.read_results
    with pytest.raises(AttributeError, match="has no attribute 'read_result_s'"):
        stored.read_result_s  # noqa: B018


@pytest.mark.parametrize("storage", ["", "s3://bucket", None])
def test_a_notebook_reads_no_folder_that_is_no_storage(tmp_path, monkeypatch, storage):
    monkeypatch.setenv("IDP_STORAGE", "")
    (tmp_path / "sweep.yaml").write_text("{name: s, planners: {vin: {core: vin}}}")
    with pytest.raises(SweepError, match="expected"):
        read_results(tmp_path / "sweep.yaml", storage)
