"""The sweep files: one per table or figure of the paper, at its scale, with trials shared between them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from datagen.tasks.registry import dataset_id
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import SweepError, expand, further_tests

FOLDER = Path(__file__).parents[2] / "sweeps"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OURS = {
    "quickstart", "accuracy", "accuracy_grown", "adjoint_solves", "contractive", "contractive_start", "cores",
    "factorial", "fair", "far", "far_axes", "figure10_grown", "id_vin", "jacobian_memory", "longer", "maze_unique",
    "search", "symvin_start", "table1_averaged", "table1_ours", "terrain", "workspaces",
}  # fmt: skip
PAPER = [name for name in NAMES if name not in OURS]


@cache
def trials(name, profile=None):
    return expand(load_sweep(FOLDER / f"{name}.yaml", profile))


def ids(name, profile=None, **axes):
    kept = [t for t in trials(name, profile) if all(t.axes.get(axis) == value for axis, value in axes.items())]
    return {trial.trial_id for trial in kept}


@pytest.mark.parametrize("profile", [None, "smoke"])
def test_the_axes_are_looked_at_with_the_trials_of_far(profile):
    assert ids("far_axes", profile) == ids("far", profile)


def test_in_a_fair_sweep_nothing_differs_but_the_planner():
    for profile in (None, "laptop"):
        by_rate = {}
        for trial in trials("fair", profile):
            training = trial.spec.training.model_copy(update={"discount_from": None})
            by_rate.setdefault(training.learning_rate, set()).add((training, trial.spec.data, trial.spec.planner.k_fwd))
        assert all(len(kinds) == 1 for kinds in by_rate.values()) and len(by_rate) == 3
        assert {trial.axes["planner"] for trial in trials("fair", profile)} >= {"vin", "contractive", "reachability"}
    sweep = load_sweep(FOLDER / "fair.yaml")
    assert {entry.test_steps_per_row for entry in sweep.planners.values()} == {4}


def test_every_table_and_figure_of_the_paper_has_a_sweep():
    figures = [2, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15]
    assert {"table1", "spt", "few_steps", *(f"figure{n}" for n in figures)} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_sweep_is_named_as_its_file_and_says_what_it_asks(name):
    sweep = load_sweep(FOLDER / f"{name}.yaml")
    assert sweep.name == name and "?" in sweep.description and sweep.figures
    assert sweep.next is not None and (FOLDER.parent / sweep.next).exists()


@pytest.mark.parametrize("name", PAPER)
def test_no_profile_is_the_papers_scale(name):
    for trial in trials(name):
        assert (trial.spec.data.train, trial.spec.data.valid, trial.spec.data.test) == (10_000, 2_000, 2_000)
        assert trial.spec.execution.memory_limit_gib == 11
        if trial.spec.planner.core != "contractive":
            assert trial.spec.training.epochs == 60 and trial.spec.training.optimizer == "rmsprop"
    assert {trial.spec.seed for trial in trials(name)} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", PAPER)
def test_the_smoke_profile_is_small_and_the_laptop_profile_smaller_than_the_papers(name):
    def work(profile):
        return sum(
            t.spec.training.epochs * t.spec.data.train * t.spec.data.map_size**2 * t.spec.planner.k_fwd
            for t in trials(name, profile)
        )

    assert 20 * work("smoke") < work("laptop") < work(None) / 20
    assert len(ids(name, "smoke")) <= 45


def test_table_1_is_the_papers():
    table = trials("table1")
    assert len(table) == len(ids("table1")) == 360
    columns = {(trial.axes["task"], trial.axes["map_size"]) for trial in table}
    assert columns == {
        ("manipulation", 18),
        ("manipulation", 36),
        ("workspace_manipulation", 18),
        ("visual_navigation", 15),
    }
    for trial in table:
        planner = trial.spec.planner
        assert str(trial.axes["planner"]).startswith("id-") == (planner.adjoint == "implicit")
        assert (planner.solver, planner.solver_bwd, planner.k_bwd) == ("forward", "anderson", 15)


def test_the_adjoint_solves_differ_in_nothing_else():
    for name in ("adjoint_solves", "table1_averaged"):
        kinds = {}
        for trial in trials(name):
            if trial.spec.planner.adjoint != "unrolled":
                plain = dict.fromkeys(("adjoint", "adjoint_options", "solver_bwd", "solver_bwd_options"))
                planner = trial.spec.planner.model_dump() | plain
                kinds.setdefault(trial.axes["planner"], []).append((planner, trial.spec.training, trial.spec.seed))
        by_core = {}
        for kind in kinds.values():
            by_core.setdefault(kind[0][0]["core"], []).append(kind)
        assert all(kind == of_core[0] for of_core in by_core.values() for kind in of_core)
        assert {len(of_core) for of_core in by_core.values()} == ({4} if name == "adjoint_solves" else {2})
    assert ids("adjoint_solves", planner="id-vin") == ids("figure4", planner="id-vin", map_size=15)
    assert ids("table1") < ids("table1_averaged")


def test_trials_that_figures_share_are_the_same_trials():
    assert ids("figure6") == ids("figure2") | ids("figure4")
    assert ids("longer") < ids("figure6", map_size=27)
    ours = ids("figure6", planner="contractive")
    assert ids("figure2") & ids("figure4") == ours
    assert ids("figure7") < ids("figure6")
    assert ids("figure13") | ids("figure14") == ids("table1")
    assert ids("figure11") < ids("figure12")
    papers = ids("figure4", map_size=15, k=30) - ours
    assert ids("figure11", **{"planner.k_bwd": 15, "planner.solver_bwd": "anderson"}) == papers
    papers_rows = {t.trial_id for t in trials("figure10") if t.spec.planner.core != "contractive"}
    assert papers_rows == (ids("figure2", map_size=15, k=50) | ids("figure4", map_size=15, k=80)) - ours
    assert ids("few_steps", k=30) | ids("few_steps", k=50) | ids("few_steps", k=80) < ids("figure6")


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_profiles_share_too(profile):
    assert ids("figure6", profile) == ids("figure2", profile) | ids("figure4", profile)


@pytest.mark.parametrize("name", PAPER)
def test_trials_whose_times_are_reported_have_their_device_to_themselves(name):
    timed = {"runtime", "backward"} & set(load_sweep(FOLDER / f"{name}.yaml").figures)
    assert load_sweep(FOLDER / f"{name}.yaml").resources.exclusive == bool(timed)


def test_figure_7_gives_adps_30_layers_on_large_maps():
    found = {(t.axes["map_size"], t.spec.planner.adjoint, t.axes["k"]) for t in trials("figure7")}
    assert found == {(15, "unrolled", 80), (15, "implicit", 80), (49, "unrolled", 30), (49, "implicit", 80)}


def test_figure_10_tests_on_six_sizes_without_training_again():
    sweep = load_sweep(FOLDER / "figure10.yaml")
    trained_on = trials("figure10")[0].spec.data
    sets = [further_tests(sweep, trained_on, number) for number in range(len(sweep.test_on))]
    assert [data.map_size for data in sets] == [15, 27, 39, 49, 75, 99]
    assert {(data.train, data.valid, data.test) for data in sets} == {(0, 0, 1000)}
    assert len({dataset_id(data) for data in sets}) == 6
    assert all(ids("figure10", scale) == ids("figure10_grown", scale) for scale in (None, "laptop", "smoke"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"map_size": 4}, "test_on.0: map_size: expected 5 or more"),
        ({"mapsize": 9}, "test_on.0: unknown field 'mapsize'; did you mean 'map_size'?"),
        ({"train": 5}, "test_on.0: expected test maps and no others, got 5/0/1000"),
        ({"task": "manipulation"}, "one is a torus"),
    ],
)
def test_impossible_test_maps_are_told(tmp_path, fields, expected):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "planners": {"p": {}}, "test_on": [fields]}))
    with pytest.raises(SweepError, match=r"s\.yaml: test_on") as caught:
        load_sweep(path)
    assert expected in str(caught.value)


def test_a_tasks_grid_goes_before_the_sweeps_and_after_a_planners(tmp_path):
    path = tmp_path / "s.yaml"
    document = {
        "name": "s",
        "tasks": [{"map_size": 15}, {"map_size": 27, "grid": {"k": [7]}}],
        "planners": {"a": {}, "b": {"grid": {"k": [9]}}},
        "grid": {"k": [5]},
    }
    path.write_text(yaml.safe_dump(document))
    found = [(t.axes["map_size"], t.axes["planner"], t.axes["k"]) for t in expand(load_sweep(path))]
    assert found == [(15, "a", 5), (15, "b", 9), (27, "a", 7), (27, "b", 9)]
    path.write_text(yaml.safe_dump(document | {"tasks": [{"grid": [1]}]}))
    with pytest.raises(SweepError, match=r"tasks.0.grid: expected a mapping of axes to lists"):
        load_sweep(path)
