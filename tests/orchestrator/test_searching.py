"""Searches: suggestions that follow from the storage alone, and when a trial is not worth going on with."""

from __future__ import annotations

import json
import math
import os
import statistics
import zlib

import pytest
from mutations import EXAMPLES, bounded, mutated
from samples import put_curves, put_result

from orchestrator.api import load_planner
from orchestrator.campaign import search as searching
from orchestrator.campaign.search import EarlyStopping, StudyStopping, keep_journal, next_suggestions, state_of_search
from orchestrator.cli.main import main
from orchestrator.figures.parts import NothingToDraw
from orchestrator.figures.registry import draw
from orchestrator.report.page import report
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.suggestions import planned_trials, read_suggestions, write_suggestions
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import Expansion, SweepError, expand
from orchestrator.tables.records import collect
from orchestrator.tables.studies import studies_of

SWEEP = """
name: hunt
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 4, q_channels: 4}}
data: {train: 64, valid: 16, test: 16}
tasks: [{map_size: 9}]
grid: {seed: [0, 1]}
training: {epochs: 2}
search:
  trials: 12
  at_once: 3
  space:
    training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}
    k: {choices: [2, 4, 8]}
"""


def suggested(storage, sweep):
    """What has been suggested, by study, whatever it was made for."""
    found = {}
    for study, made in read_suggestions(storage, sweep).items():
        found.setdefault(study.partition("@")[0], []).extend(made)
    return found


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "hunt.yaml"
    path.write_text(SWEEP)
    return path


def finish(storage, trial, value, status="COMPLETED"):
    directory = Storage(storage).trial(trial.trial_id).path
    put_curves(directory, [{"epoch": 1, "train_seconds": 1.0, "valid_success_rate": value}])
    provenance = Provenance(code=code_hash())
    put_result(directory, TrialResult(trial_id=trial.trial_id, status=status, provenance=provenance))


def play(path, storage, rounds):
    """Run a search whose best learning rate is 1e-3, without training anything."""
    sweep = load_sweep(path)
    for _ in range(rounds):
        assert next_suggestions(sweep, Storage(storage))
        for trial in expand(sweep, suggested(Storage(storage), sweep.name)):
            rate = trial.spec.training.learning_rate
            finish(storage, trial, 1 / (1 + abs(rate - 1e-3) * 100) + 0.01 * trial.spec.seed)
    return suggested(Storage(storage), sweep.name)


def test_a_search_ends_after_its_trials_and_each_runs_once_per_seed(path, tmp_path):
    found = play(path, tmp_path / "storage", 4)
    assert len(found["0/vin"]) == 12
    sweep = load_sweep(path)
    assert not next_suggestions(sweep, Storage(tmp_path / "storage"))
    trials = expand(sweep, found)
    assert len(trials) == 24 and {trial.axes["seed"] for trial in trials} == {0, 1}
    assert all(trial.spec.planner.k_fwd == trial.axes["k"] for trial in trials)
    assert all(trial.axes["training.learning_rate"] == trial.spec.training.learning_rate for trial in trials)


def test_suggestions_follow_from_the_storage_and_learn_from_results(path, tmp_path):
    assert play(path, tmp_path / "one", 4) == play(path, tmp_path / "two", 4)
    rates = [s["training.learning_rate"] for s in play(path, tmp_path / "three", 4)["0/vin"]]
    assert len(set(rates)) == 12


def test_a_round_waits_for_the_one_before(path, tmp_path):
    sweep = load_sweep(path)
    assert next_suggestions(sweep, Storage(tmp_path))
    assert not next_suggestions(sweep, Storage(tmp_path))


@pytest.mark.parametrize("same_study", [True, False])
def test_a_run_that_another_was_faster_than_goes_on(path, tmp_path, monkeypatch, same_study):
    sweep, lost = two_planners(path), []

    def slower(storage, name, suggestions, number):
        if not lost:
            lost.append(number)
            theirs = {"0/vin" if same_study else "0/b": [{"training.learning_rate": 0.1, "k": 2}]}
            assert write_suggestions(Storage(storage), name, theirs, number)
        return write_suggestions(Storage(storage), name, suggestions, number)

    monkeypatch.setattr(searching, "write_suggestions", slower)
    assert next_suggestions(sweep, Storage(tmp_path))
    found = suggested(Storage(tmp_path), "hunt")
    assert (len(found["0/vin"]), len(found["0/b"])) == ((1, 3) if same_study else (3, 1))


def test_each_suggestion_is_made_into_trials_once_however_many_ask(path, tmp_path, monkeypatch):
    play(path, tmp_path, 3)
    made, make = [], Expansion._spec
    monkeypatch.setattr(Expansion, "_spec", lambda *place: made.append(place) or make(*place))
    sweep = load_sweep(path)
    trials, _ = planned_trials(sweep, Storage(tmp_path))
    state_of_search(sweep, Storage(tmp_path))
    assert (
        next_suggestions(sweep, Storage(tmp_path))
        and planned_trials(sweep, Storage(tmp_path))[0][: len(trials)] == trials
    )
    assert len(made) == len({str(place[3]) for place in made}) >= 24
    assert expand(load_sweep(path), suggested(Storage(tmp_path), "hunt")) == planned_trials(sweep, Storage(tmp_path))[0]


def test_sweeps_of_one_name_search_each_for_themselves(path, tmp_path):
    """A profile or `--set` that changes what is searched on makes suggestions of its own; more seeds go on."""
    play(path, tmp_path, 1)
    for change, goes_on in (("grid.seed=[0,1,2]", True), ("training.epochs=3", False), ("tasks.0.map_size=7", False)):
        trials, words = planned_trials(load_sweep(path, None, [change]), Storage(tmp_path))
        assert bool(trials) == goes_on and not words, change


def test_two_runs_make_one_round(tmp_path):
    assert write_suggestions(Storage(tmp_path), "s", {"0/vin": [{"k": 2}]}, 0)
    assert not write_suggestions(Storage(tmp_path), "s", {"0/vin": [{"k": 8}]}, 0)
    assert suggested(Storage(tmp_path), "s") == {"0/vin": [{"k": 2}]}


def test_a_search_needs_validation_maps(path):
    with pytest.raises(SweepError, match=r"hunt.yaml: search.metric 'valid_success_rate' needs .* is 0 for 0/vin"):
        load_sweep(path, overrides=["data.valid=0"])
    with pytest.raises(SweepError, match=r"data.valid is 0 for 1/vin"):
        load_sweep(path, overrides=["tasks=[{map_size: 9}, {map_size: 11, valid: 0}]"])


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("nonsense=1", "unknown key 'nonsense'"),
        ("planner=typo", "--only planner=typo: no trial of the sweep matches; known: vin"),
        ("task=mazes", "--only task=mazes: no trial"),
        ("planner=vin,seed=7", "--only seed=7: no trial"),
    ],
)
def test_a_choice_that_no_study_has_is_refused_before_anything_is_written(path, tmp_path, capsys, only, message):
    storage = tmp_path / "storage"
    for verb in ("run", "plan", "table", "report", "figures", "cancel", "retry"):
        assert main([verb, str(path), "--storage", str(storage), "--only", only]) == 2, verb
        assert message in capsys.readouterr().err
    assert not storage.exists()


def test_a_choice_of_what_is_searched_is_refused_once_the_suggestions_are_known(path, tmp_path, capsys):
    storage = tmp_path / "storage"
    for only in ("training.learning_rate=0.5,k=2", "id=ffff"):
        assert main(["plan", str(path), "--storage", str(storage), "--only", only]) == 0
        assert main(["run", str(path), "--storage", str(storage), "--only", only]) == 2
        assert "no trial of the sweep matches" in capsys.readouterr().err
    assert not storage.exists()
    assert next_suggestions(load_sweep(path), Storage(storage), "planner=vin,seed=1")
    with pytest.raises(SweepError, match="expected one trial, got no trial"):
        load_planner(path, planner="vin", storage=tmp_path / "other")


def test_a_search_without_suggestions_is_planned_and_tabulated(path, tmp_path, capsys):
    for verb in ("plan", "table"):
        assert main([verb, str(path), "--storage", str(tmp_path)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{k: {low: 3, high: 3}}", "low < high"),
        ("{k: {choices: []}}", "either choices (at least one), or low and high"),
        ("{k: {low: 0, high: 3, log: true}}", "low must be above 0"),
        ("{}", "search.space"),
        ("{q_channels: {low: 2, high: 8}}", "search.space: q_channels: expected k, seed, planner.FIELD or training"),
        ("{learning_rate: {low: 0.1, high: 1.0}}", "did you mean 'training.learning_rate'?"),
        ("{training.optimizer: {choices: [adam, rmsporp]}}", "training.optimizer=rmsporp is impossible for 0/vin"),
        ("{planner.kernel_size: {choices: [2, 4]}}", "planner.kernel_size=2 is impossible for 0/vin"),
        ("{training.batch_size: {low: 65, high: 99}}", "nothing in it is possible for 0/vin"),
        ("{training.learning_rate: {choices: [1e-3, 0.001]}}", "0.001 is given twice"),
        ("{training.epsilon: {low: -1.7e308, high: 1.7e308}}", "training.epsilon: expected ends that a number can"),
        ("{training.learning_rate_decay: {low: 0.5, high: 1.0e300}}", "decay.high: expected 1.0 or less, got 1e+300"),
        ("{planner.hidden_channels: {choices: [3]}}", "hidden_channels: search.space.planner.hidden_channels sets it"),
        ("{k: {low: 0, high: 8}}", "search.space.k.low: expected 1 or more, got 0"),
        ("{planner.kernel_size: {low: 0, high: 8}}", "search.space.planner.kernel_size.low: expected "),
    ],
)
def test_a_space_that_holds_nothing_possible_is_refused_when_the_sweep_is_read(path, space, message):
    path.write_text(SWEEP.partition("search:")[0] + "search: {space: " + space + "}\n")
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def with_space(path, space, **search):
    lines = "".join(f"  {name}: {value}\n" for name, value in {"trials": 8, "at_once": 2, **search}.items())
    path.write_text(SWEEP.partition("search:")[0] + f"search:\n{lines}  space: {space}\n")
    return load_sweep(path)


def all_rounds(sweep, storage, value=lambda trial: 0.5, status="COMPLETED"):
    """Play a search to its end without training; returns its suggestions."""
    for _ in range(50):
        if not next_suggestions(sweep, Storage(storage)):
            return suggested(Storage(storage), sweep.name)["0/vin"]
        for trial in planned_trials(sweep, Storage(storage))[0]:
            if Storage(storage).trial(trial.trial_id).read_result() is None:
                finish(storage, trial, value(trial), status)
    raise AssertionError("the search does not end")


def test_an_impossible_suggestion_is_never_made_and_none_is_made_twice(path, tmp_path):
    sizes = [
        s["planner.kernel_size"]
        for s in all_rounds(with_space(path, "{planner.kernel_size: {low: 3, high: 8}}"), tmp_path)
    ]
    assert sorted(sizes) == [3, 5, 7]
    rates = all_rounds(with_space(path, "{training.learning_rate: {choices: [0.01, 1e-3]}}"), tmp_path / "two")
    assert sorted(rate["training.learning_rate"] for rate in rates) == [0.001, 0.01]


def test_failed_suggestions_count_as_bad_ones_and_the_search_comes_to_its_end(path, tmp_path):
    sweep = with_space(path, "{training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}}", trials=6)
    assert len(all_rounds(sweep, tmp_path / "all", status="FAILED")) == 6
    assert state_of_search(sweep, Storage(tmp_path / "all")) == [
        "search: 0/vin: 6 of at most 6 suggestions tried, 6 of them failed"
    ]
    sweep = with_space(path, "{training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}}", trials=20, at_once=4)
    storage = tmp_path / "half"
    for _ in range(5):
        assert next_suggestions(sweep, Storage(storage))
        for trial in planned_trials(sweep, Storage(storage))[0]:
            bad = trial.spec.training.learning_rate > 1e-3
            finish(storage, trial, float("nan") if bad else 0.5, "FAILED" if bad else "COMPLETED")
    rates = [s["training.learning_rate"] for s in suggested(Storage(storage), "hunt")["0/vin"]]
    assert sum(rate > 1e-3 for rate in rates[-8:]) <= 2, rates


def test_the_suggestions_of_a_round_are_no_near_copies(path, tmp_path):
    sweep = with_space(path, "{training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}}", trials=16, at_once=4)
    for _ in range(4):
        assert next_suggestions(sweep, Storage(tmp_path))
        for trial in planned_trials(sweep, Storage(tmp_path))[0]:
            finish(tmp_path, trial, 1 / (1 + abs(math.log10(trial.spec.training.learning_rate) + 3)))
    rates = [math.log10(s["training.learning_rate"]) for s in suggested(Storage(tmp_path), "hunt")["0/vin"]]
    spreads = [statistics.pstdev(rates[first : first + 4]) for first in (4, 8, 12)]
    assert min(spreads) > 0.15, spreads


@pytest.mark.parametrize(
    ("space", "kept"),
    [
        ("{training.learning_rate: {choices: [0.1, 0.01]}}", [0.01]),
        ("{training.learning_rate: {choices: [0.01, 0.001]}}", [0.01, 0.001]),
        ("{training.learning_rate: {low: 0.005, high: 0.1}}", [0.01]),
        ("{training.learning_rate: {low: 0.001, high: 0.1}, training.gradient_clip: {low: 1.0, high: 40.0}}", []),
        ("{k: {choices: [2, 4]}}", []),
    ],
)
def test_a_space_that_was_edited_leaves_out_what_is_not_in_it_and_goes_on(path, tmp_path, capsys, space, kept):
    storage = tmp_path / "storage"
    write_suggestions(Storage(storage), "hunt", {"0/vin": [{"training.learning_rate": v} for v in (0.01, "1e-3")]}, 0)
    sweep = with_space(path, space)
    trials, words = planned_trials(sweep, Storage(storage))
    assert [t.axes["training.learning_rate"] for t in trials if t.spec.seed == 0] == kept
    assert len(words) == (len(kept) < 2) and all("0/vin are left out: training.learning_rate=" in w for w in words)
    for trial in trials:
        finish(storage, trial, 0.5)
    assert next_suggestions(sweep, Storage(storage)) == (len(kept) < 2)  # else all that the space holds has been tried
    assert main(["plan", str(path), "--storage", str(storage), "--json"]) == 0
    said = capsys.readouterr()
    assert ("are left out" in said.err) == bool(words)
    assert json.loads(said.out)["search"][0].startswith("search: 0/vin: ")


def test_what_was_suggested_twice_counts_once(path, tmp_path):
    sweep = load_sweep(path)
    twice = [{"training.learning_rate": 0.01, "k": 4}] * 3 + [{"training.learning_rate": 0.01, "k": 3}]
    write_suggestions(Storage(tmp_path), "hunt", {"0/vin": twice}, 0)
    trials, (words,) = planned_trials(sweep, Storage(tmp_path))
    assert len(trials) == len({trial.trial_id for trial in trials}) == 2
    assert "made before (and 2 more)" in words


def test_an_impossible_suggestion_of_an_older_version_stops_no_verb(path, tmp_path, capsys):
    with_space(path, "{planner.kernel_size: {low: 3, high: 7}}")
    folder = tmp_path / "sweeps" / "hunt" / "search"
    folder.mkdir(parents=True)
    (folder / "round-000000.json").write_text('{"0/vin": [{"planner.kernel_size": 6}, {"planner.kernel_size": 5}]}')
    for verb in ("plan", "table"):
        assert main([verb, str(path), "--storage", str(tmp_path)]) == 0
        assert "planner.kernel_size=6: planners.vin: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"0/vin": 5}', b'{"0/vin": [5]}', b'{"0/vin": [{"k": [1]}]}', b'{"0/vin": [{"k": NaN}]}',
     b"[" * 200_000, b"\xff", b'{"suggestions": {}, "sha256": "0"}'],
)  # fmt: skip
def test_a_damaged_round_is_refused_in_one_line_and_without_it_the_search_goes_on(path, tmp_path, capsys, content):
    sweep = load_sweep(path)
    for number in range(3):
        write_suggestions(
            Storage(tmp_path), "hunt", {"0/vin": [{"training.learning_rate": 0.1, "k": 2 ** (number + 1)}]}, number
        )
    damaged = tmp_path / "sweeps" / "hunt" / "search" / "round-000001.json"
    damaged.write_bytes(content)
    for verb in ("plan", "table"):
        assert main([verb, str(path), "--storage", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(damaged) in said and "without the file the search goes on" in said
    damaged.unlink()
    for trial in planned_trials(sweep, Storage(tmp_path))[0]:
        finish(tmp_path, trial, 0.5)
    assert next_suggestions(sweep, Storage(tmp_path))
    assert len(suggested(Storage(tmp_path), "hunt")["0/vin"]) == 5


@pytest.mark.parametrize("stand_in", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_a_round_that_is_no_file_is_refused_at_once(path, tmp_path, capsys, stand_in):
    there = tmp_path / "sweeps" / "hunt" / "search" / "round-000000.json"
    there.parent.mkdir(parents=True)
    stand_in(there)
    with bounded(processor_seconds=5, mebibytes=64):
        assert main(["plan", str(path), "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{there}: expected a file" in said
    assert "without the file the search goes on" in said


def test_fuzzed_rounds_mean_the_same_or_are_refused(tmp_path):
    meant = {"0/vin": [{"training.learning_rate": 0.0123, "k": 4, "planner.solver": "anderson"}], "1/b": []}
    write_suggestions(Storage(tmp_path), "hunt", meant, 0)
    path = tmp_path / "sweeps" / "hunt" / "search" / "round-000000.json"
    written = path.read_bytes()
    for number in range(EXAMPLES):
        path.write_bytes(mutated(written, number))
        with bounded(processor_seconds=2.0, mebibytes=64.0):
            try:
                assert suggested(Storage(tmp_path), "hunt") == meant, number
            except SweepError as error:
                assert "\n" not in str(error)


def two_planners(path, extra=""):
    path.write_text(SWEEP.replace("planners: {vin:", "planners: {b: {core: vin, adjoint: implicit}, vin:") + extra)
    return load_sweep(path)


def test_only_the_chosen_studies_go_on(path, tmp_path):
    sweep = two_planners(path)
    assert next_suggestions(sweep, Storage(tmp_path))
    for trial in planned_trials(sweep, Storage(tmp_path))[0]:
        finish(tmp_path, trial, 0.5)
    assert next_suggestions(sweep, Storage(tmp_path), "planner=vin")
    found = suggested(Storage(tmp_path), "hunt")
    assert (len(found["0/vin"]), len(found["0/b"])) == (6, 3)


def stop_at(stopping, trial, epoch, value):
    return stopping.stops(trial, {"epoch": epoch, "valid_success_rate": value})


def test_early_stopping_compares_within_a_study_and_survives_a_restart(path, tmp_path):
    sweep = two_planners(path, "  stopping: median\n")
    own = [{"training.learning_rate": rate, "k": 4} for rate in (0.1, 0.2, 0.3, 0.4)]
    write_suggestions(Storage(tmp_path), "hunt", {"0/vin": own, "0/b": own}, 0)
    trials = planned_trials(sweep, Storage(tmp_path))[0]
    vin, b = ([t for t in trials if t.axes["planner"] == name] for name in ("vin", "b"))
    stopping = StudyStopping(sweep, trials, Storage(tmp_path))
    assert not any(stop_at(stopping, trial, 1, 0.9) for trial in vin)
    # However well the other planner does, these are the first of their own.
    assert not any(stop_at(stopping, trial, 1, 0.1) for trial in b[:4])
    assert stop_at(stopping, b[4], 1, 0.05) and not stop_at(stopping, b[5], 1, 0.2)
    for trial in vin[:5]:
        finish(tmp_path, trial, 0.9)
    again = StudyStopping(sweep, trials, Storage(tmp_path))
    assert stop_at(again, vin[5], 1, 0.1) and not stop_at(again, b[5], 1, 0.05)


def test_early_stopping_never_compares_across_tasks_and_steps(path, tmp_path):
    path.write_text(
        SWEEP.replace("[{map_size: 9}]", "[{map_size: 9}, {map_size: 15}]")
        .replace("grid: {", "grid: {k: [4, 8], ").replace("    k: {choices: [2, 4, 8]}\n", "  stopping: median\n")
    )  # fmt: skip
    sweep = load_sweep(path)
    own = [{"training.learning_rate": rate} for rate in (0.1, 0.2, 0.3)]
    write_suggestions(Storage(tmp_path), "hunt", {"0/vin": own, "1/vin": own}, 0)
    trials = planned_trials(sweep, Storage(tmp_path))[0]
    stopping = StudyStopping(sweep, trials, Storage(tmp_path))
    cells: dict = {}
    for trial in trials:
        cells.setdefault((trial.axes["map_size"], trial.axes["k"]), []).append(trial)
    assert len(cells) == 4
    for rank, cell in enumerate(cells.values()):
        assert not any(stop_at(stopping, trial, 1, 0.9 - 0.2 * rank) for trial in cell)


def test_median_stopping_stops_the_worse_half_once_there_are_others():
    stopping = EarlyStopping("median")
    assert [stopping.stops(str(i), 1, value) for i, value in enumerate((0.5, 0.1, 0.9, 0.2, 0.8))] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert not stopping.stops("9", 2, 0.0) and not stopping.stops("9", 1, None)


def test_asha_keeps_the_best_third_at_its_rungs_only():
    stopping = EarlyStopping("asha")
    for i in range(6):
        assert not stopping.stops(str(i), 2, i / 10)
    values = [0.1, 0.2, 0.3, 0.4, 0.05, 0.5]
    assert [stopping.stops(str(i), 3, value) for i, value in enumerate(values)] == [
        False, False, False, False, True, False,
    ]  # fmt: skip


def test_a_real_search_runs_its_rounds_and_goes_on_where_it_was(path, storage_with_database, idp):
    text = SWEEP.replace("trials: 12", "trials: 4").replace("at_once: 3", "at_once: 2\n  stopping: median")
    text = text.replace("seed: [0, 1]", "seed: [0]").replace("planners: {vin:", "planners: {b: {core: vin}, vin:")
    path.write_text(text + "test_on: [{map_size: 7, test: 8}]\n")
    storage = storage_with_database
    command = ["run", path, "--storage", storage, "--in-process", "--only", "planner=vin", "--json"]
    done = idp(*command)
    assert done.returncode == 0, done.stderr
    found = suggested(Storage(storage), "hunt")
    assert (len(found["0/vin"]), len(found["0/b"])) == (4, 2)
    assert "search: 0/vin: 4 of at most 4 suggestions tried" in done.stderr and "4 trials in" in done.stderr
    directories = list((storage / "trials").iterdir())
    assert len(directories) == 4  # none of the other planner's
    for directory in directories:
        result = TrialDirectory(directory).read_result()
        assert result.status in ("COMPLETED", "CANCELLED")
        if result.status == "COMPLETED":
            assert len(list(directory.glob("evaluations/*.json"))) == 1, done.stderr
    before = {directory: (directory / "result.json").stat().st_mtime_ns for directory in directories}
    again = idp(*command)
    assert again.returncode == 0 and "in this process" not in again.stderr
    assert {directory: (directory / "result.json").stat().st_mtime_ns for directory in directories} == before
    assert json.loads(again.stdout)


def curves_of(storage, trial, values, status="COMPLETED", reason=""):
    directory = Storage(storage).trial(trial.trial_id).path
    records = [
        {"epoch": epoch, "train_seconds": 1.0, "train_loss": 1.0, "valid_success_rate": value}
        for epoch, value in enumerate(values, start=1)
    ]
    put_curves(directory, records)
    result = TrialResult(
        trial_id=trial.trial_id, status=status, reason=reason, test_success_rate=1 - values[-1], epochs=len(values),
        provenance=Provenance(code=code_hash()),
    )  # fmt: skip
    put_result(directory, result)


def searched(path, storage):
    """A search that has ended: the larger the learning rate, the better on validation and the worse on test maps."""
    sweep = with_space(
        path, "{training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}, k: {choices: [2, 4]}}", trials=8,
        at_once=4, stopping="median",
    )  # fmt: skip
    while next_suggestions(sweep, Storage(storage)):
        for number, trial in enumerate(planned_trials(sweep, Storage(storage))[0]):
            if Storage(storage).trial(trial.trial_id).read_result() is None:
                good = 0.6 + 0.05 * math.log10(trial.spec.training.learning_rate) + 0.01 * trial.spec.seed
                early = number // 2 == 3
                status = ("CANCELLED", "stopped early (median)") if early else ("COMPLETED", "")
                curves_of(storage, trial, [good / 2] if early else [good / 2, good], *status)
    return sweep


def test_what_a_search_found_is_shown_by_validation_and_the_test_maps_of_the_best_alone(path, tmp_path, capsys):
    sweep, storage = searched(path, tmp_path / "s"), Storage(tmp_path / "s")
    (study,) = studies_of(sweep.search, collect(sweep, planned_trials(sweep, storage)[0], storage))
    rates = {one.number: one.settings["training.learning_rate"] for one in study.tried}
    ended = [one for one in study.tried if one.state == "complete"]
    assert study.best.settings["training.learning_rate"] == max(rates[one.number] for one in ended)
    assert [one.state for one in study.ranked] == ["complete"] * 7 + ["stopped"]
    values = [one.value for one in study.ranked[:7]]
    assert values == sorted(values, reverse=True)
    assert all(rate == float(f"{rate:.4g}") for rate in rates.values()), "four digits say enough"
    assert main(["table", str(path), "--storage", str(storage.path)]) == 0
    said = capsys.readouterr().out
    search, test = said.split("the best settings by validation")
    assert "best valid_success_rate first" in search and "stopped early after epoch 1" in search
    tested = 100 * (1 - study.best.value)
    assert f"{tested:.1f} ±" in test and said.count(" 2/2 ") == 1, "one row of the test maps"
    assert all(f"{100 * (1 - one.value):.1f} ±" not in search for one in ended)
    assert main(["table", str(path), "--storage", str(storage.path), "--json"]) == 0
    (plain,) = json.loads(capsys.readouterr().out)["studies"]
    assert [one["value"] for one in plain["suggestions"][:7]] == values
    (line,) = state_of_search(sweep, storage)
    assert f"best valid_success_rate {study.best.value:.3f} with training.learning_rate=" in line


def test_optuna_and_its_dashboard_open_the_search(path, tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    sweep, storage = searched(path, tmp_path / "s"), Storage(tmp_path / "s")
    keep_journal(sweep, storage)
    journal = storage.sweep("hunt").journal
    before = journal.read_bytes()
    keep_journal(sweep, storage)
    assert journal.read_bytes() == before, "what is there stays"
    (study,) = studies_of(sweep.search, collect(sweep, planned_trials(sweep, storage)[0], storage))
    opened = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    assert opened.study_name == "hunt vin navigation-9" and len(opened.trials) == 8
    assert opened.best_params == study.best.settings and opened.best_value == study.best.value
    assert [trial.state.name for trial in opened.trials].count("PRUNED") == 1
    assert opened.trials[0].user_attrs["idp.trial_ids"] == list(study.tried[0].trials)
    # A trial that ends otherwise after all makes the file anew.
    trial = planned_trials(sweep, storage)[0][0]
    curves_of(storage.path, trial, [0.1, 0.99])
    keep_journal(sweep, storage)
    opened = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    assert len(opened.trials) == 8 and opened.trials[0].value > study.tried[0].value


@pytest.mark.parametrize("column", [{}, {"valid_spl": None}, {"valid_spl": "much"}])
def test_curves_without_the_metric_are_left_out_alone_and_told(path, tmp_path, capsys, column):
    sweep = with_space(path, "{k: {choices: [2, 4, 8]}}", trials=3, at_once=2, metric="valid_spl", stopping="median")
    storage = Storage(tmp_path / "s")
    assert next_suggestions(sweep, storage)
    trials = planned_trials(sweep, storage)[0]
    for trial in trials:
        finish(storage.path, trial, 0.5)
        epoch = {"epoch": 1, "train_seconds": 1.0, "valid_success_rate": 0.5}
        put_curves(storage.trial(trial.trial_id).path, [epoch | (column if trial is trials[0] else {"valid_spl": 0.4})])
    runs = collect(sweep, trials, storage)
    said = f"{storage.trial(trials[0].trial_id).curves_file}: valid_spl: expected a number in each epoch"
    assert [run.damaged for run in runs] == [(said,), (), (), ()] and [len(run.curves) for run in runs] == [0, 1, 1, 1]
    for verb in ("table", "report", "figures"):
        assert main([verb, str(path), "--storage", str(storage.path)]) == 0
        assert verb == "report" or said in "".join(capsys.readouterr())
    keep_journal(sweep, storage)
    assert not StudyStopping(sweep, trials, storage).stops(trials[0], {"epoch": 2, "valid_spl": 0.4})
    assert "best valid_spl 0.400" in state_of_search(sweep, storage)[0]
    assert next_suggestions(sweep, storage)


def test_a_search_has_its_pictures_and_a_report_that_is_of_the_best(path, tmp_path, capsys):
    sweep, storage = searched(path, tmp_path / "s"), Storage(tmp_path / "s")
    runs = collect(sweep, planned_trials(sweep, storage)[0], storage)
    (study,) = studies_of(sweep.search, runs)
    history = draw("history", runs, search=sweep.search).axes[0]
    assert max(history.lines[0].get_ydata()) == pytest.approx(100 * study.best.value)
    bars = draw("importances", runs, search=sweep.search).axes[0]
    names = [tick.get_text() for tick in bars.get_yticklabels()]
    widths = dict(zip(names, [bar.get_width() for bar in bars.patches], strict=True))
    assert sum(widths.values()) == pytest.approx(1.0) and widths["training.learning_rate"] > widths["k"]
    assert len(draw("slices", runs, search=sweep.search).axes) == 2
    assert len(draw("intermediate", runs, search=sweep.search).axes[0].lines) == 8
    with pytest.raises(NothingToDraw, match="the sweep has no search"):
        draw("history", runs)
    page = report(sweep, runs)
    assert "The search" in page and all(f">{name}<" in page for name in ("History of the search", "Slices"))
    assert page.count("<td>2/2</td>") == 1


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_samplers_by_name(path, tmp_path, sampler):
    space = "{training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}}"
    sweep = with_space(path, space, trials=6, at_once=3, sampler=sampler)
    assert len(all_rounds(sweep, tmp_path, lambda trial: trial.spec.training.learning_rate)) == 6


def test_percentile_and_hyperband_stop_by_their_names():
    stopping = EarlyStopping("percentile")
    assert [stopping.stops(str(i), 1, i / 10) for i in (5, 6, 7, 4, 9)] == [False, False, False, True, False]
    stopping = EarlyStopping("hyperband")
    brackets = {str(i): zlib.crc32(str(i).encode()) % 3 for i in range(40)}
    for name in brackets:
        stopping.stops(name, 1, 0.5), stopping.stops(name, 3, 0.5), stopping.stops(name, 9, 0.5)
    one_of_each = {bracket: name for name, bracket in brackets.items()}
    stopped = {b: [stopping.stops(name, e, 0.1) for e in (1, 3, 9)] for b, name in one_of_each.items()}
    assert stopped == {0: [True] * 3, 1: [False, True, True], 2: [False, False, True]}
