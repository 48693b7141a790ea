"""Searches: suggestions that follow from the storage alone, and when a trial is not worth going on with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from orchestrator.cli import main
from orchestrator.provenance import Provenance, code_hash
from orchestrator.results import TrialResult, read_result, trial_directory, write_curves, write_result
from orchestrator.search_space import read_suggestions, write_suggestions
from orchestrator.searching import EarlyStopping, next_suggestions
from orchestrator.specs import SweepError, expand
from orchestrator.sweep_files import load_sweep

SWEEP = """
name: hunt
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 4, q_channels: 4}}
data: {train: 64, valid: 16, test: 16}
tasks: [{map_size: 9}]
grid: {k: [4], seed: [0, 1]}
training: {epochs: 2}
search:
  trials: 12
  at_once: 3
  space:
    training.learning_rate: {low: 1.0e-5, high: 1.0, log: true}
    k: {choices: [2, 4, 8]}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "hunt.yaml"
    path.write_text(SWEEP)
    return path


def finish(storage, trial, value):
    directory = trial_directory(storage, trial.trial_id)
    write_curves(directory, [{"epoch": 1, "valid_success_rate": value}])
    provenance = Provenance(code=code_hash())
    write_result(directory, TrialResult(trial_id=trial.trial_id, status="COMPLETED", provenance=provenance))


def play(path, storage, rounds):
    """Run a search whose best learning rate is 1e-3, without training anything."""
    sweep = load_sweep(path)
    for _ in range(rounds):
        assert next_suggestions(sweep, storage)
        for trial in expand(sweep, read_suggestions(storage, sweep.name)):
            rate = trial.spec.training.learning_rate
            finish(storage, trial, 1 / (1 + abs(rate - 1e-3) * 100) + 0.01 * trial.spec.seed)
    return read_suggestions(storage, sweep.name)


def test_a_search_ends_after_its_trials_and_each_runs_once_per_seed(path, tmp_path):
    found = play(path, tmp_path / "storage", 4)
    assert len(found["0/vin"]) == 12
    sweep = load_sweep(path)
    assert not next_suggestions(sweep, tmp_path / "storage")
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
    assert next_suggestions(sweep, tmp_path)
    assert not next_suggestions(sweep, tmp_path)


def test_two_runs_make_one_round(tmp_path):
    assert write_suggestions(tmp_path, "s", {"0/vin": [{"k": 2}]}, 0)
    assert not write_suggestions(tmp_path, "s", {"0/vin": [{"k": 8}]}, 0)
    assert read_suggestions(tmp_path, "s") == {"0/vin": [{"k": 2}]}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{k: {low: 3, high: 3}}", "low < high"),
        ("{k: {choices: []}}", "either choices (at least one), or low and high"),
        ("{k: {low: 0, high: 3, log: true}}", "low must be above 0"),
        ("{learning_rate: {low: 0.1, high: 1.0}}", "expected k, seed, planner.FIELD or training.FIELD"),
        ("{}", "search.space"),
    ],
)
def test_an_impossible_search_is_refused(path, space, message):
    path.write_text(SWEEP.partition("search:")[0] + "search: {space: " + space + "}\n")
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    assert message in str(caught.value)


def test_a_search_without_suggestions_is_planned_and_tabulated(path, tmp_path, capsys):
    for verb in ("plan", "table"):
        assert main([verb, str(path), "--storage", str(tmp_path)]) == 0
    capsys.readouterr()


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


def test_a_real_search_runs_its_rounds_and_goes_on_where_it_was(path, tmp_path):
    path.write_text(SWEEP.replace("trials: 12", "trials: 4").replace("at_once: 3", "at_once: 2\n  stopping: median"))
    storage = tmp_path / "storage"
    command = [sys.executable, "-m", "orchestrator", "run", str(path), "--storage", str(storage), "--json"]
    done = subprocess.run([*command, "--set", "grid.seed=[0]"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(read_suggestions(storage, "hunt")["0/vin"]) == 4
    directories = list((storage / "trials").iterdir())
    assert len(directories) == 4
    assert all(read_result(directory).status in ("COMPLETED", "CANCELLED") for directory in directories)
    before = {directory: (directory / "result.json").stat().st_mtime_ns for directory in directories}
    again = subprocess.run([*command, "--set", "grid.seed=[0]"], capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "starting Ray" not in again.stderr
    assert {directory: (directory / "result.json").stat().st_mtime_ns for directory in directories} == before
    assert json.loads(again.stdout)
