import json
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from samples import put_curves, put_result

from datagen.tasks.registry import dataset_id
from orchestrator.addresses import shown_uri, without_secrets
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.variants import variant
from orchestrator.sweep.specs import SweepSpec, expand
from orchestrator.tracking import bulk
from orchestrator.tracking import note as tracking_note
from orchestrator.tracking import store as tracking_store
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking import view as tracking_view
from orchestrator.tracking.tracker import Tracker, TrackingError, default_uri, sync, unsent

SWEEP = SweepSpec.model_validate(
    {
        "name": "seen",
        "planners": {"vin": {"core": "vin"}},
        "grid": {"seed": [0, 1]},
        "figures": ["generalisation"],  # there is nothing to draw, which would take most of the time
    }
)
TRIALS = expand(SWEEP)
DEAD = "http://127.0.0.1:9"

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own


def leave_curves(storage, trial, epochs=2):
    records = [
        {
            "epoch": e,
            "train_loss": 1 / e,
            "valid_success_rate": 0.1 * e,
            "backward_residual": float("nan"),
            "train_seconds": 2.0,
        }
        for e in range(1, epochs + 1)
    ]
    put_curves(Storage(storage).trial(trial.trial_id).path, records)


def leave(storage, trial, rate=0.5, code=None, epochs=2, status="COMPLETED"):
    leave_curves(storage, trial, epochs)
    result = TrialResult(
        trial_id=trial.trial_id,
        status=status,
        test_success_rate=rate,
        trial_diverged=rate < 0.2,
        epochs=epochs,
        train_seconds=3.0,
        provenance=Provenance(code=code or code_hash(), host="here", git_commit="c0ffee"),
    )
    put_result(Storage(storage).trial(trial.trial_id).path, result)
    return result


def runs(storage):
    client = tracking_view.connect(default_uri(Storage(storage)))
    experiment = client.get_experiment_by_name(SWEEP.name)
    found = client.search_runs([experiment.experiment_id])
    return client, {run.data.tags["idp.key"]: run for run in found}


@pytest.fixture
def storage(storage_with_database):
    return storage_with_database


def test_a_parent_a_run_per_trial_and_the_mean(storage):
    for trial, rate in zip(TRIALS, (0.4, 0.6), strict=True):
        leave(storage, trial, rate)
    assert sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage)) == 2
    client, found = runs(storage)
    parent = found["sweep"]
    assert parent.info.status == "FINISHED"
    trial = found[f"trial:{TRIALS[0].trial_id}"]
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trial.info.run_name == "vin navigation-15 K=30 seed=0"
    wanted = {"planner": "vin", "core": "vin", "adjoint": "implicit", "task": "navigation", "map_size": "15"}
    assert {**wanted, "k": "30", "seed": "0"}.items() <= trial.data.params.items()
    assert trial.data.metrics["test_success_rate"] == 0.4
    assert trial.data.tags["idp.host"] == "here"
    history = client.get_metric_history(trial.info.run_id, "epoch/train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    assert history[1].timestamp - history[0].timestamp == 2000
    (mean,) = (run for key, run in found.items() if key.startswith("mean:"))
    assert mean.data.metrics["test_success_rate"] == pytest.approx(0.5)
    assert mean.data.metrics["test_success_rate_std"] == pytest.approx(0.02**0.5)
    assert mean.info.run_name == "vin K=30" and "mlflow.parentRunId" not in mean.data.tags
    assert {"seed": "0, 1", "epochs": "60", "core": "vin"}.items() <= mean.data.params.items()
    assert mean.info.end_time - mean.info.start_time == 1000 * 3


def test_the_sweeps_run_has_the_table_and_the_means(storage):
    for trial, rate in zip(TRIALS, (0.4, 0.6), strict=True):
        leave(storage, trial, rate)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    parent = runs(storage)[1]["sweep"]
    said = parent.data.tags["mlflow.note.content"]
    assert "| vin | 30 | 50.0 ± 14.1 |" in said and said.index("| vin") < said.index("Not the paper's scale")
    assert parent.data.metrics["test_success_rate/vin K 30"] == pytest.approx(0.5)
    assert parent.data.metrics["trials_diverged/vin K 30"] == 0
    leave(storage, TRIALS[0], 0.1)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    parent = runs(storage)[1]["sweep"]
    assert parent.data.metrics["test_success_rate/vin K 30"] == pytest.approx(0.35)
    assert "35.0 ±" in parent.data.tags["mlflow.note.content"]


def test_a_trials_run_has_its_files_its_data_and_its_place(storage):
    leave(storage, TRIALS[0])
    directory = Storage(storage).trial(TRIALS[0].trial_id)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    client, found = runs(storage)
    run = found[f"trial:{TRIALS[0].trial_id}"]
    assert run.data.tags["idp.directory"] == str(directory.path)
    assert sorted(item.path for item in client.list_artifacts(run.info.run_id)) == ["curves.parquet", "result.json"]
    kept = Path(client.download_artifacts(run.info.run_id, "result.json"))
    assert kept.read_bytes() == directory.result_file.read_bytes()
    (given,) = run.inputs.dataset_inputs
    data = dataset_id(TRIALS[0].spec.data)
    assert (given.dataset.name, given.dataset.digest) == (data, data.rpartition("-")[2])
    assert json.loads(given.dataset.source)["uri"] == (storage / "datasets" / data).as_uri()


def whole(storage):
    """All that MLflow shows, but for the ids and moments of its runs."""
    client, found = runs(storage)
    names = {run.info.run_id: key for key, run in found.items()}
    shown = {}
    for key, run in found.items():
        tags = {name: names.get(value, value) for name, value in run.data.tags.items()}
        histories = {
            name: sorted(
                (m.step, m.value, m.timestamp // 1000) for m in client.get_metric_history(run.info.run_id, name)
            )
            for name in (run.data.metrics if key.startswith("trial:") else ())
        }
        times = (run.info.start_time, run.info.end_time) if key.startswith("trial:") else ()
        files = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        inputs = [(i.dataset.to_dictionary(), [dict(t) for t in i.tags]) for i in run.inputs.dataset_inputs]
        info = (run.info.run_name, run.info.status, run.info.user_id, run.info.lifecycle_stage)
        shown[key] = (info, tags, run.data.params, run.data.metrics, histories, times, files, inputs)
    return shown


def test_many_at_once_are_shown_as_one_by_one_are(storage, tmp_path, monkeypatch):
    """Also where MLflow's tables are others than those known: then each goes by MLflow's own calls."""
    other = tmp_path / "other"
    for number, trial in enumerate(TRIALS):
        leave(storage, trial, 0.3 + 0.1 * number, status=("COMPLETED", "FAILED")[number])
    shutil.copytree(storage, other)
    calls = []
    ask = tracking_store.Client.__getattr__
    monkeypatch.setattr(tracking_store.Client, "__getattr__", lambda self, name: calls.append(name) or ask(self, name))
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    assert "log_inputs" not in calls and calls.count("create_run") == 2  # the sweep's and the means'
    at_once = whole(storage)
    monkeypatch.setattr(bulk, "_METRICS", bulk._METRICS.replace("is_nan", "is_none"))
    sync(default_uri(Storage(other)), SWEEP, TRIALS, Storage(other))
    assert calls.count("log_inputs") == 2
    expected = json.loads(json.dumps(whole(other)).replace(str(other), str(storage)))
    assert json.loads(json.dumps(at_once)) == expected


def test_variants_of_a_sweep_are_told_apart(storage):
    """By their names, in pages of their own; each with its own means and documents."""
    short = SWEEP.model_copy(update={"training": {"epochs": 3}}).labelled("training.epochs=3")
    uri = default_uri(Storage(storage))
    for sweep, rate in ((SWEEP, 0.4), (short, 0.8)):
        for trial in expand(sweep):
            leave(storage, trial, rate)
        sync(uri, sweep, expand(sweep), Storage(storage))
    client, found = runs(storage)
    names = [run.info.run_name for run in found.values()]
    assert len(names) == len(set(names)) == 8
    assert {"seen (training.epochs=3)", "vin K=30 (training.epochs=3)"} <= set(names)
    assert {"vin navigation-15 K=30 seed=0", "vin navigation-15 K=30 seed=0 (training.epochs=3)"} <= set(names)
    means = {run.info.run_name: run.data for run in found.values() if run.data.tags["idp.kind"] == "mean"}
    assert means["vin K=30"].metrics["test_success_rate"] == pytest.approx(0.4)
    assert means["vin K=30"].params["epochs"] == "60"
    assert means["vin K=30 (training.epochs=3)"].params["epochs"] == "3"
    pages = [tracking.page_of(Storage(storage), sweep, uri) for sweep in (SWEEP, short)]
    assert len(set(pages)) == 2
    tags = client.get_experiment_by_name(SWEEP.name).tags
    for page, sweep in zip(pages, (SWEEP, short), strict=True):
        state = json.loads(tags["mlflow.sharedViewState." + page.partition("viewStateShareKey=")[2]])
        assert f"'{variant(sweep)}'" in state["searchFilter"]


@pytest.mark.slow
def test_the_mean_says_of_how_many_and_what_became_of_the_others(storage):
    leave(storage, TRIALS[0], status="OUT_OF_MEMORY")
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))

    def mean():
        (found,) = (run for key, run in runs(storage)[1].items() if key.startswith("mean:"))
        names = ("trials", "trials_expected", "trials_diverged", "trials_out_of_memory")
        return [found.data.metrics[name] for name in names]

    assert mean() == [0, 2, 0, 1]
    leave(storage, TRIALS[1], rate=0.1)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    assert mean() == [1, 2, 1, 1]


def test_what_is_not_finite_is_a_flag_and_what_there_is_none_of_is_none(storage):
    planners = {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin"}}
    sweep = SWEEP.model_validate({"name": "seen", "planners": planners, "grid": {"seed": [0, 1]}})
    unrolled, _, healthy, diverged = expand(sweep)
    for trial in (unrolled, healthy, diverged):
        leave(storage, trial)
    record = {"epoch": 1, "train_loss": float("nan"), "forward_residual": float("inf"), "not_finite": True}
    record |= {"backward_residual": float("nan"), "valid_success_rate": 0.0, "train_seconds": 1.0}
    put_curves(Storage(storage).trial(diverged.trial_id).path, [record])
    sync(default_uri(Storage(storage)), sweep, expand(sweep), Storage(storage))
    found = runs(storage)[1]
    flags = [
        sorted(name for name in found[f"trial:{trial.trial_id}"].data.metrics if "not_finite" in name)
        for trial in (unrolled, healthy, diverged)
    ]
    names = ("backward_residual", "forward_residual", "train_loss")
    assert flags == [[], [], sorted([*(f"epoch/{name}_not_finite" for name in names), "epoch/not_finite"])]


@pytest.mark.slow
def test_syncing_again_changes_nothing(storage):
    for trial in TRIALS:
        leave(storage, trial)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))

    def content():
        with sqlite3.connect(storage / "mlflow.db") as connection:
            return list(connection.iterdump())

    before = content()
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    assert content() == before


def test_live_and_rebuilt_views_agree(storage):
    told: list[str] = []
    tracker = Tracker(default_uri(Storage(storage)), SWEEP, Storage(storage), told.append)
    tracker.note(TRIALS[0], "started")
    for epochs in (1, 2):
        leave_curves(storage, TRIALS[0], epochs)
        tracker.note(TRIALS[0], "epoch")
        time.sleep(0.2)
    leave(storage, TRIALS[0])
    tracker.note(TRIALS[0], "finished")
    assert tracker.close("FINISHED") == 0
    assert told == []
    client, live = runs(storage)
    key = f"trial:{TRIALS[0].trial_id}"
    assert live[key].info.status == "FINISHED"
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    _, rebuilt = runs(storage)
    assert rebuilt.keys() == live.keys()
    assert rebuilt[key].data.metrics == live[key].data.metrics
    assert len(client.get_metric_history(live[key].info.run_id, "epoch/train_loss")) == 2


def test_a_restarted_driver_goes_on_in_the_same_run(storage):
    uri = default_uri(Storage(storage))
    first = Tracker(uri, SWEEP, Storage(storage), print)
    leave_curves(storage, TRIALS[0], 1)
    first.note(TRIALS[0], "epoch")
    assert first.close("KILLED") == 0
    key = f"trial:{TRIALS[0].trial_id}"
    client, found = runs(storage)
    assert found[key].info.status == "KILLED"
    leave(storage, TRIALS[0], epochs=3)
    second = Tracker(uri, SWEEP, Storage(storage), print)
    second.note(TRIALS[0], "finished")
    assert second.close("FINISHED") == 0
    _, again = runs(storage)
    assert again[key].info.run_id == found[key].info.run_id
    assert again[key].info.status == "FINISHED"
    history = client.get_metric_history(found[key].info.run_id, "epoch/train_loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3]


@pytest.mark.slow
def test_numbers_of_other_code_get_another_run(storage):
    uri = default_uri(Storage(storage))
    leave(storage, TRIALS[0], rate=0.3, code="old")
    sync(uri, SWEEP, TRIALS, Storage(storage))
    key = f"trial:{TRIALS[0].trial_id}"
    old = runs(storage)[1][key]
    leave(storage, TRIALS[0], rate=0.4)
    sync(uri, SWEEP, TRIALS, Storage(storage))
    new = runs(storage)[1][key]
    assert new.info.run_id != old.info.run_id
    assert new.data.metrics["test_success_rate"] == 0.4


@pytest.mark.slow
def test_a_failed_trial_that_then_succeeds_is_one_run(storage):
    uri = default_uri(Storage(storage))
    leave(storage, TRIALS[0], status="FAILED")
    sync(uri, SWEEP, TRIALS, Storage(storage))
    key = f"trial:{TRIALS[0].trial_id}"
    failed = runs(storage)[1][key]
    assert failed.info.status == "FAILED"
    leave(storage, TRIALS[0])
    sync(uri, SWEEP, TRIALS, Storage(storage))
    again = runs(storage)[1][key]
    assert (again.info.run_id, again.info.status) == (failed.info.run_id, "FINISHED")
    assert again.data.tags["idp.status"] == "COMPLETED"


def test_an_outage_costs_a_trial_nothing_and_is_made_good_later(storage, monkeypatch):
    told: list[str] = []
    result = leave(storage, TRIALS[0])
    open_store, asked_by = tracking_view.open_store, set()

    def noting_who_asks(*words):
        asked_by.add(threading.current_thread().name)
        return open_store(*words)

    monkeypatch.setattr(tracking_view, "open_store", noting_who_asks)
    tracker = Tracker(DEAD, SWEEP, Storage(storage), told.append)
    for event in ("started", "epoch", "finished"):
        tracker.note(TRIALS[0], event)
    assert tracker.close("FINISHED", patience=0.5) == 1
    assert asked_by == {"tracking"}, "who notes something waits for nobody"
    assert unsent(Storage(storage), SWEEP.name, DEAD, {TRIALS[0].trial_id: result}) == [TRIALS[0].trial_id]
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        sync(DEAD, SWEEP, TRIALS, Storage(storage))
    uri = default_uri(Storage(storage))
    assert unsent(Storage(storage), SWEEP.name, uri, {TRIALS[0].trial_id: result}) == [TRIALS[0].trial_id]
    sync(uri, SWEEP, TRIALS, Storage(storage))
    assert unsent(Storage(storage), SWEEP.name, uri, {TRIALS[0].trial_id: result}) == []


@pytest.mark.parametrize("word", ["secret", "a/secret", "#secret?", "http://[secret", "b@/secret:", "%73ecret"])
def test_a_password_is_not_shown_nor_repeated(word):
    for uri in (f"postgresql://user:{word}@db:5432/mlflow", f"mysql://db:5432/mlflow?user=x&password={word}"):
        shown = shown_uri(uri)
        assert "***" in shown and "ecret" not in shown and shown.endswith(("***@db:5432/mlflow", "&password=***"))
        assert "ecret" not in without_secrets(f"no route to {uri}, said {unquote(word)!r}", uri)
    for plain in ("http://[::1]:5000/a", "http://[half", "sqlite:////home/a:b@c/mlflow.db", "none"):
        assert shown_uri(plain) == without_secrets(plain, plain) == plain


def test_a_password_is_not_stored(storage):
    uri = "postgresql://user:secret@db:5432/mlflow"
    tracking_note.write_sent(Storage(storage), SWEEP, uri, "1", {"x": "y"}, compared=True)
    for path in (storage / "sweeps").rglob("*"):
        assert "secret" not in path.name
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_a_deleted_experiment_is_taken_up_again(storage):
    leave(storage, TRIALS[0])
    uri = default_uri(Storage(storage))
    sync(uri, SWEEP, TRIALS, Storage(storage))
    client, found = runs(storage)
    client.delete_experiment(found["sweep"].info.experiment_id)
    assert sync(uri, SWEEP, TRIALS, Storage(storage)) == 1
    assert client.get_experiment_by_name(SWEEP.name).lifecycle_stage == "active"


def test_no_password_of_the_address_is_ever_said(tmp_path, capsys):
    secret = "s3cret%21"
    uri = f"http://someone:{secret}@127.0.0.1:9/prefix"
    with pytest.raises(TrackingError) as caught:
        sync(uri, SWEEP, expand(SWEEP), Storage(tmp_path))
    assert "s3cret" not in str(caught.value) and "someone" not in str(caught.value)
    assert "s3cret" not in tracking._reason(RuntimeError(f"refused: {uri} and s3cret!"), uri)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert written == []


@pytest.mark.slow
def test_the_parent_run_carries_plan_table_figures_and_report(storage):
    for trial, rate in zip(TRIALS, (0.4, 0.6), strict=True):
        leave(storage, trial, rate)
    uri = default_uri(Storage(storage))
    sync(uri, SWEEP.model_copy(update={"figures": ["curves"]}), TRIALS, Storage(storage))
    client, found = runs(storage)
    parent = found["sweep"].info.run_id
    assert {item.path for item in client.list_artifacts(parent)} >= {
        "plan.json",
        "table.md",
        "table.csv",
        "report.html",
    }
    assert any(item.path.endswith("seen-curves.png") for item in client.list_artifacts(parent, "figures"))

    def content(name):
        return Path(client.download_artifacts(parent, name)).read_text()

    assert "50.0 ± 14.1" in content("table.md")
    plan = json.loads(content("plan.json"))
    assert [trial["trial_id"] for trial in plan["trials"]] == [trial.trial_id for trial in TRIALS]
    assert "<h1>seen</h1>" in content("report.html")
    leave(storage, TRIALS[0], 0.6)
    # A report that is as new as the results is the one with the profile and the command: MLflow gets that.
    (storage / "sweeps" / SWEEP.name / "report.html").write_text("the storage's own report")
    sync(uri, SWEEP, TRIALS, Storage(storage))
    assert "60.0 ± 0.0" in content("table.md") and content("report.html") == "the storage's own report"


def test_the_experiment_opens_on_its_training_runs(storage):
    client = tracking_view.connect(default_uri(Storage(storage)))
    client.create_experiment(SWEEP.name)
    leave(storage, TRIALS[0])
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    tags = client.get_experiment_by_name(SWEEP.name).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
