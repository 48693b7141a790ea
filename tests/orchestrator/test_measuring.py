"""What tests measure beside success: asked for in a sweep, kept with the trial, shown in tables and figures."""

import json
from dataclasses import replace

import pytest

from datagen.storage import dataset as parquet
from datagen.tasks.registry import dataset_id
from orchestrator.cli.main import main
from orchestrator.cluster.ray_cluster import evaluate
from orchestrator.errors import SweepError
from orchestrator.figures.registry import draw
from orchestrator.storage.evaluations import (
    Bins,
    EvaluationResult,
    missing_evaluations,
    planned_evaluations,
    read_evaluation,
)
from orchestrator.storage.files import parsed
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand, further_tests
from orchestrator.tables.records import collect
from orchestrator.tables.summary import summarise
from orchestrator.trial.evaluate import evaluate_trial, keep_evaluation
from orchestrator.trial.train import run_trial

SWEEP = """
name: measured
tasks: [{task: mazes, map_size: 7, options: {kinds: [thinned]}}]
data: {train: 64, valid: 8, test: 8}
planners:
  contractive: {core: contractive, k_bwd: 10, solver_bwd: forward}
  reachability: {core: reachability, adjoint: implicit, solver: best_first, solver_bwd: best_first}
grid: {k: [12], seed: [0]}
training: {epochs: 1, batch_size: 8, optimizer: adam, learning_rate: 0.01, labels: all_optimal}
measure: [lengths, detours, path_independence, residual_auroc]
test_on:
  - map_size: 9
    test: 6
    options: {kinds: [percolated]}
    grid: {options.percolation: [0, 0.1], options.start: [dead_end, elsewhere]}
"""


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A sweep that was run and tested in this process, its file and its storage."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "sweep.yaml").write_text(SWEEP)
    sweep, storage = load_sweep(folder / "sweep.yaml"), Storage(folder / "storage")
    trials = expand(sweep)
    for trial in trials:
        parquet.make_dataset(trial.spec.data, storage.datasets)
        assert run_trial(trial.spec, storage).status == "COMPLETED"
    for test in planned_evaluations(sweep, trials):
        parquet.make_dataset(test.data, storage.datasets)
        directory = storage.trial(test.trial.trial_id)
        found = evaluate_trial(directory, storage.dataset(test.data), k=test.k, measures=test.measure)
        keep_evaluation(directory, found)
    return sweep, trials, storage, folder / "sweep.yaml"


def test_a_grid_of_further_maps_is_a_set_for_each_place(tested):
    sweep, trials, _, _ = tested
    sets = [further_tests(sweep, trials[0].spec.data, number) for number in range(4)]
    found = [(one.options.percolation, one.options.start, one.options.kinds) for one in sets]
    assert found == [
        ((share, share), start, ("percolated",)) for share in (0, 0.1) for start in ("dead_end", "elsewhere")
    ]
    assert {one.map_size for one in sets} == {9} and len(sweep.test_on) == 4


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{map_size: 9, grid: {map_size: [9]}}", "0.grid.map_size: expected a field of a dataset or options.NAME"),
        ("{grid: {planner.k_fwd: [9]}}", "0.grid.planner.k_fwd: expected a field of a dataset or options.NAME"),
        ("{grid: [9]}", "0.grid: expected a mapping of axes to lists"),
        ("{grid: {map_size: []}}", "0.grid.map_size: expected at least one value"),
        ("{grid: {map_size: [9, 9]}}", "0.grid.map_size: 9 is given twice"),
    ],
)
def test_a_grid_that_is_none_is_told(tmp_path, entry, said):
    (tmp_path / "sweep.yaml").write_text(f"{SWEEP.partition('test_on')[0]}\ntest_on: [{entry}]\n")
    with pytest.raises(SweepError, match="test_on") as refused:
        load_sweep(tmp_path / "sweep.yaml")
    assert said in str(refused.value)


def test_an_unknown_measure_is_told(tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("[lengths,", "[length,"))
    with pytest.raises(SweepError, match=r"measure.0: expected 'lengths', 'detours'"):
        load_sweep(tmp_path / "sweep.yaml")


def test_measures_are_kept_with_the_trial_and_asked_for_once(tested):
    sweep, trials, storage, _ = tested
    planned = planned_evaluations(sweep, trials)
    assert missing_evaluations(planned, storage) == []
    for test in planned:
        found = read_evaluation(test.path(storage))
        assert set(found.measured) == set(sweep.measure)
        assert sum(found.lengths.starts) == sum(found.detours.starts) == sum(found.cells_by_distance)
        assert (found.path_independence is None) == (test.trial.axes["planner"] == "reachability")
    few = sweep.model_copy(update={"measure": ["lengths"]})
    assert missing_evaluations(planned_evaluations(few, trials), storage) == []


def test_a_test_that_lacks_a_measure_is_done_again_and_none_is_lost(tested):
    sweep, trials, storage, _ = tested
    data = trials[0].spec.data.model_copy(update={"seed": 5, "train": 0, "valid": 0})
    parquet.make_dataset(data, storage.datasets)
    directory, (planned, *_) = storage.trial(trials[0].trial_id), planned_evaluations(sweep, trials[:1])
    asked = replace(planned, data=data, dataset_id=dataset_id(data), measure=("detours",))
    keep_evaluation(directory, evaluate_trial(directory, storage.dataset(data), k=asked.k, measures=["lengths"]))
    assert missing_evaluations([asked], storage) == [asked]
    keep_evaluation(directory, evaluate_trial(directory, storage.dataset(data), k=asked.k, measures=["detours"]))
    assert missing_evaluations([asked], storage) == []
    found = read_evaluation(asked.path(storage))
    assert found.measured == ["detours", "lengths"] and found.lengths is not None


def test_what_another_run_has_tested_meanwhile_is_not_tested_again(tested):
    sweep, trials, storage, _ = tested
    planned = planned_evaluations(sweep, trials)[0]
    before = planned.path(storage).stat().st_mtime_ns
    evaluate(planned, storage, None)
    assert planned.path(storage).stat().st_mtime_ns == before
    planned.path(storage).unlink()
    evaluate(planned, storage, None)
    assert missing_evaluations([planned], storage) == []


def test_a_count_that_can_not_be_is_refused(tested):
    sweep, trials, storage, _ = tested
    text = json.loads(planned_evaluations(sweep, trials)[0].path(storage).read_text())
    text["lengths"]["arrivals"][1] = text["lengths"]["starts"][1] + 1
    with pytest.raises(ValueError, match="altered"):
        parsed(EvaluationResult, json.dumps(text))
    text = {name: value for name, value in text.items() if name != "checksum"}
    with pytest.raises(ValueError, match="lengths: expected arrivals of"):
        parsed(EvaluationResult, json.dumps(text))
    with pytest.raises(ValueError, match="expected arrivals of"):
        Bins(starts=[3], arrivals=[2], right=[4])


def test_tables_say_what_was_measured(tested, capsys):
    _, _, storage, path = tested
    assert main(["table", str(path), "--storage", str(storage)]) == 0
    shown = capsys.readouterr().out
    for words in ("percolation", "dead_end", "lost", "wrong", "same fixed", "AUROC"):
        assert words in shown
    assert "Success % by length of the shortest path" in shown and "≤ 20" in shown
    assert "Success % by the way round that an adjacent wall would save" in shown
    assert main(["table", str(path), "--storage", str(storage), "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)["further_tests"][0]["tests"][0]
    assert sum(row["lengths"]["starts"]) == sum(row["detours"]["starts"]) > 0
    assert row["about"]["percolation"] in ("0", "0.1")
    for format in ("md", "tex", "macros", "csv"):
        assert main(["table", str(path), "--storage", str(storage), "--format", format]) == 0


def test_one_planner_can_be_measured_anywhere(tested, capsys):
    _, trials, storage, _ = tested
    trial, dataset = storage.trial(trials[0].trial_id).path, storage.dataset(trials[0].spec.data)
    assert main(["evaluate", str(trial), str(dataset), "--measure", "all"]) == 0
    shown = capsys.readouterr().out
    for words in ("success by path: ≤ 10: ", "success by way round: 0: ", "starts lost: ", "path independence: "):
        assert words in shown
    with pytest.raises(SystemExit):
        main(["evaluate", str(trial), str(dataset), "--measure", "detour"])
    assert "did you mean 'detours'?" in capsys.readouterr().err


def test_seeds_are_counted_together(tested):
    sweep, trials, storage, _ = tested
    runs = collect(sweep, trials, storage, curves=False)
    twice = [*runs, *(replace(run, trial=replace(run.trial, trial_id="f" * 16)) for run in runs)]
    one, two = (summarise("s", some).further[0].tests[0] for some in (runs, twice))
    assert two.n == 2 and [2 * count for count in one.lengths.starts] == two.lengths.starts


@pytest.mark.parametrize("name", ["lengths", "detours"])
def test_figures_show_success_by_length_and_by_detour(tested, name):
    sweep, trials, storage, _ = tested
    figure = draw(name, collect(sweep, trials, storage))
    lines = [line for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata()) > 1]
    assert len(lines) >= 2
