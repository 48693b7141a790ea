"""What the driver makes of what Tune tells it; real runs are in test_campaign."""

from __future__ import annotations

import faulthandler
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from samples import put_result

from orchestrator.cluster.ray_cluster import ClusterError
from orchestrator.cluster.resources import distinct_requests
from orchestrator.cluster.rounds import MOST_DEATHS, Round, Terms
from orchestrator.cluster.tuning import Relay, Turns, _asked, _Stopped
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import StorageFull, TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import PlannedTrial, Resources, TrialSpec, trial_id
from orchestrator.trial.failure import stalled
from orchestrator.trial.watchdog import LOADING_SECONDS, watched

SPEC = TrialSpec()
TRIAL = PlannedTrial(trial_id(SPEC), SPEC, {})


class Watcher:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def tick(self):
        pass

    def started(self, trial):
        self.told.append(("started", ""))

    def finished(self, trial, result):
        self.told.append((result.status, result.reason))

    def left(self, trial):
        self.told.append(("left", ""))

    def died(self, trial, deaths, why):
        self.told.append(("died", why))


def tunes_trial(**more):
    part = {"metric_analysis": {}, "metric_n_steps": {}, "run_metadata": SimpleNamespace(last_result={})}
    config = {"trial_id": TRIAL.trial_id}
    return SimpleNamespace(config=config, get_error=lambda: "killed", num_failures=1, **part, **more)


def relay_over(storage, result, retime=False):
    directory = Storage(storage).trial(TRIAL.trial_id).path
    if result is not None:
        put_result(directory, result)
    watcher, trial = Watcher(), Storage(storage).trial(TRIAL.trial_id)
    before, terms = {trial.name: trial.result_version()}, Terms(Resources(), Path(storage, "scratch"), retime=retime)
    return Relay(Round([TRIAL], Storage(storage), watcher, before, terms, "this run")), watcher


def done(code, exclusive=False, status="COMPLETED"):
    return TrialResult(trial_id=TRIAL.trial_id, status=status, provenance=Provenance(code=code, exclusive=exclusive))


def test_a_result_that_another_run_has_finished_meanwhile_is_taken(tmp_path):
    relay, watcher = relay_over(tmp_path, done(code_hash()))
    relay.on_trial_complete(0, [], tunes_trial())
    assert watcher.told == [("COMPLETED", "")] and relay.together.done == {TRIAL.trial_id}


def test_a_trial_that_another_run_works_on_or_has_finished_is_not_shown_as_running_here(tmp_path):
    relay, watcher = relay_over(tmp_path, None)
    directory = Storage(tmp_path).trial(TRIAL.trial_id)
    lease = directory.take(Owner.here("another run"))
    relay.on_trial_start(0, [], tunes_trial())
    assert watcher.told == []
    relay.together._expired = {TRIAL.trial_id: lease.number}
    relay.on_trial_start(0, [], tunes_trial())
    assert watcher.told == [("started", "")], "that one gives no sign of life: it is taken over"
    lease.release()
    put_result(directory.path, done(code_hash()))
    relay.on_trial_start(0, [], tunes_trial())
    assert watcher.told == [("started", "")]


@pytest.mark.parametrize(("code", "retime"), [("other code", False), (None, True)])
@pytest.mark.parametrize("event", ["on_trial_complete", "on_trial_error"])
def test_failed_is_never_written_over_a_finished_result(tmp_path, code, retime, event):
    before = done(code or code_hash())
    relay, watcher = relay_over(tmp_path, before, retime)
    getattr(relay, event)(0, [], tunes_trial())
    ((status, reason),) = watcher.told
    assert status == "FAILED" and reason.endswith("; the result of before stays")
    assert Storage(tmp_path).trial(TRIAL.trial_id).read_result() == before


@pytest.mark.parametrize("before", [None, done(code_hash(), status="FAILED"), "damaged"])
def test_a_trial_that_left_nothing_is_failed(tmp_path, before):
    directory = Storage(tmp_path).trial(TRIAL.trial_id).path
    if before == "damaged":
        directory.mkdir(parents=True)
        (directory / "result.json").write_text("{")
        before = None
    relay, watcher = relay_over(tmp_path, before)
    relay.on_trial_error(0, [], tunes_trial())
    result = TrialDirectory(directory).read_result()
    assert (result.status, result.reason) == ("FAILED", "TrialDied: its process died 3 times in a row: killed")
    assert watcher.told == [(result.status, result.reason)]


def test_the_reason_of_a_death_is_found_where_tune_has_left_it(tmp_path):
    relay, watcher = relay_over(tmp_path, None)
    (tmp_path / "error.txt").write_text("Failure # 3\nActorDiedError: no memory\n\n")
    trial = tunes_trial(error_file=str(tmp_path / "error.txt"))
    trial.get_error = lambda: None
    relay.on_trial_error(0, [], trial)
    assert watcher.told == [("FAILED", "TrialDied: its process died 3 times in a row: ActorDiedError: no memory")]


def test_a_stall_of_the_latest_process_is_the_reason(tmp_path):
    relay, watcher = relay_over(tmp_path, None)
    directory = Storage(tmp_path).trial(TRIAL.trial_id).path
    directory.mkdir(parents=True)
    (directory / "log.txt").write_text("T started on here\nTimeout (0:30:00)!\nThread 1\nT started on here\n")
    assert stalled(TrialDirectory(directory)) == ""
    relay.on_trial_recover(0, [], tunes_trial())
    with (directory / "log.txt").open("a") as log:
        log.write("Timeout (1:00:00)!\nThread 1\n")
    relay.on_trial_recover(0, [], tunes_trial())
    assert watcher.told == [("died", ""), ("died", "no progress for 1:00:00 h (log.txt says where it stood)")]


@pytest.mark.parametrize(
    ("report", "kind", "words"),
    [
        ({"full": "no room"}, StorageFull, "no room"),
        ({"other_code": "there (0123)"}, ClusterError, "there (0123)"),
        ({"no_gpu": "there lends its trials a GPU, but"}, ClusterError, "there lends its trials a GPU, but; mend"),
    ],
)
def test_what_ends_a_run_records_nothing(tmp_path, report, kind, words):
    relay, watcher = relay_over(tmp_path, None)
    relay.on_trial_result(0, [], tunes_trial(), report)
    relay.on_trial_complete(0, [], tunes_trial())
    with pytest.raises(_Stopped):
        relay.on_step_end(0, [])
    assert isinstance(relay.together.stop, kind) and words in str(relay.together.stop)
    assert watcher.told == [] and Storage(tmp_path).trial(TRIAL.trial_id).read_result() is None


def test_a_process_s_deaths_count_anew_from_each_epoch_on(tmp_path):
    relay, _ = relay_over(tmp_path, None)
    relay.together.watcher.epoch = lambda trial, record: None
    trial = Trial("any", stub=True, config={"trial_id": TRIAL.trial_id}, max_failures=MOST_DEATHS)

    def recovers():
        trial.run_metadata.num_failures += 1
        return trial.should_recover()

    for epoch in range(1, 4):
        assert all(recovers() for _ in range(MOST_DEATHS)), epoch
        relay.on_trial_result(0, [], trial, {"epoch": epoch})
    assert all(recovers() for _ in range(MOST_DEATHS))
    relay.on_trial_result(0, [], trial, {"epoch": 3})  # done again, since its checkpoint was lost
    assert not recovers()


def test_each_trial_asks_for_what_it_can_use():
    machines = [{"CPU": 16.0, "GPU": 8.0}] * 5
    specs = [
        TrialSpec.model_validate({"planner": planner}) for planner in ({"solver": "gauss_seidel"}, {"core": "vin"})
    ]
    trials = [PlannedTrial(trial_id(spec), spec, {}) for spec in specs]
    together = Round(trials, Storage("."), Watcher(), {}, Terms(Resources(), Path("scratch")), "this run")
    turns = Turns(together, machines)
    suggested = [turns.suggest(str(number)) for number in range(2)]
    assert [each["trial_id"] for each in suggested] == [trial.trial_id for trial in trials]
    assert [_asked(each).required_resources for each in suggested] == [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert distinct_requests(Resources(), specs, machines) == [{"cpu": 1.0, "gpu": 1.0}, {"cpu": 1.0}]
    assert distinct_requests(Resources(gpus=0.5), specs, machines) == [{"cpu": 1.0, "gpu": 0.5}]


DEAD_FILE_SYSTEM = """
import os, sys, time
from pathlib import Path
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.trial import watchdog

folder = Path(sys.argv[1])
os.mkfifo(folder / "log.txt")
pipe = os.open(folder / "log.txt", os.O_RDWR | os.O_NONBLOCK)
while True:
    try:
        os.write(pipe, bytes(1024))
    except BlockingIOError:
        break
watchdog.WRITING_SECONDS = watchdog.LOADING_SECONDS = 0.2
watchdog.appending = lambda path: path.open("a")  # a pipe that nobody reads stands for a server that is dead
with watchdog.watched(TrialDirectory(folder), 0.2) as dog:
    dog.advance()
    while True:
        time.sleep(1)
"""


def test_a_process_whose_file_system_takes_no_word_is_ended_all_the_same(tmp_path):
    done = subprocess.run([sys.executable, "-c", DEAD_FILE_SYSTEM, str(tmp_path)], timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGALRM, done.stderr


def test_the_clock_of_a_stall_allows_for_loading_and_compiling(tmp_path, monkeypatch):
    clock = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: clock.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: clock.append(None))
    with watched(TrialDirectory(tmp_path), 5.0) as watchdog:
        assert clock == [LOADING_SECONDS]
        watchdog.advance()  # in a process that has run another trial, a moment after
        assert clock[1:] == [5.0]
        watchdog.on_start(None)
        watchdog.on_start(None)
        watchdog.advance()
        watchdog.on_end(None)
        assert clock[2:] == [LOADING_SECONDS, LOADING_SECONDS]
        watchdog.on_end(None)
        assert clock[4:] == [5.0]
        for _ in range(1000):
            watchdog.advance()
        assert len(clock) < 20 and watchdog.progress == 1002
    assert clock[-1] is None
    del clock[:]
    with watched(TrialDirectory(tmp_path), None) as watchdog:
        watchdog.advance()
    assert clock == []
