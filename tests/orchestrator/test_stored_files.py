"""What stands in a storage instead of a file of ours, or was altered: refused by name, and never another number."""

import json
import math
import os
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutations import EXAMPLES, bounded, mutated
from samples import put_curves, put_result

from orchestrator.storage.evaluations import (
    EvaluationResult,
    known_evaluation,
    read_evaluation,
    write_evaluation,
)
from orchestrator.storage.files import append_line, parsed
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import (
    ResultError,
    TrialResult,
)
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.storage.variants import is_of
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from orchestrator.tracking.note import note_path, page_of
from orchestrator.trial.failure import stalled
from orchestrator.trial.watchdog import watched

ID = "0123456789abcdef"
RESULT = TrialResult(
    trial_id=ID, status="COMPLETED", test_success_rate=0.625, test_spl=0.5, train_loss=1.25, epochs=2, peak_bytes=1000,
    test_cells_by_distance=[8, 4], test_arrivals_by_distance=[6, 1], provenance=Provenance(code="c0de", host="here"),
)  # fmt: skip
FOUND = EvaluationResult(
    trial_id=ID, dataset_id="navigation-27-ab12", split="test", map_size=27, maps=9, k=54, success_rate=0.5,
    optimality=0.25, spl=0.375, accuracy=0.625, seconds=1.5, cells_by_distance=[9], arrivals_by_distance=[5],
)  # fmt: skip
CURVES = [
    {"epoch": n, "train_loss": 1 / n, "valid_success_rate": n / 8, "backward_residual": math.nan, "kernel": "compiled"}
    for n in (1, 2, 3)
]


@pytest.fixture
def directory(tmp_path):
    return Storage(tmp_path).trial(ID).path


@pytest.fixture
def evaluation(directory):
    write_evaluation(TrialDirectory(directory), FOUND)
    return TrialDirectory(directory).evaluation(FOUND.dataset_id, FOUND.split, FOUND.k)


def told(read, path, good):
    """Whether a damaged file is taken: then with its meaning; else one line names it."""
    try:
        found = read()
    except ResultError as error:
        assert str(path) in str(error) and "\n" not in str(error) and str(error).isprintable()
        return False
    assert repr(found) == repr(good)
    return True


def every_flip(content):
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def test_a_result_with_any_bit_flipped_is_damaged_or_the_same(directory):
    put_result(directory, RESULT)
    content = (directory / "result.json").read_bytes()
    same = 0
    for flipped in every_flip(content):
        try:
            found = parsed(TrialResult, flipped)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            same += 1
            assert found == RESULT
    assert same < 0.02 * 8 * len(content)  # blanks that stay blanks
    (directory / "result.json").write_bytes(content.replace(b"0.625", b"0.725"))
    assert Storage(directory.parents[1]).results()[ID].status == "FAILED"


def test_fuzzed_results_are_refused_or_the_same(directory):
    put_result(directory, RESULT)
    path = directory / "result.json"
    content = path.read_bytes()
    with bounded(processor_seconds=1 + 0.02 * EXAMPLES, mebibytes=100):
        for number in range(EXAMPLES):
            path.write_bytes(mutated(content, number))
            told(lambda: TrialDirectory(directory).read_result(), path, RESULT)


ODD = [None, True, -1, 2**63, 10**400, 1e308, -1e308, "", "x" * 5000, "\x1b[31m", "\ud800", [], [None], {}, {"a": 1}]
ODD += [[1e308] * 3, ["x"] * 6, [1, 2], [-1] * 2, "FAILED", math.nan, math.inf]


def test_fuzzed_results_of_0_1_0_have_no_number_that_cannot_be(directory):
    plain = RESULT.model_dump(mode="json")
    path = directory / "result.json"
    directory.mkdir(parents=True)
    for number in range(EXAMPLES):
        draw = random.Random(number)
        changed = json.loads(json.dumps(plain))
        within = draw.choice([changed, changed, changed["provenance"]])
        within[draw.choice(sorted(within))] = draw.choice(ODD)
        path.write_text(json.dumps(changed))
        found = TrialDirectory(directory).known_result()
        for name in ("test_success_rate", "test_optimality", "test_spl", "valid_success_rate", "test_accuracy"):
            assert getattr(found, name) is None or 0 <= getattr(found, name) <= 1
        assert found.reason.isprintable() and found.provenance.host.isprintable()
        assert found.trial_id == ID and found.epochs >= 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"test_success_rate": 7.0}, "test_success_rate"),
        ({"test_spl": -0.5}, "test_spl"),
        ({"forward_seconds": 1e308}, "forward_seconds"),
        ({"train_seconds": -1.0}, "train_seconds"),
        ({"peak_bytes": 10**400}, "peak_bytes"),
        ({"epochs": -1}, "epochs"),
        ({"forward_trace": ["a"]}, "forward_trace"),
        ({"test_cells_by_distance": [1] * 6, "test_arrivals_by_distance": [1]}, "arrivals"),
        ({"test_cells_by_distance": [1], "test_arrivals_by_distance": [2]}, "arrivals"),
        ({"provenance": {"cpus": -1}}, "provenance.cpus"),
        ({"trial_id": "f" * 16}, "the result of another trial"),
    ],
)
def test_a_result_without_a_checksum_is_of_this_trial_and_in_range(directory, changes, field):
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(json.dumps({**RESULT.model_dump(mode="json"), **changes}))
    with pytest.raises(ResultError, match=rf"result\.json: damaged: .*{field}"):
        TrialDirectory(directory).read_result()


def test_a_result_without_a_checksum_is_read_as_0_1_0_wrote_it(directory):
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(json.dumps(RESULT.model_dump(mode="json")))
    assert TrialDirectory(directory).read_result() == RESULT


def test_a_result_is_no_other_trials(directory):
    put_result(directory, RESULT)
    other = directory.with_name("f" * 16)
    directory.rename(other)
    assert Storage(other.parents[1]).results()["f" * 16].status == "FAILED"


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path.name)


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("stand_in", [folder, os.mkfifo, device, loop])
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (TrialDirectory.read_result, "result.json"),
        (TrialDirectory.read_curves, "curves.parquet"),
        (read_evaluation, None),
    ],
)
def test_what_is_no_file_is_refused_at_once(directory, stand_in, read, name):
    path = directory / name if name else TrialDirectory(directory).evaluation(FOUND.dataset_id, "test", FOUND.k)
    path.parent.mkdir(parents=True)
    stand_in(path)
    with bounded(processor_seconds=1, mebibytes=50), pytest.raises(ResultError, match=path.name):
        read(TrialDirectory(directory) if name else path)
    if name == "result.json":
        assert TrialDirectory(directory).known_result().status == "FAILED"


@pytest.mark.parametrize("stand_in", [os.mkfifo, device])
def test_what_is_no_file_stops_nobody_who_can_do_without(tmp_path, stand_in):
    storage, path = Storage(tmp_path / "storage"), tmp_path / "words.yaml"
    path.write_text("name: words\nplanners: {vin: {core: vin, adjoint: unrolled}}\n")
    sweep = load_sweep(path)
    (planned,) = expand(sweep)
    trial, note = storage.trial(planned.trial_id), note_path(storage, "words", "sqlite:///there")
    for there in (storage.sweep("words").variants, note, trial.log, trial.spec_file):
        there.parent.mkdir(parents=True, exist_ok=True)
        stand_in(there)
    with bounded(processor_seconds=2, mebibytes=50):
        assert is_of(sweep, storage, "report.html")
        assert page_of(storage, sweep, "sqlite:///there") == ""
        assert stalled(trial) == ""
        trial.write_spec(planned.spec)
    assert trial.read_spec() == planned.spec


@pytest.mark.parametrize("stand_in", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_log_is_not_written_to_nor_waited_for(tmp_path, stand_in):
    trial = Storage(tmp_path).trial(ID)
    trial.path.mkdir(parents=True)
    stand_in(trial.log)
    with bounded(processor_seconds=1, mebibytes=50):
        with pytest.raises(ResultError, match=r"log\.txt: expected a file"):
            trial.note("started")
        with pytest.raises(ResultError, match=r"log\.txt: expected a file"), watched(trial, 60.0):
            pass


def test_a_link_that_leads_nowhere_is_no_file(directory):
    directory.mkdir(parents=True)
    (directory / "result.json").symlink_to("/nowhere/at/all")
    assert TrialDirectory(directory).read_result() is None
    put_result(directory, RESULT)
    assert TrialDirectory(directory).read_result() == RESULT and not (directory / "result.json").is_symlink()


def test_a_file_among_the_trials_that_is_named_like_one_is_none(directory):
    directory.parent.mkdir(parents=True)
    (directory.parent / "deadbeef").write_text("x")
    assert Storage(directory.parents[1]).results() == {}


def test_a_file_that_is_far_too_large_is_not_read(directory):
    directory.mkdir(parents=True)
    with (directory / "result.json").open("wb") as file:
        file.truncate(2**40)
    with bounded(processor_seconds=1, mebibytes=50), pytest.raises(ResultError, match="at most"):
        TrialDirectory(directory).read_result()


def test_fuzzed_evaluations_are_refused_or_the_same(evaluation):
    content = evaluation.read_bytes()
    for number in range(EXAMPLES):
        evaluation.write_bytes(mutated(content, number))
        if not told(lambda: read_evaluation(evaluation), evaluation, FOUND):
            assert known_evaluation(evaluation) is None


@pytest.mark.parametrize(
    "changes",
    [{"success_rate": 1.5}, {"spl": math.nan}, {"k": 10**300}, {"dataset_id": "../x"}, {"trial_id": "f" * 16}],
)
def test_an_evaluation_is_in_range_and_of_its_name(evaluation, changes):
    evaluation.write_text(json.dumps({**FOUND.model_dump(mode="json"), **changes}))
    with pytest.raises(ResultError, match="damaged"):
        read_evaluation(evaluation)
    evaluation.write_text(json.dumps(FOUND.model_dump(mode="json")))
    assert read_evaluation(evaluation) == FOUND


def test_fuzzed_curves_are_refused_or_the_same(directory):
    put_curves(directory, CURVES)
    path = directory / "curves.parquet"
    content = path.read_bytes()
    assert repr(TrialDirectory(directory).read_curves()) == repr(CURVES)
    with bounded(processor_seconds=2 + 0.05 * EXAMPLES, mebibytes=300):
        for number in range(EXAMPLES):
            path.write_bytes(mutated(content, number))
            told(lambda: TrialDirectory(directory).read_curves(), path, CURVES)


def test_a_curve_with_a_bit_flipped_is_damaged_or_the_same(directory):
    put_curves(directory, CURVES)
    path = directory / "curves.parquet"
    flips = list(every_flip(path.read_bytes()))
    for flipped in random.Random(0).sample(flips, 400):
        path.write_bytes(flipped)
        told(lambda: TrialDirectory(directory).read_curves(), path, CURVES)


@pytest.mark.parametrize(
    "columns",
    [
        {"epoch": list(range(1, 3_000_001))},
        {"epoch": [1, 2], "kernel": ["x" * 100_000] * 2},
        {"epoch": [1, 1]},
        {"epoch": [1.5]},
        {"epoch": [1], "valid_success_rate": [2.0]},
        {"epoch": [1], "train_seconds": [-1.0]},
        {"epoch": [1], "train_loss": [[1.0]]},
        {"train_loss": [1.0]},
        {"epoch": [None]},
    ],
)
def test_curves_of_0_1_0_are_epochs_with_numbers_and_not_endless(directory, columns):
    directory.mkdir(parents=True)
    pq.write_table(pa.table(columns), directory / "curves.parquet")
    with bounded(processor_seconds=5, mebibytes=300), pytest.raises(ResultError, match=r"curves\.parquet: damaged"):
        TrialDirectory(directory).read_curves()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_log_of_another_users_stays_theirs():
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's own, which is closed to others
        os.chmod(folder, 0o777)
        log = Path(folder, "log.txt")
        append_line(log, "first")
        child = os.fork()
        if not child:
            os.setuid(65534)
            append_line(log, "second")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert log.read_text() == "first\n" and Path(folder, "log.65534.txt").read_text() == "second\n"
