"""One rule of which numbers stand together, and how often a trial counts: the same in every view."""

from __future__ import annotations

from dataclasses import replace

import pytest
from samples import put_curves, put_result, sample_run

from datagen.plugins import LOADED
from orchestrator.figures.registry import draw
from orchestrator.report.page import report
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import write_json
from orchestrator.sweep.specs import SweepSpec, expand
from orchestrator.tables.comparison import paired_difference
from orchestrator.tables.freshness import of_one_version, version
from orchestrator.tables.paper import beside_paper
from orchestrator.tables.records import collect, usable
from orchestrator.tables.summary import summarise
from orchestrator.tracking.numbers import present_version
from planners.specs import PlannerSpec


def sweep_of(**fields) -> SweepSpec:
    planners = {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin"}}
    return SweepSpec.model_validate({"name": "few", "planners": planners, **fields})


def runs_of(sweep, rate=lambda trial: 0.5, **provenance):
    runs = [sample_run(trial) for trial in expand(sweep)]
    return [
        replace(
            run,
            result=run.result.model_copy(
                update={
                    "test_success_rate": rate(run.trial),
                    "provenance": run.result.provenance.model_copy(update=provenance),
                }
            ),
        )
        for run in runs
    ]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plug-in `changing_part`, and what its hash was before it was changed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(LOADED, "changing_part", None)
    path = tmp_path / "changing_part.py"
    path.write_text("GAIN = 1\n")
    before = code_hash("changing_part")
    path.write_text("GAIN = 2\n")
    code_hash.cache_clear()
    yield before
    code_hash.cache_clear()


def test_a_further_axis_is_no_seed_beside_the_paper():
    rates = {0.001: 0.9, 0.01: 0.5}
    sweep = sweep_of(
        planners={"vin": {"core": "vin", "adjoint": "unrolled"}},
        grid={"k": [30], "seed": [0, 1, 2], "training.learning_rate": list(rates)},
        tasks=[PAPERS],
    )
    entries = beside_paper(runs_of(sweep, rate=lambda trial: rates[trial.axes["training.learning_rate"]]))
    assert [(e.planner, e.expected, e.ours.n, e.ours.mean) for e in entries] == [
        ("vin learning_rate=0.001", 3, 3, 90.0),
        ("vin learning_rate=0.01", 3, 3, 50.0),
    ]


@pytest.mark.slow
def test_a_changed_plugin_makes_a_result_stale_in_every_view(plugin):
    sweep = sweep_of(
        planners={"vin": {"core": "vin", "adjoint": "unrolled"}}, grid={"k": [30], "seed": [0, 1, 2]}, tasks=[PAPERS]
    )
    runs = runs_of(sweep, rate=lambda trial: 0.9 - 0.2 * trial.spec.seed)
    made_by = [plugin, plugin, code_hash("changing_part")]
    runs = [
        replace(run, result=run.result.model_copy(update={"provenance": Provenance(
            code=code_hash(), plugins={"changing_part": digest})}))
        for run, digest in zip(runs, made_by, strict=True)
    ]  # fmt: skip
    (row,) = summarise("few", runs).rows
    assert (row.used, row.stale, row.success_rate) == (1, 2, 0.5)
    assert [run.trial.spec.seed for run in usable(runs)] == [2]
    axes = draw("success", runs).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "."] == [50.0]
    (entry,) = beside_paper(runs)
    assert (entry.ours.n, entry.ours.mean) == (1, 50.0)
    page = report(sweep, runs)
    assert "<b>2</b><span>of other code</span>" in page and "(stale) (2)" in page
    # MLflow's run of a trial is of one version, and that of a trial that runs now is the present one.
    old, now = version(runs[0].result.provenance), version(runs[2].result.provenance)
    assert old != now
    spec = runs[0].trial.spec.model_copy(update={"plugins": ("changing_part",)})
    assert present_version(replace(runs[0].trial, spec=spec)) == now


@pytest.mark.slow
def test_two_versions_of_a_plugin_are_never_averaged_though_the_projects_code_is_one():
    found = [Provenance(code="old", plugins={"part": digest}) for digest in ("a", "b", "b")]
    assert of_one_version(found, lambda one: one) == found[1:]
    assert of_one_version([*found, Provenance(code=code_hash())], lambda one: one) == [Provenance(code=code_hash())]


PAPERS = {"task": "manipulation", "map_size": 18}
LISTED_TWICE = [
    {"grid": {"k": [30], "seed": [0, 1, 0, 1, 1]}},
    {"tasks": [{"task": "navigation"}, {"task": "navigation"}], "grid": {"k": [30], "seed": [0, 1]}},
    {"grid": {"k": [30], "seed": [0, 1], "training.learning_rate": [0.001, "1e-3"]}},
]


@pytest.mark.parametrize("fields", LISTED_TWICE)
def test_a_trial_that_a_sweep_lists_twice_counts_once(fields, tmp_path):
    """Whatever the sweep's reading lets through: means, deviations, intervals and pairs are over distinct trials."""
    once = sweep_of(grid={"k": [30], "seed": [0, 1]}, tasks=[PAPERS])

    def left(sweep):
        for run in runs_of(sweep, rate=lambda trial: 0.5 + 0.1 * trial.spec.seed):
            put_result(Storage(tmp_path).trial(run.trial.trial_id).path, run.result)
        return collect(sweep, expand(sweep), Storage(tmp_path))

    wanted = left(once)
    # Spelled otherwise by the reader or not, they are the trials of `once`.
    listed = _expanded(fields)
    assert {trial.trial_id for trial in listed} == {run.trial.trial_id for run in wanted}
    found = collect(once, listed, Storage(tmp_path))
    for row, same in zip(summarise("few", found).rows, summarise("few", wanted).rows * 2, strict=False):
        assert (row.used, row.expected, row.success_rate_std) == (same.used, same.expected, same.success_rate_std)
    assert beside_paper(wanted)
    assert [(e.ours, e.expected, e.difference) for e in beside_paper(found)] == [
        (e.ours, e.expected, e.difference) for e in beside_paper(wanted)
    ]
    assert paired_difference(found, "id-vin", "vin") == paired_difference(wanted, "id-vin", "vin")


def _expanded(fields):
    """The trials of a sweep with repetitions, listed by hand: a sweep's reader may refuse or merge them."""
    once = expand(sweep_of(grid={"k": [30], "seed": [0, 1]}, tasks=[PAPERS]))
    by_seed = {seed: [trial for trial in once if trial.spec.seed == seed] for seed in (0, 1)}
    if "tasks" in fields:
        return [*once, *once]
    if "training.learning_rate" in fields["grid"]:
        axis = "training.learning_rate"
        return [replace(trial, axes={**trial.axes, axis: value}) for value in fields["grid"][axis] for trial in once]
    return [trial for seed in fields["grid"]["seed"] for trial in by_seed[seed]]


def test_a_test_of_earlier_weights_is_not_the_retrained_planners(tmp_path):
    sweep = sweep_of(
        planners={"vin": {"core": "vin"}}, grid={"k": [30], "seed": [0]}, test_on=[{"map_size": 27, "test": 8}]
    )
    (trial,) = expand(sweep)
    directory = Storage(tmp_path).trial(trial.trial_id).path
    put_result(directory, runs_of(sweep)[0].result)
    from orchestrator.storage.evaluations import EvaluationResult, planned_evaluations

    (planned,) = planned_evaluations(sweep, [trial])
    path = planned.path(Storage(tmp_path))
    for code, kept in (("0" * 12, 0), (code_hash(), 1)):
        test = EvaluationResult(
            trial_id=trial.trial_id, dataset_id=path.name.partition("-test-")[0], split="test",
            map_size=27, maps=8, k=planned.k, success_rate=0.5, optimality=0.5, spl=0.5, accuracy=0.5, seconds=1.0,
            provenance=Provenance(code=code),
        )  # fmt: skip
        write_json(path, test.model_dump(mode="json"))
        assert len(collect(sweep, [trial], Storage(tmp_path))[0].evaluations) == kept


def test_damaged_files_cost_their_trial_alone_and_are_told(tmp_path):
    sweep = sweep_of(grid={"k": [30], "seed": [0, 1]}, test_on=[{"map_size": 27, "test": 8}])
    trials = expand(sweep)
    for run in runs_of(sweep):
        directory = Storage(tmp_path).trial(run.trial.trial_id).path
        put_curves(directory, run.curves)
        put_result(directory, run.result)
    first, second, third, _ = (Storage(tmp_path).trial(trial.trial_id).path for trial in trials)
    (first / "curves.parquet").write_bytes(b"x" * 500)
    put_curves(second, [{"epoch": 1, "train_loss": 1.0}])
    (third / "result.json").write_text("{")
    runs = collect(sweep, trials, Storage(tmp_path))
    assert [len(run.damaged) for run in runs] == [1, 1, 0, 0] and [len(run.curves) for run in runs][:2] == [0, 0]
    summary = summarise("few", runs)
    assert [row.used for row in summary.rows] == [2, 1] and len(summary.damaged) == 2
    page = report(sweep, runs)
    assert page.count("damaged, left out") == 2 and "unreadable" in page
    assert draw("curves", runs) is not None


def operations(work) -> int:
    """How often specs are compared, hashed or asked, by what costs: equality of whole specs."""
    count = 0
    before = PlannerSpec.__eq__

    def counted(one, other):
        nonlocal count
        count += 1
        return before(one, other)

    PlannerSpec.__eq__ = counted
    try:
        work()
    finally:
        PlannerSpec.__eq__ = before
    return count


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [50, 200])
def test_views_take_work_in_proportion_to_the_trials(seeds):
    """Four times as many trials took 14 times as long."""
    runs = runs_of(sweep_of(grid={"k": [10, 20, 30], "seed": list(range(seeds))}))

    def work():
        summarise("few", runs, compare=[("vin", "id-vin")])
        for name in ("success", "runtime", "residuals"):
            draw(name, runs)

    assert operations(work) <= 20 * len(runs)
