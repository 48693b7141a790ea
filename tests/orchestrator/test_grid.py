"""No trial counts twice, and nothing that a sweep says is overruled without a word."""

from __future__ import annotations

import pytest
import yaml
from mutations import bounded

from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import SweepError, expand

BASE = {
    "name": "base",
    "tasks": [{"task": "navigation", "map_size": 7}],
    "data": {"train": 64, "valid": 16, "test": 16},
    "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}},
    "grid": {"k": [5], "seed": [0]},
    "training": {"epochs": 1},
}


def load(folder, *overrides, **fields):
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(BASE | fields, sort_keys=False))
    return load_sweep(path, overrides=overrides)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("grid.seed=[0, 0]", "grid.seed: 0 is given twice"),
        ("grid.seed=[1, 0, 0.0]", "grid.seed: 0.0 is given twice"),
        ("grid.k=[5, 9, 5]", "grid.k: 5 is given twice"),
        ("grid.training.learning_rate=[0.01, 1e-3, 0.001]", "0.001 is given twice"),
        ("grid.planner.solver=[forward, forward]", "'forward' is given twice"),
        ("planners.vin.grid={k: [7, 7]}", "grid.k: 7 is given twice"),
        ("tasks.0.grid={seed: [7, 7]}", "grid.seed: 7 is given twice"),
        ("tasks=[{map_size: 7}, {map_size: 7}]", "tasks.0 with k=5, seed=0 and tasks.1 with k=5, seed=0 are one trial"),
        ("tasks=[{map_size: 7}, {map_size: 7, task: navigation}]", "are one trial, which would count as two"),
        ("tasks=[{map_size: 7}, {map_size: 7, grid: {seed: [1, 0]}}]", "are one trial, which would count as two"),
    ],
)
def test_a_trial_that_is_named_twice_is_refused(tmp_path, override, told):
    with pytest.raises(SweepError) as caught:
        load(tmp_path, override)
    assert told in str(caught.value) and "planners.vin" in str(caught.value)


def test_maps_that_are_named_twice_are_refused(tmp_path):
    with pytest.raises(SweepError, match=r"test_on\.2: the maps of test_on\.0 again"):
        load(tmp_path, "test_on=[{map_size: 9}, {map_size: 9, seed: 7}, {map_size: 9, test: 1000}]")


def test_thousands_of_further_maps_are_told_apart_at_once(tmp_path):
    with bounded(processor_seconds=5, mebibytes=200):
        load(tmp_path, f"test_on=[{{test: 3, grid: {{seed: {list(range(5000))}}}}}]")


def test_thousands_of_tasks_are_told_apart_at_once(tmp_path):
    with bounded(processor_seconds=10, mebibytes=200):
        tasks = ", ".join(f"{{map_size: 9, test: {count}}}" for count in range(1, 1502))
        trials = expand(load(tmp_path, f"tasks=[{tasks}]"))
    assert {trial.axes["data.test"] for trial in trials} == set(range(1, 1502))


@pytest.mark.parametrize(
    ("seeds", "tasks", "told"),
    [
        (501, "[{map_size: 9}]", "test_on: 1.grid: the sweep has more than 100000 sets of further test maps"),
        (300, "[{map_size: 9}, {map_size: 11}]", "test_on: the sweep's tasks have more than 100000 sets"),
    ],
)
def test_more_further_maps_than_any_sweep_has_are_refused(tmp_path, seeds, tasks, told):
    grid = f"grid: {{test: {list(range(1, 101))}, seed: {list(range(seeds))}}}"
    with pytest.raises(SweepError, match=told):
        load(tmp_path, f"tasks={tasks}", f"test_on=[{{map_size: 9, {grid}}}, {{map_size: 11, {grid}}}]")


@pytest.mark.parametrize("place", ["grid.", "planners.vin.grid.", "tasks.0.grid."])
def test_an_axis_is_set_in_any_grid(tmp_path, place):
    trials = expand(load(tmp_path, f"{place}training.learning_rate=[0.1, 0.2]"))
    assert [trial.spec.training.learning_rate for trial in trials] == [0.1, 0.2]


def test_an_axis_of_a_search_is_set(tmp_path):
    sweep = load(
        tmp_path,
        "search.space.training.learning_rate={low: 0.01, high: 0.1}",
        "search.space.training.learning_rate.high=0.5",
        "search.space.k={choices: [5, 9]}",
        grid={"seed": [0]},
    )
    assert sweep.search is not None and sweep.search.space["training.learning_rate"].high == 0.5
    assert sweep.search.space["k"].choices == [5, 9]


def test_the_reason_is_told_why_a_value_is_no_yaml(tmp_path):
    with pytest.raises(SweepError, match="key 2026 must be text"):
        load(tmp_path, "planners={2026: {core: vin}}")


def test_a_truth_value_in_two_spellings_is_one(tmp_path):
    planners = {"spt": {"core": "spt", "grid": {"planner.inject_map": [False, "no"]}}}
    with pytest.raises(SweepError, match="are one trial"):
        load(tmp_path, planners=planners)
    planners["spt"]["grid"] = {"planner.inject_map": ["no", True]}
    assert [trial.axes["planner.inject_map"] for trial in expand(load(tmp_path, planners=planners))] == [False, True]


def test_two_entries_that_are_tested_differently_share_their_trials(tmp_path):
    planners = {"short": {"core": "vin"}, "grown": {"core": "vin", "test_steps_per_row": 4}}
    trials = expand(load(tmp_path, planners=planners))
    assert len(trials) == 2 and trials[0].trial_id == trials[1].trial_id


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["planners.vin.k_fwd=50"], "planners.vin: k_fwd: the axis 'k' of the grid sets it too"),
        (["planners.vin.q_channels=8", "grid.planner.q_channels=[4]"], "q_channels: the axis 'planner.q_channels'"),
        (["planners.vin.options={q_channels: 8}", "grid.planner.q_channels=[4]"], "the axis 'planner.q_channels'"),
        (
            ["planners.vin.training={learning_rate: 0.1}", "grid.training.learning_rate=[0.2]"],
            "training.learning_rate:",
        ),
        (["planners.vin.k_fwd=50", "planners.vin.grid={k: [50]}"], "k_fwd: the axis 'k'"),
        (["planners.vin.k_fwd=50", "tasks.0.grid={k: [50]}"], "k_fwd: the axis 'k'"),
        (["grid.planner.k_fwd=[50]"], "grid.k and grid.planner.k_fwd are one field"),
        (["planners.vin.grid={planner.k_fwd: [50]}"], "grid.k and grid.planner.k_fwd are one field"),
    ],
)
def test_a_field_that_is_set_in_two_places_is_refused(tmp_path, overrides, told):
    with pytest.raises(SweepError) as caught:
        load(tmp_path, *overrides)
    assert told in str(caught.value)


def test_the_default_grid_does_not_overrule_a_planner_in_silence(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nplanners: {vin: {k_fwd: 50}}\n")
    with pytest.raises(SweepError, match="k_fwd: the axis 'k' of the grid sets it too"):
        load_sweep(path)
    path.write_text("name: s\nplanners: {vin: {k_fwd: 50}}\ngrid: {seed: [0]}\n")
    assert [trial.axes["k"] for trial in expand(load_sweep(path))] == [50]


@pytest.mark.parametrize("place", ["grid", "planners.vin.grid", "tasks.0.grid"])
@pytest.mark.parametrize(("axis", "searched"), [("k", "k"), ("k", "planner.k_fwd"), ("seed", "seed")])
def test_an_axis_is_given_or_searched_and_not_both(tmp_path, place, axis, searched):
    search = f"search={{space: {{{searched}: {{choices: [5, 9]}}}}}}"
    with pytest.raises(SweepError, match=rf"search\.space\.{searched}: {place}\.{axis} sets it too"):
        load(tmp_path, search, f"{place}.{axis}=[5, 7]", grid={"training.learning_rate": [0.1]})


def test_a_search_replaces_an_axis_of_the_default_grid(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nplanners: {vin: {core: vin}}\nsearch: {space: {planner.k_fwd: {choices: [5, 9]}}}\n")
    trials = expand(load_sweep(path), {"0/vin": [{"planner.k_fwd": 9}]})
    assert [(trial.axes["k"], trial.axes["seed"]) for trial in trials] == [(9, 0)]


def test_a_search_that_suggests_the_same_again_has_one_trial_of_it(tmp_path):
    search = {"space": {"training.learning_rate": {"choices": [0.1, 0.2]}}}
    sweep = load(tmp_path, search=search)
    again = [{"training.learning_rate": rate} for rate in (0.1, 0.2, 0.1)]
    assert [trial.axes["training.learning_rate"] for trial in expand(sweep, {"0/vin": again})] == [0.1, 0.2]


def test_a_number_of_steps_has_a_bound_that_its_results_have_too(tmp_path):
    path = tmp_path / "far.yaml"
    path.write_text("name: far\nplanners: {vin: {core: vin}}\ngrid: {k: [1000000000000], seed: [0]}\n")
    with pytest.raises(SweepError, match="less than 1000000000"):
        expand(load_sweep(path))
