"""MLflow's store at its first moments, in odd places, and when it does not end; and what is shown in it then."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mutations import EXAMPLES, mutated
from samples import put_curves, put_result

from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.variants import make_way, variant
from orchestrator.sweep.specs import SweepSpec, expand
from orchestrator.tracking import store as mlflow_store
from orchestrator.tracking.comparison import address_of
from orchestrator.tracking.note import note_path
from orchestrator.tracking.store import default_uri, locked, open_store, sqlite_path
from orchestrator.tracking.tracker import Tracker, TrackingError, page_of, seconds_between, sync, unsent
from orchestrator.tracking.view import View, connect

SWEEP = SweepSpec.model_validate(
    {
        "name": "kept",
        "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}},
        "grid": {"k": [5], "seed": [0, 1, 2]},
        "figures": ["generalisation"],  # there is nothing to draw, which would take half of the time
    }
)
TRIALS = expand(SWEEP)

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own


@pytest.fixture(scope="module")
def first_ones(tmp_path_factory):
    """What four that are the first on a storage at once leave there, and what they raise."""
    folder, raised = tmp_path_factory.mktemp("first"), []

    def first():
        try:
            open_store(default_uri(Storage(folder)), print).search_experiments()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return folder, raised


@pytest.fixture
def storage(storage_with_database):
    return storage_with_database


def leave(storage, trial, rate=0.5, **provenance):
    directory = Storage(storage).trial(trial.trial_id).path
    put_curves(directory, [{"epoch": 1, "train_loss": 1.0, "valid_success_rate": 0.1, "train_seconds": 2.0}])
    origin = Provenance(**{"code": code_hash(), **provenance})
    result = TrialResult(
        trial_id=trial.trial_id, status="COMPLETED", test_success_rate=rate, epochs=1, provenance=origin
    )
    put_result(directory, result)
    return result


def shown(storage, name="kept"):
    client = connect(default_uri(Storage(storage)))
    experiment = client.get_experiment_by_name(name)
    return client, [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def means(storage):
    return [dict(run.data.metrics) for run in shown(storage)[1] if run.data.tags.get("idp.kind") == "mean"]


def artifact(storage, name, parent="kept"):
    (run,) = (run for run in shown(storage)[1] if run.info.run_name == parent)
    return (mlflow_store.folder_of(run.info.artifact_uri) / name).read_text()


def set_revision(path, revision):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))


@pytest.mark.slow
def test_several_first_ones_make_one_whole_file(first_ones):
    folder, raised = first_ones
    assert raised == [] and sorted(path.name for path in folder.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


@pytest.mark.slow
@pytest.mark.parametrize("left", ["revision", "no tables"])
def test_a_file_that_was_left_half_made_is_put_aside(storage, left, monkeypatch):
    monkeypatch.setattr(mlflow_store, "_QUIET_SECONDS", 0.05)
    path = storage / "mlflow.db"
    if left == "revision":
        set_revision(path, "451aebb31d03")
    else:
        path.unlink()
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE _alembic_tmp_latest_metrics (key TEXT)")
    leave(storage, TRIALS[0])
    told = []
    assert sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage), told.append) == 1
    assert len(shown(storage)[1]) == 3
    assert (
        (storage / "mlflow.db.half-made").exists() == (left != "nothing") == any("half made" in line for line in told)
    )


@pytest.mark.slow
def test_a_file_that_shows_runs_is_never_put_aside(storage):
    leave(storage, TRIALS[0])
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    set_revision(storage / "mlflow.db", "451aebb31d03")
    open_store(default_uri(Storage(storage)), pytest.fail)
    assert not (storage / "mlflow.db.half-made").exists()


def test_what_is_no_database_or_cannot_be_written_is_told_at_once(storage):
    leave(storage, TRIALS[0])
    (storage / "mlflow.db").write_bytes(b"x" * 5000)
    with pytest.raises(TrackingError, match=r"mlflow\.db: file is not a database; .*delete it, and idp sync makes it"):
        sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    with pytest.raises(TrackingError, match="/proc"):
        sync(default_uri(Storage(Path("/proc/nobody"))), SWEEP, TRIALS, Storage(storage))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q?mark=1", "pct%41x", "#sharp ü;&"])
def test_a_storage_of_any_name_holds_its_own_database(tmp_path, database, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(database)
    leave(folder, TRIALS[0])
    sync(default_uri(Storage(folder)), SWEEP, TRIALS, Storage(folder))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert "| vin" in artifact(folder, "table.md")
    assert sqlite_path(default_uri(Storage(folder))) == folder / "mlflow.db"


@pytest.mark.slow
def test_a_database_may_be_named_from_the_current_folder(tmp_path, monkeypatch, database):
    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").write_bytes(database)
    leave(tmp_path, TRIALS[0])
    assert sync("sqlite:///mlflow.db", SWEEP, TRIALS, Storage(tmp_path)) == 1
    assert "| vin" in artifact(tmp_path, "table.md"), "it is the storage's own, and not one that several share"


def test_a_lock_is_waited_for_but_not_for_ever(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(mlflow_store.StoreError, match="another process"),
        locked(tmp_path / "lock", 0.1),
    ):
        pass


@contextmanager
def answering(answer):
    """A server whose answers `answer` writes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer(self)

        do_POST = do_PATCH = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_drips_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_store, "CALL_SECONDS", 0.5)
    ended = threading.Event()

    def drip(request):
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        while not ended.wait(0.05):
            request.wfile.write(b" ")

    with answering(drip) as address:
        with pytest.raises(TrackingError, match="no whole answer within"):
            sync(f"http://{address}", SWEEP, TRIALS, Storage(tmp_path))
        told: list[str] = []
        tracker = Tracker(f"http://{address}", SWEEP, Storage(tmp_path), told.append)
        tracker.note(TRIALS[0], "finished")
        assert tracker.close("FINISHED", patience=0.1) == 1
        ended.set()
    for thread in mlflow_store._abandoned:
        thread.join(20)


def test_no_password_reaches_standard_output(tmp_path, capfd):
    def empty(request):
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"{}")

    with answering(empty) as address:
        with pytest.raises(TrackingError) as caught:
            sync(f"http://jane:s3cret@{address}", SWEEP, TRIALS, Storage(tmp_path))
        client = connect(f"http://jane:s3cret@{address}")
        client.set_terminated("0" * 32)
    said = capfd.readouterr()
    assert said.out == "" and "s3cret" not in said.err + str(caught.value)


@pytest.mark.slow
def test_a_copied_or_moved_storage_leaves_the_original_alone(storage, tmp_path):
    leave(storage, TRIALS[0], 0.25)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    copy = tmp_path / "copy"
    shutil.copytree(storage, copy)
    leave(copy, TRIALS[0], 0.75)
    sync(default_uri(Storage(copy)), SWEEP, TRIALS, Storage(copy))
    assert "25.0" in artifact(storage, "table.md") and "75.0" in artifact(copy, "table.md")
    shutil.rmtree(storage)
    leave(copy, TRIALS[1], 0.75)
    sync(default_uri(Storage(copy)), SWEEP, TRIALS, Storage(copy))
    assert not storage.exists() and "2/3" in artifact(copy, "table.md")
    of_trials = [run for run in shown(copy)[1] if run.data.tags.get("idp.kind") == "trial"]
    assert of_trials and all(f"{copy}/trials/" in run.data.tags["mlflow.note.content"] for run in of_trials)
    assert all(run.data.tags["idp.directory"].startswith(f"{copy}/") for run in of_trials)
    assert all(copy.as_uri() in one.dataset.source for run in of_trials for one in run.inputs.dataset_inputs)


@pytest.mark.slow
def test_storages_that_share_a_database_keep_their_artifacts_apart(storage, tmp_path):
    uri = default_uri(Storage(storage))
    other = tmp_path / "other"
    for folder, rate in ((storage, 0.25), (other, 0.75)):
        leave(folder, TRIALS[0], rate)
        sync(uri, SWEEP, TRIALS, Storage(folder))
    assert "25.0" in artifact(storage, "table.md")
    client = connect(uri)
    assert sorted(e.name.partition("@")[0] for e in client.search_experiments()) == ["Default", "kept", "kept"]
    assert unsent(Storage(other), "kept", uri, {}) == [] and page_of(Storage(other), SWEEP, uri)


@pytest.mark.slow
def test_a_deleted_database_is_made_again_as_a_whole(storage, database):
    results = {trial.trial_id: leave(storage, trial) for trial in TRIALS[:2]}
    uri = default_uri(Storage(storage))
    sync(uri, SWEEP, TRIALS, Storage(storage))
    assert unsent(Storage(storage), SWEEP.name, uri, results) == [] and page_of(Storage(storage), SWEEP, uri)
    other = storage.with_name("fresh.db")
    other.write_bytes(database)
    os.replace(other, storage / "mlflow.db")  # as MLflow would leave it for another sweep
    assert unsent(Storage(storage), SWEEP.name, uri, results) == list(results)
    assert not page_of(Storage(storage), SWEEP, uri)
    leave(storage, TRIALS[2])
    tracker = Tracker(uri, SWEEP, Storage(storage), print)
    tracker.note(TRIALS[2], "finished")
    assert tracker.close("FINISHED") == 0
    assert [mean["trials"] for mean in means(storage)] == [3]
    assert sum(run.data.tags["idp.kind"] == "trial" for run in shown(storage)[1] if "idp.kind" in run.data.tags) == 3
    assert unsent(Storage(storage), SWEEP.name, uri, results) == []


def keys_read(view, monkeypatch):
    """The keys of the runs that the view is told of from now on."""
    keys, search = [], view._client._client.search_runs

    def noted(*words, **named):
        found = search(*words, **named)
        keys.extend(run.data.tags["idp.key"] for run in found)
        return found

    monkeypatch.setattr(view._client._client, "search_runs", noted)
    return keys


@pytest.mark.slow
def test_two_drivers_make_no_twins_and_old_twins_are_merged(storage, monkeypatch):
    for trial in TRIALS:
        leave(storage, trial)
    one, other = (View(default_uri(Storage(storage)), SWEEP, Storage(storage)) for _ in range(2))
    read = [keys_read(view, monkeypatch) for view in (one, other)]
    for trial in TRIALS:
        one.show(trial, running=False)
        other.show(trial, running=False)
    client, runs = shown(storage)
    assert len(runs) == 1 + len(TRIALS)
    assert read[0] == [] and set(read[1]) == {f"trial:{trial.trial_id}" for trial in TRIALS}, "no run is read again"
    twin = client.create_run(one.experiment, tags={"idp.key": f"trial:{TRIALS[0].trial_id}"})
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    keys = [run.data.tags["idp.key"] for run in shown(storage)[1]]
    assert len(keys) == len(set(keys)) == 2 + len(TRIALS)
    assert twin.info.run_id not in {run.info.run_id for run in shown(storage)[1]}


def test_a_driver_that_ends_leaves_the_trials_that_another_has_ended(storage):
    one, other = (View(default_uri(Storage(storage)), SWEEP, Storage(storage)) for _ in range(2))
    for view in (one, other):
        view.show(TRIALS[0], running=True)
        view.show(TRIALS[1], running=True)
    leave(storage, TRIALS[0])
    one.show(TRIALS[0], running=False)
    other.close([], TRIALS, "FINISHED", "")
    assert len(shown(storage)[1]) == 1 + 2, "each trial has one run"
    status = {run.data.tags["idp.key"]: run.info.status for run in shown(storage)[1]}
    assert [status[f"trial:{trial.trial_id}"] for trial in TRIALS[:2]] == ["FINISHED", "KILLED"]
    # What an earlier version has left is mended by whoever looks next.
    other._set_status(f"trial:{TRIALS[0].trial_id}", "KILLED")
    View(default_uri(Storage(storage)), SWEEP, Storage(storage)).show(TRIALS[0], running=False)
    status = {run.data.tags["idp.key"]: run.info.status for run in shown(storage)[1]}
    assert status[f"trial:{TRIALS[0].trial_id}"] == "FINISHED"


@pytest.mark.slow
def test_the_mean_is_of_present_trials_whatever_was_shown_before(storage):
    for trial in TRIALS:
        leave(storage, trial, 0.9, code="old")
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    assert means(storage)[0]["test_success_rate"] == pytest.approx(0.9)
    leave(storage, TRIALS[0], 0.5)
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    (mean,) = means(storage)
    assert (mean["test_success_rate"], mean["trials"]) == (0.5, 1) and "test_success_rate_std" not in mean
    for trial in TRIALS:
        (Storage(storage).trial(trial.trial_id).path / "result.json").unlink()
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    assert means(storage) == []


@pytest.mark.slow
def test_a_selection_leaves_means_and_documents_of_the_whole_sweep(storage):
    for trial, rate in zip(TRIALS, (0.2, 0.4, 0.6), strict=True):
        leave(storage, trial, rate)
    # Nothing was there yet: all are sent.
    assert sync(default_uri(Storage(storage)), SWEEP, TRIALS[:1], Storage(storage)) == 3
    assert means(storage)[0]["trials"] == 3 and "3/3" in artifact(storage, "table.md")
    leave(storage, TRIALS[0], 0.8)
    assert sync(default_uri(Storage(storage)), SWEEP, TRIALS[:1], Storage(storage)) == 1
    assert means(storage)[0]["test_success_rate"] == pytest.approx(0.6) and "3/3" in artifact(storage, "table.md")


@pytest.mark.slow
def test_another_sweep_of_the_same_name_replaces_nothing(storage):
    longer = SWEEP.model_copy(update={"training": {"epochs": 7}})
    for sweep, rate in ((SWEEP, 0.25), (longer, 0.75)):
        for trial in expand(sweep):
            leave(storage, trial, rate)
        sync(default_uri(Storage(storage)), sweep, expand(sweep), Storage(storage))
    assert sorted(mean["test_success_rate"] for mean in means(storage)) == [0.25, 0.75]
    assert "25.0" in artifact(storage, "table.md")
    seeds = SWEEP.model_copy(update={"grid": {"k": [5], "seed": [0]}})
    sync(default_uri(Storage(storage)), seeds, expand(seeds), Storage(storage))
    assert len(means(storage)) == 2, "fewer seeds are no other sweep"


@pytest.mark.slow
def test_lost_times_stop_nothing(storage):
    leave(storage, TRIALS[0])
    os.utime(Storage(storage).trial(TRIALS[0].trial_id).path / "result.json", (0, 0))
    sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage))
    (run,) = (run for run in shown(storage)[1] if run.data.tags.get("idp.kind") == "trial")
    assert 0 < run.info.start_time < run.info.end_time < 60_000


def test_the_thread_outlives_any_outage():
    assert seconds_between(1) < 1.0 and seconds_between(100_000) == seconds_between(20) <= 30.0


@pytest.mark.slow
def test_a_damaged_file_is_not_called_an_outage(storage):
    for trial in TRIALS:
        leave(storage, trial)
    (Storage(storage).trial(TRIALS[0].trial_id).path / "curves.parquet").write_bytes(b"x" * 900)
    (Storage(storage).trial(TRIALS[1].trial_id).path / "result.json").write_text("{")
    told: list[str] = []
    tracker = Tracker(default_uri(Storage(storage)), SWEEP, Storage(storage), told.append)
    for trial in TRIALS:
        tracker.note(trial, "finished")
    assert tracker.close("FINISHED") == 0
    assert len(told) == 1 and "curves.parquet" in told[0] and "MLflow" not in told[0]
    assert means(storage)[0]["trials"] == 2
    told.clear()
    assert sync(default_uri(Storage(storage)), SWEEP, TRIALS, Storage(storage), told.append) == 3 and len(told) == 1


@pytest.mark.slow
def test_fuzzed_notes_are_taken_or_forgotten(storage):
    """The notes beside a sweep only save asking: whatever stands there, nothing is raised and nothing lost."""
    leave(storage, TRIALS[0])
    uri = default_uri(Storage(storage))
    sync(uri, SWEEP, TRIALS, Storage(storage))
    folder, report = storage / "sweeps" / "kept", storage / "sweeps" / "kept" / "report.html"
    make_way(SWEEP, Storage(storage), report.name)
    note = note_path(Storage(storage), "kept", uri)
    notes = {path: path.read_bytes() for path in (note, folder / "variants.json")}
    for number in range(-1, EXAMPLES):
        for path, content in notes.items():
            path.write_bytes(mutated(content, number) if number >= 0 else b"[" * 100_000)
        report.write_text("mine")
        assert page_of(Storage(storage), SWEEP, uri) in ("", address_of("1", None), address_of("1", variant(SWEEP)))
        assert isinstance(unsent(Storage(storage), "kept", uri, {}), list)
        kept = make_way(SWEEP, Storage(storage), report.name)
        left = report if kept is None else kept
        assert left.read_text() == "mine" and left.parent == folder
