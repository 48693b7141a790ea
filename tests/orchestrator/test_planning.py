import json
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import put_result

from datagen.storage import dataset as parquet
from orchestrator.campaign import estimates
from orchestrator.campaign import run as running
from orchestrator.campaign.estimates import BESIDE_STEPS, STARTING_SECONDS, Schedule, effort, schedule
from orchestrator.campaign.plan import by_cell, make_plan
from orchestrator.cli.main import main
from orchestrator.cli.plan import _plan_json, disk, expected_time
from orchestrator.signals import Interrupted
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.measurements import Measurement, read_measurements, timed_cell, write_measurement
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import SweepSpec, expand

SWEEP = SweepSpec.model_validate(
    {
        "name": "planning",
        "data": {"train": 64, "valid": 32, "test": 32},
        "tasks": [{"task": "navigation", "map_size": 9}],
        "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin"}},
        "grid": {"k": [10, 20], "seed": [0, 1]},
        "training": {"epochs": 2},
    }
)


def plan_of(storage, sweep=SWEEP):
    return make_plan(sweep, expand(sweep), Storage(storage))


def written(folder):
    planners = {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin"}}
    content = SWEEP.model_dump(exclude_defaults=True, mode="json") | {"planners": planners}
    (folder / "s.yaml").write_text(json.dumps(content))
    return folder / "s.yaml"


def leave(storage, trial, status="COMPLETED", code=None, exclusive=False, **numbers):
    directory = Storage(storage).trial(trial.trial_id).path
    TrialDirectory(directory).write_spec(trial.spec)
    origin = Provenance(code=code or code_hash(), host="here", exclusive=exclusive)
    put_result(directory, TrialResult(trial_id=trial.trial_id, status=status, provenance=origin, **numbers))


def test_results_without_their_planners_need_no_dataset(tmp_path):
    sweep = SWEEP.model_copy(update={"test_on": [{"map_size": 11, "test": 8}]})
    trials = expand(sweep)
    for trial in trials:
        leave(tmp_path, trial)
    plan = plan_of(tmp_path, sweep)
    assert [(one.present, one.needed) for one in plan.datasets] == [(False, False)] * 2 and disk(plan) == 0
    Storage(tmp_path).trial(trials[0].trial_id).checkpoint.touch()  # a planner that can be tested
    assert [one.needed for one in plan_of(tmp_path, sweep).datasets] == [False, True]
    Storage(tmp_path).trial(trials[0].trial_id).result_file.unlink()
    assert [one.needed for one in plan_of(tmp_path, sweep).datasets] == [True, True]


def test_an_empty_storage_is_not_even_created(tmp_path):
    storage = tmp_path / "none"
    plan = plan_of(storage)
    assert not storage.exists()
    assert (len(plan.trials), plan.count("missing"), plan.count("done")) == (8, 8, 0)
    assert plan.seconds() is None
    assert [dataset.present for dataset in plan.datasets] == [False]


def test_each_outcome_has_its_state_and_only_what_is_missing_or_failed_runs(tmp_path):
    trials = expand(SWEEP)
    leave(tmp_path, trials[0])
    leave(tmp_path, trials[1], "OUT_OF_MEMORY")
    leave(tmp_path, trials[2], "FAILED")
    leave(tmp_path, trials[3], "CANCELLED")
    leave(tmp_path, trials[4], code="other")
    plan = plan_of(tmp_path)
    assert [plan.states[trial.trial_id] for trial in trials] == [
        *("done", "done", "failed", "cancelled", "stale", "missing", "missing", "missing")
    ]
    assert {trial.trial_id for trial in plan.to_run()} == {trials[i].trial_id for i in (2, 5, 6, 7)}
    counts = _plan_json(plan)
    states = ("done", "missing", "stale", "failed", "cancelled")
    assert [counts[state] for state in states] == [2, 3, 1, 1, 1] and counts["to_run"] == 4
    assert {trial.trial_id for trial in plan.to_run("stale")} == {trials[i].trial_id for i in (2, 4, 5, 6, 7)}
    leave(tmp_path, trials[1], exclusive=True)
    again = plan_of(tmp_path).to_run("shared")
    assert {trial.trial_id for trial in again} == {trials[i].trial_id for i in (0, 2, 4, 5, 6, 7)}


def test_the_longest_trial_goes_first(tmp_path):
    order = [effort(trial.spec) for trial in plan_of(tmp_path).to_run()]
    assert order == sorted(order, reverse=True) and order[0] > order[-1]


def test_a_trial_that_stands_twice_in_a_sweep_runs_once(tmp_path):
    twins = {"one": {"core": "vin"}, "two": {"core": "vin"}}
    sweep = SweepSpec.model_validate({**SWEEP.model_dump(), "planners": twins})
    plan = plan_of(tmp_path, sweep)
    assert len(plan.trials) == 8 and len(plan.to_run()) == 4


def test_expected_time_follows_the_measured_steps(tmp_path):
    vin = expand(SWEEP)[0]
    leave(tmp_path, vin, forward_seconds=0.1, backward_seconds=0.2)
    plan = plan_of(tmp_path)
    twice = next(t for t in plan.trials if t.axes == {**vin.axes, "k": 20})
    steps = vin.spec.training.epochs * (vin.spec.data.train // vin.spec.training.batch_size)
    assert plan.work[twice.trial_id] - plan.work[vin.trial_id] == pytest.approx(steps * 0.3 * 1.1)
    assert "1 earlier trial on here" in plan.seconds_from
    assert "vin/implicit" in plan.seconds_from


def test_what_was_never_run_takes_at_least_what_is_expected(tmp_path, capsys):
    path = written(tmp_path)
    leave(tmp_path, expand(SWEEP)[0], forward_seconds=0.1, backward_seconds=0.2)
    assert plan_of(tmp_path).at_least()
    assert main(["plan", str(path), "--storage", str(tmp_path)]) == 0
    assert "expected time: at least " in capsys.readouterr().out
    alike = SWEEP.model_copy(update={"planners": {"vin": SWEEP.planners["vin"]}})
    assert not plan_of(tmp_path, alike).at_least()


@pytest.mark.parametrize(("rerun", "exclusive", "done"), [("stale", True, 7), ("shared", False, 0)])
def test_what_is_trained_again_takes_its_time_and_is_not_done(tmp_path, capsys, monkeypatch, rerun, exclusive, done):
    path, numbers = written(tmp_path), {"forward_seconds": 0.1, "backward_seconds": 0.2, "exclusive": exclusive}
    for number, trial in enumerate(expand(SWEEP)):
        leave(tmp_path, trial, code=None if number else "other", **numbers)
    plan, noted = plan_of(tmp_path), []
    assert plan.seconds() == 0.0 and not plan.at_least()
    assert plan.seconds(rerun) == sum(plan.work[trial.trial_id] for trial in plan.to_run(rerun)) > 0.0

    def stopped(plan, todo, *_):
        noted.append(running._note(plan, {trial.trial_id for trial in todo}, ""))
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(running, "run_campaign", stopped)
    assert main(["run", str(path), "--storage", str(tmp_path), "--rerun", rerun]) == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert f"expected time: {expected_time(plan, rerun)};" in said and "expected time: 0 s" not in said
    assert f"{done} of 8 trials are done" in said and noted[0].done == done


def test_a_mapper_has_times_of_its_own_and_a_trial_those_of_its_other_seeds(tmp_path):
    tasks = [{"task": "navigation", "map_size": 9}, {"task": "workspace_manipulation", "map_size": 9}]
    planners = {"vin": {"core": "vin", "adjoint": "unrolled"}}
    changed = {"tasks": tasks, "planners": planners, "training": {"epochs": 1}}
    sweep = SweepSpec.model_validate({**SWEEP.model_dump(), **changed})
    trials = {tuple(trial.axes[name] for name in ("task", "planner", "k", "seed")): trial for trial in expand(sweep)}
    leave(tmp_path, trials["navigation", "vin", 10, 0], forward_seconds=0.1, backward_seconds=0.2)
    unknown = plan_of(tmp_path, sweep)
    leave(tmp_path, trials["workspace_manipulation", "vin", 10, 0], forward_seconds=10.0, backward_seconds=20.0)
    leave(tmp_path, trials["workspace_manipulation", "vin", 20, 0], forward_seconds=11.0, backward_seconds=21.0)
    plan = plan_of(tmp_path, sweep)

    def seconds(*axes):
        return (plan.work[trials[axes].trial_id] - STARTING_SECONDS) / (2 * BESIDE_STEPS)

    assert seconds("navigation", "vin", 10, 1) == pytest.approx(0.3)
    assert seconds("workspace_manipulation", "vin", 10, 1) == pytest.approx(30.0)
    assert seconds("workspace_manipulation", "vin", 20, 1) == pytest.approx(32.0)
    assert "vin/unrolled/unet" in unknown.seconds_from and "vin/unrolled/unet" not in plan.seconds_from


def test_a_spec_this_version_cannot_read_does_not_spoil_the_estimate(tmp_path):
    other = expand(SWEEP.model_copy(update={"grid": {"k": [10], "seed": [7]}}))[0]
    leave(tmp_path, other, forward_seconds=0.1, backward_seconds=0.2)
    assert plan_of(tmp_path).seconds() is not None
    (Storage(tmp_path).trial(other.trial_id).path / "spec.json").write_text('{"of": "the future"}')
    assert plan_of(tmp_path).seconds() is None


def test_of_other_sweeps_some_trials_are_read_and_none_where_its_own_say_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "MOST_OTHERS", 2)
    for other in expand(SWEEP.model_copy(update={"grid": {"k": [10], "seed": [7, 8, 9]}})):
        leave(tmp_path, other, forward_seconds=0.1, backward_seconds=0.2)
    assert "from 2 earlier trials on here" in plan_of(tmp_path).seconds_from
    for trial in expand(SWEEP):
        if trial.axes["seed"] == 0:
            leave(tmp_path, trial, forward_seconds=0.3, backward_seconds=0.2)
    plan = plan_of(tmp_path)
    assert plan.seconds_from == "from 4 earlier trials on here" and not plan.at_least()
    assert plan.count("missing") == 4


def test_a_trial_that_is_asked_for_by_its_seed_is_the_one_that_the_whole_sweep_has():
    alone = expand(SWEEP.model_copy(update={"grid": {"k": [20], "seed": [1]}}))
    assert [trial for trial in expand(SWEEP) if trial.trial_id in {one.trial_id for one in alone}] == alone
    assert len({id(trial.spec.planner) for trial in expand(SWEEP)}) == 4


def test_a_finished_dataset_is_present_with_its_size(tmp_path):
    spec = expand(SWEEP)[0].spec.data
    root = tmp_path / "datasets"
    for shard in parquet.shards(spec):
        parquet.write_shard(spec, shard, root)
    (dataset,) = plan_of(tmp_path).datasets
    assert not dataset.present
    parquet.finish_dataset(spec, root)
    (dataset,) = plan_of(tmp_path).datasets
    assert dataset.present and dataset.problems == 128
    assert dataset.bytes == sum(path.stat().st_size for path in root.rglob("*.parquet"))


def test_cells_hold_their_seeds(tmp_path):
    cells = by_cell(plan_of(tmp_path))
    assert len(cells) == 4
    assert all(seeds == [0, 1] and states["missing"] == 2 for _, seeds, states in cells)


@pytest.mark.slow
def test_planning_loads_no_torch_and_no_ray_and_neither_does_a_table(tmp_path):
    check = (
        "import sys; from orchestrator.cli.main import main\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'e2cnn', 'miniworld', 'numba', 'matplotlib', 'pandas'}\n"
        f"words = ['sweeps/quickstart.yaml', '--json', '--storage', {str(tmp_path)!r}]\n"
        "assert main(['plan', *words]) == 0\n"
        "found = {*heavy, 'scipy', 'orchestrator.tables.summary'} & sys.modules.keys()\n"
        "assert main(['table', *words]) == 0\n"
        "found |= heavy & sys.modules.keys()\n"
        "sys.exit(f'loads {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_longest_go_first_and_the_tail_is_said():
    assert schedule([3, 1, 1, 1], 2) == Schedule(2, 3.0, 6.0, 0.0)
    assert schedule([1, 1, 1, 3], 2) == Schedule(2, 3.0, 6.0, 0.0)
    assert schedule([5, 1], 4) == Schedule(4, 5.0, 6.0, 5.0)
    assert schedule([], 3) == Schedule(3, 0.0, 0.0, 0.0)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_a_schedule_is_within_grahams_bound(work, devices):
    found = schedule(work, devices)
    best = max(max(work), sum(work) / devices)
    assert best <= found.seconds + 1e-6 and found.seconds <= (4 / 3) * best + max(work) + 1e-6
    assert found.tail_seconds <= max(work) + 1e-6


def test_measured_cells_make_the_estimate_and_what_does_not_fit_is_said(tmp_path, capsys):
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        "name: s\nplanners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 4, q_channels: 4}}\n"
        "tasks: [{map_size: 9}]\ndata: {train: 3200, valid: 16, test: 16}\ngrid: {k: [4], seed: [0, 1]}\n"
        "training: {epochs: 10}\nprofiles: {small: {execution: {memory_limit_gib: 0.0001}}}\n"
    )
    common = [str(sweep), "--storage", str(tmp_path / "storage"), "--json"]
    assert main(["plan", *common, "--gpus", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["schedules"] == []
    assert main(["plan", *common, "--measure", "--gpus", "1", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (measured,) = plan["measured"]
    assert measured["status"] == "COMPLETED" and measured["peak_bytes"] > 0
    assert "1 cell measured" in plan["expected_seconds_from"]
    each = 1000 * measured["step_seconds"] * BESIDE_STEPS + STARTING_SECONDS
    assert plan["expected_seconds"] == pytest.approx(2 * each)
    assert [entry["seconds"] for entry in plan["schedules"]] == pytest.approx([2 * each, each])
    assert main(["plan", *common, "--measure", "--profile", "small"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["measured"]
    assert measured["status"] == "OUT_OF_MEMORY" and "limit" in measured["reason"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("step_seconds", bad) for bad in (float("nan"), float("inf"), 1e308, -5)),
        *(("forward_seconds", -1), ("backward_seconds", float("inf")), ("peak_bytes", -1), ("status", "FINE")),
    ],
)
def test_a_damaged_measurement_is_left_out(tmp_path, field, value):
    storage, trials = Storage(tmp_path), expand(SWEEP)
    for trial in (trials[0], trials[-1]):
        facts = {"cell": timed_cell(trial.spec), "device": "a\x1b[31mb", "host": "h", "code": code_hash(), "name": "n"}
        times = {"step_seconds": 1.0, "forward_seconds": 0.5, "backward_seconds": 0.5}
        write_measurement(storage, Measurement(**facts, status="COMPLETED", **times))
    one = min(storage.measurements.iterdir())
    one.write_text(json.dumps(json.loads(one.read_bytes()) | {field: value}))
    (storage.measurements / "a.json").mkdir()
    (kept,) = read_measurements(storage)
    plan = make_plan(SWEEP, trials, storage)
    assert kept.step_seconds == 1.0 and 0 < plan.seconds() < 1e6
    assert plan.seconds_from.startswith(r"from 1 cell measured on a\x1b[31mb;")


def test_a_budget_bounds_what_a_trial_is_expected_to_take():
    def work(**limits):
        planner = {"vin": {"core": "vin", "adjoint": "unrolled"}}
        document = {"name": "b", "planners": planner, "training": {"epochs": 10, **limits}}
        (trial,) = expand(SweepSpec.model_validate({**document, "data": {"train": 320, "valid": 8, "test": 8}}))
        return effort(trial.spec), timed_cell(trial.spec)

    whole, cell = work()
    assert work(most_steps=25) == (whole / 4, cell)
    assert work(most_steps=1000) == (whole, cell)
    # K = 30: an unrolled step spends 60 applications of f.
    assert work(most_applications=600) == (whole / 10, cell)
