"""Trials that are no grid planner's: their samples, their epochs, what is told of them, and what is refused."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mutations import EXAMPLES, bounded, mutated, sign
from samples import put_curves

from datagen.plugins import PluginError
from datagen.storage.dataset import directory_of, is_complete, make_dataset, read_samples, read_split, shards
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.cli.check import check_plugin
from orchestrator.figures.parts import NothingToDraw
from orchestrator.figures.registry import draw, figures_of
from orchestrator.report.page import report
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import ResultError
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import SweepError, SweepSpec, expand, trial_id
from orchestrator.sweep.systems import METRIC, SYSTEMS, System
from orchestrator.tables.formats import render
from orchestrator.tables.records import collect
from orchestrator.tables.summary import summarise
from orchestrator.tracking.numbers import params_of
from orchestrator.trial.train import run_trial
from orchestrator.trial.trained import load_trained

GUIDE = Path(__file__).parents[2] / "docs" / "add-a-system.md"
FILE = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FITS = """

class Diverging(SpringFit):
    def run_epoch(self, epoch):
        return super().run_epoch(epoch) if epoch < 2 else {"loss": float("nan")}


class Undeclared(SpringFit):
    def test(self):
        return {"errors": 1.0}


class Unplain(SpringFit):
    def state_dict(self):
        return {"stiffness": np.float32(1.0)}


class Unsolved(SpringFit):
    def run_epoch(self, epoch):
        return super().run_epoch(epoch) | {"forward_diverged": epoch == 2}
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The guide's sweep, with some systems beside its own that keep no side of the contract."""
    for name, text in FILE.findall(GUIDE.read_text()):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + (FITS if name.endswith("fit.py") else ""))
    monkeypatch.chdir(tmp_path)
    found = load_sweep(tmp_path / "springs.yaml")
    whole = SYSTEMS["spring_fit"]
    for name in ("Diverging", "Undeclared", "Unplain", "Unsolved"):
        SYSTEMS[name.lower()] = System(
            f"my_systems.fit:{name}", whole.tasks, whole.metrics, whole.options, whole.training
        )
    return found


def ran(sweep, storage, **changes):
    """Make the data of the first trial of a sweep and run it, as another system perhaps."""
    document = sweep.model_dump() | {"planners": {"one": {"system": changes.pop("system", "spring_fit")}}}
    planned = expand(SweepSpec.model_validate(document))[0]
    make_dataset(planned.spec.data, storage.datasets)
    planned = replace(planned, axes={**planned.axes, "planner": next(iter(sweep.planners))})
    return planned, run_trial(planned.spec, storage, **changes)


def test_an_identity_is_that_of_the_system_its_options_and_its_data(sweep):
    by_axes = {(t.axes["planner"], t.axes["data.noise"], t.axes["seed"]): t for t in expand(sweep)}
    assert len({trial.trial_id for trial in by_axes.values()}) == len(by_axes) == 8
    first = by_axes["squares", 0.05, 0]
    # Golden, as tests/orchestrator/test_specs.py has for planners.
    assert trial_id(first.spec) == first.trial_id == "683e436d497e9946"
    assert first.spec.plugins == ("my_systems",) and set(first.axes) == {"planner", "task", "seed", "data.noise"}
    assert params_of(first)["system.robust"] == "False" and "core" not in params_of(first)


def test_a_sample_depends_on_its_number_alone_and_is_kept(sweep, tmp_path):
    spec = DatasetSpec(task="springs", train=5, valid=2, test=2)
    make_dataset(spec, tmp_path)
    assert is_complete(spec, tmp_path) and [shard.stop for shard in shards(spec)] == [5, 2, 2]
    read = read_samples(directory_of(spec, tmp_path), "train")
    assert {name: values.dtype for name, values in read.items()} == {"force": np.float32, "extension": np.float32}
    alone = TASKS["springs"].draw()(spec, "train", 3, 4)
    assert alone["force"] == read["force"][3:4] and len(set(read["force"].tolist())) == 5
    with pytest.raises(DatasetError, match="expected a dataset of maps, got samples: of 'springs'"):
        read_split(directory_of(spec, tmp_path), "train")


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"force": 1.0}, "expected the columns force, extension, got force"),
        ({"force": 1.0, "extension": [1.0]}, r"extension: expected float32 \[\], got float64 \[1\]"),
        ({"force": 1.0, "extension": float("nan")}, "extension: expected finite numbers"),
        ({"force": 1.0, "extension": "1"}, r"extension: expected float32 \[\], got <U1 \[\]"),
    ],
)
def test_a_sample_that_is_not_as_declared_is_refused(sweep, tmp_path, monkeypatch, sample, said):
    import my_systems.springs

    monkeypatch.setattr(my_systems.springs, "pull", lambda options, generator: sample)
    with pytest.raises(PluginError, match=f"task 'springs': sample 0 of train: {said}"):
        make_dataset(DatasetSpec(task="springs", train=1, valid=1, test=1), tmp_path)


def test_fuzzed_samples_are_read_as_they_were_or_refused(sweep, tmp_path):
    spec = DatasetSpec(task="springs", train=6, valid=1, test=1)
    make_dataset(spec, tmp_path)
    folder = directory_of(spec, tmp_path)
    path = next(folder.glob("train-*.parquet"))
    whole, expected, taken = path.read_bytes(), read_samples(folder, "train"), 0
    for number in range(EXAMPLES):
        path.write_bytes(mutated(whole, number))
        sign(path)
        try:
            with bounded(processor_seconds=2, mebibytes=64):
                found = read_samples(folder, "train")
        except DatasetError as error:
            assert path.name in str(error) and "\n" not in str(error)
            continue
        taken += 1
        assert all(values.shape == expected[name].shape for name, values in found.items())
    assert taken < EXAMPLES


def test_an_interrupted_trial_ends_with_the_same_numbers(sweep, tmp_path):
    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    planned, whole = ran(sweep, Storage(tmp_path / "whole"))
    storage = Storage(tmp_path / "parted")
    with pytest.raises(KeyboardInterrupt):
        ran(sweep, storage, report=stop)
    # Its code is that of its plug-in and of what that imports: a change of VIN leaves it fresh.
    parts = whole.provenance.parts
    assert "datagen.tasks.samples" in parts and not any(name.startswith("planners.") for name in parts)
    seen = []
    _, parted = ran(sweep, storage, report=lambda record: seen.append(record["epoch"]))
    assert seen == [3] and parted.status == whole.status == "COMPLETED" and parted.metrics == whole.metrics
    curves = storage.trial(planned.trial_id).read_curves()
    assert [row["epoch"] for row in curves] == [1, 2, 3]
    assert curves[-1]["metric.stiffness"] == whole.metrics["stiffness"]
    with pytest.raises(ResultError, match=r"a trial of system 'spring_fit'; expected one of a planner"):
        load_trained(storage.trial(planned.trial_id).path)


def test_a_number_that_is_not_finite_ends_training(sweep, tmp_path):
    planned, result = ran(sweep, Storage(tmp_path), system="diverging")
    assert (result.status, result.epochs, result.trial_diverged, result.not_finite) == ("COMPLETED", 2, True, True)
    assert set(result.metrics.values()) == {None}
    text = render(summarise("springs", [*collect(sweep, [planned], Storage(tmp_path))]), "text")
    assert "1/1 diverged" in text and "20 %" not in text


def test_a_word_in_the_place_of_a_metric_costs_its_curves_alone(sweep, tmp_path):
    planned, storage = expand(sweep)[0], Storage(tmp_path)
    put_curves(storage.trial(planned.trial_id).path, [{"epoch": 1, "train_seconds": 1.0, f"{METRIC}loss": "much"}])
    (run,) = collect(sweep, [planned], storage)
    assert run.curves == [] and "curves.parquet: metric.loss: expected a number in each epoch" in run.damaged[0]


def test_a_solve_that_has_not_converged_is_told(sweep, tmp_path):
    planned, result = ran(sweep, Storage(tmp_path), system="unsolved")
    assert result.forward_diverged and not result.trial_diverged and result.epochs == 3
    assert "1/1 forward diverged" in render(summarise("springs", collect(sweep, [planned], Storage(tmp_path))), "text")


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("undeclared", "system 'undeclared': test reports 'errors', which is none of its metrics"),
        ("unplain", "state_dict()['stiffness']: expected tensors and plain data, got a float32"),
    ],
)
def test_a_system_that_breaks_the_contract_fails_with_its_name(sweep, tmp_path, system, said):
    assert said in ran(sweep, Storage(tmp_path), system=system)[1].reason


def test_tables_figures_and_report_show_the_metrics(sweep, tmp_path):
    storage = Storage(tmp_path)
    trials = [trial for trial in expand(sweep) if trial.axes["seed"] == 0]
    for trial in trials:
        make_dataset(trial.spec.data, storage.datasets)
        run_trial(trial.spec, storage)
    runs = collect(sweep, trials, storage)
    summary = summarise("springs", runs, wide=True)
    result = storage.trial(trials[0].trial_id).read_result()
    line = next(line.split() for line in render(summary, "text").splitlines() if line.startswith("squares"))
    assert line == ["squares", "0.05", f"{100 * result.metrics['error']:.2f}", *line[3:]]
    assert "error cm ↓" in render(summary, "md") and r"error cm $\downarrow$" in render(summary, "tex")
    first = next(csv.DictReader(render(summary, "csv").splitlines()))
    assert float(first["metric.error"]) == result.metrics["error"] and first["metric.stiffness_std"] == ""
    assert r"Error}{" in render(summary, "macros") and '"stiffness": {' in render(summary, "json")
    assert figures_of(sweep) == ["metrics", "epochs"]
    panels = {name: [axes.get_ylabel() for axes in draw(name, runs).axes] for name in figures_of(sweep)}
    assert panels["metrics"] == ["error cm ↓", "stiffness N/m"] and panels["epochs"][0] == "loss"
    with pytest.raises(NothingToDraw, match="is a figure of planners, and the sweep has none"):
        draw("success", runs)
    none = [{"epoch": 1, f"{METRIC}loss": None, f"{METRIC}error": math.nan}]
    with pytest.raises(NothingToDraw, match="epochs: no trial has a number of an epoch"):
        draw("epochs", [replace(run, curves=none) for run in runs])
    page = report(sweep, runs)
    assert "error cm ↓" in page and "metrics" in page and "K of an unrolled planner" not in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"planners": {"a": {"system": "spring_fitt"}}}, "unknown name 'spring_fitt'; did you mean"),
        ({"planners": {"a": {"system": "spring_fit", "strat": 1}}}, "unknown field 'strat'; did you mean 'start'"),
        ({"planners": {"a": {"system": "spring_fit", "core": "vin"}}}, "unknown field 'core'"),
        ({"planners": {"a": {"core": "vin"}}}, "task 'springs' has no maps to plan on, but samples for a system"),
        ({"planners": {"a": {"system": "spring_fit", "test_steps_per_row": 2}}}, "takes no steps per row"),
        ({"tasks": [{"task": "navigation"}]}, "works on springs; got task 'navigation'"),
        ({"grid": {"k": [3], "seed": [0]}}, r"grid.k: a system has none; its own axes are system.FIELD"),
        ({"grid": {"system.robust": [True], "seed": [0]}}, "the axis 'system.robust' of the grid sets it too"),
        ({"training": {"labels": "all_optimal"}}, "training.labels means nothing to system 'spring_fit', which heeds"),
        ({"training": {"batch_size": 65}}, "data.train is 64, less than one batch"),
        ({"data": {"map_size": 9}}, "map_size: task 'springs' has no maps; leave it out"),
        ({"data": {"distinct": "up_to_symmetry"}}, "distinct: task 'springs' has no maps"),
        ({"test_on": [{"test": 5}]}, "test_on: is for planners, and planners.absolute is a system"),
        ({"measure": ["lengths"]}, "measure: is for planners"),
        ({"execution": {"memory_limit_gib": 1}}, "execution.memory_limit_gib: means nothing to a system"),
    ],
)
def test_what_a_sweep_of_systems_can_not_ask_is_one_message(sweep, tmp_path, change, said):
    document = yaml.safe_load((tmp_path / "springs.yaml").read_text()) | change
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(SweepError, match=said) as error:
        load_sweep(tmp_path / "changed.yaml")
    assert "\n" not in str(error.value) and "changed.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tasks=('navigation',), metrics={'error': Metric('e')}", "tasks: 'navigation' is no task of samples"),
        ("tasks='springs', metrics={'e': Metric('e')}", "tasks: expected a tuple, got 'springs'"),
        ("tasks=('springs',), metrics=['e']", "metrics: expected a mapping"),
        ("tasks=('springs',), metrics={'e': 'an error'}", "metrics: 'e': expected a Metric, got 'an error'"),
        ("tasks=('springs',), metrics={'e': Metric('e', form='q')}", "metrics: 'e': expected one that can be written"),
        ("tasks=('springs',), metrics={'e': Metric('e')}, small=['a']", "small: expected a mapping"),
        ("tasks=('springs',), metrics={'e': Metric('e')}, options=dict", "options: expected a datagen.spec.Spec"),
        ("tasks=('springs',), metrics={}", "expected a task, and 1 to 32 metrics"),
        ("tasks=('springs',), metrics={'Error': Metric('e')}", "metrics: 'Error': expected small letters"),
        ("tasks=('springs',), metrics={'e': Metric('e')}, training=('epoch',)", "unknown field 'epoch'; did you mean"),
        ("tasks=('springs',), metrics={'e': Metric('e')}, small={'nois': 1}", "small: .*unknown field 'nois'; did you"),
    ],
)
def test_a_line_that_can_not_be_is_refused_when_it_is_loaded(sweep, tmp_path, line, said):
    (tmp_path / "wrong.py").write_text(
        f"from orchestrator.sweep.systems import Metric, System\nSYSTEMS = {{'wrong': System('wrong:W', {line})}}\n"
    )
    with pytest.raises(PluginError, match=re.escape("plugins: wrong.SYSTEMS['wrong']: ") + f".*{said}"):
        load_plugins(["wrong"])
    assert "wrong" not in SYSTEMS


def test_checks_make_the_samples_that_the_system_calls_small(sweep, monkeypatch):
    import my_systems

    asked = []
    make = TASKS["springs"].draw()
    monkeypatch.setattr(
        type(TASKS["springs"]), "draw", lambda _: lambda data, *part: asked.append(data) or make(data, *part)
    )
    small = replace(SYSTEMS["spring_fit"], small={"noise": 0.25})
    monkeypatch.setitem(my_systems.SYSTEMS, "spring_fit", small)
    findings = list(check_plugin("my_systems"))
    assert len(findings) == 4 and all(finding.passed for finding in findings)
    assert {data.options.noise for data in asked} == {0.25}
    assert sum(data.count("train") == 5 for data in asked) == 3, "a split each, once for all checks of a system"


def test_torch_goes_on_where_an_interrupted_trial_stood(sweep, tmp_path, monkeypatch):
    import my_systems.fit

    drawn = []
    whole = my_systems.fit.SpringFit.run_epoch
    monkeypatch.setattr(
        my_systems.fit.SpringFit, "run_epoch", lambda self, n: drawn.append(torch.rand(()).item()) or whole(self, n)
    )

    def stop(record):
        raise KeyboardInterrupt

    ran(sweep, Storage(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        ran(sweep, Storage(tmp_path / "parted"), report=stop)
    torch.rand(7)
    ran(sweep, Storage(tmp_path / "parted"))
    assert len(set(drawn)) == 3 and drawn[:3] == drawn[3:]
