"""Exactly one process works on a trial, and only its result counts: with real processes, killed and put to sleep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mutations import EXAMPLES, bounded, mutated
from samples import put_result
from small_trial import small_trial

from orchestrator.cli.main import main
from orchestrator.storage import leases
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import (
    LeaseLost,
    Owner,
    Patience,
    TrialHeld,
    free,
    give_back,
    holder,
    latest_lease,
    silent,
    take,
)
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import trial_id
from orchestrator.trial.train import TrialOptions, run_trial

SPEC = small_trial(epochs=3)


RACER = """
import sys
from pathlib import Path
from orchestrator.storage.leases import Lease, Owner, latest_lease
directory, owner = Path(sys.argv[1]), Owner.here()
for line in sys.stdin:
    held = latest_lease(directory)
    lease = Lease.take(directory, owner, held) if (0 if held is None else held.number) == int(line) else None
    print("lost" if lease is None else lease.number, flush=True)
"""


def test_of_many_processes_one_takes_each_lease(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for number in range(20):
        for racer in racers:
            racer.stdin.write(f"{number}\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline().strip() for racer in racers]
        assert sorted(answers) == [str(number + 1), "lost", "lost", "lost"]
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [".lease-000020"]


def test_a_lease_is_held_until_it_is_given_back(tmp_path):
    lease = take(tmp_path, Owner.here())
    with pytest.raises(TrialHeld, match=f"process {os.getpid()} on"):
        take(tmp_path, Owner.here())
    lease.check()
    lease.release()
    assert free(latest_lease(tmp_path))
    take(tmp_path, Owner.here())
    with pytest.raises(LeaseLost):
        lease.check()
    with pytest.raises(LeaseLost):
        lease.renew()


def test_numbers_that_were_swept_up_are_not_used_again(tmp_path):
    stale = take(tmp_path, Owner.here())
    stale.release()
    for _ in range(3):
        take(tmp_path, Owner.here()).release()
    assert not (tmp_path / ".lease-000002").exists()
    with pytest.raises(LeaseLost):
        stale.renew()
    assert [path.name for path in tmp_path.iterdir()] == [".lease-000004"]


def test_a_run_takes_over_from_its_own_dead_and_from_dead_processes_of_this_machine(tmp_path):
    take(tmp_path, Owner.here("this run"))
    assert not free(latest_lease(tmp_path))
    assert free(latest_lease(tmp_path), "this run")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = Owner.here()
    object.__setattr__(owner, "pid", child.pid)
    from orchestrator.storage.leases import _started

    object.__setattr__(owner, "started", _started(child.pid))
    take(tmp_path, owner, instead_of=1)
    assert not free(latest_lease(tmp_path))
    child.kill()
    child.wait()
    assert free(latest_lease(tmp_path))


class Clock:
    """Time that passes when somebody sleeps, in which `beats` shows signs of life."""

    def __init__(self, beats=None):
        self.now, self.beats = 0.0, beats

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.beats is not None:
            os.utime(self.beats, (self.now, self.now))


def test_an_owner_elsewhere_is_given_up_only_after_its_silence(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    elsewhere(tmp_path)
    patience = Patience(0.2)
    assert not patience.expired(tmp_path, latest_lease(tmp_path))
    clock.sleep(0.3)
    # Its clock may be years off: only that the time changes counts.
    os.utime(tmp_path / ".lease-000001", (5, 5))
    assert not patience.expired(tmp_path, latest_lease(tmp_path))
    clock.sleep(0.1)
    assert not patience.expired(tmp_path, latest_lease(tmp_path))
    clock.sleep(0.2)
    assert patience.expired(tmp_path, latest_lease(tmp_path))


def test_of_two_settings_of_the_expiry_the_longer_counts(tmp_path, monkeypatch):
    patient, hasty, old = (tmp_path / name for name in ("patient", "hasty", "old"))
    for directory, seconds in (patient, 60.0), (hasty, 1.0), (old, 1.0):
        monkeypatch.setattr(leases, "EXPIRY_SECONDS", seconds)
        elsewhere(directory)
    path = old / ".lease-000001"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "expiry_seconds"}))
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 3.0)
    monkeypatch.setattr(leases, "time", Clock())
    waited = {path: leases.time.now for path, _ in silent([patient, hasty, old])}
    assert waited == {hasty: 3.0, old: 3.0, patient: 60.0}


def test_a_lease_that_asks_for_ever_is_waited_for_a_day(tmp_path):
    elsewhere(tmp_path)
    path = tmp_path / ".lease-000001"
    for asked in ("1e300", "Infinity", "9" * 400):
        path.write_text(path.read_text().rpartition(" ")[0] + f" {asked}}}")
        assert latest_lease(tmp_path).expiry_seconds == 86400.0
    for wrong in ("-1", "NaN", "true", '"60"', "null"):
        path.write_text(path.read_text().rpartition(" ")[0] + f" {wrong}}}")
        assert free(latest_lease(tmp_path))


def test_a_lease_shows_signs_of_life_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.1)
    seen = set()
    with elsewhere(tmp_path).beating():
        until = time.monotonic() + 60.0
        while len(seen) < 4:
            assert time.monotonic() < until
            seen.add(latest_lease(tmp_path).touched)
            time.sleep(0.01)


SLEEPER = """
import os, signal
from pathlib import Path
from orchestrator.storage.leases import LeaseLost
from orchestrator.sweep.specs import TrialSpec
from orchestrator.storage.layout import Storage
from orchestrator.trial.train import run_trial
written = []
def sleep(name):
    written.append(name)
    if name == WHERE and written.count(name) == (1 if name == "result.json" else 2):
        print("asleep", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
fsync = os.fsync
def slow(file):
    fsync(file)
    sleep(os.path.basename(os.readlink(f"/proc/self/fd/{file}")).lstrip(".").rpartition(".")[0].rpartition(".")[0])
os.fsync = slow
try:
    run_trial(TrialSpec.model_validate_json(SPEC), Storage(Path(STORAGE)), lambda record: sleep("an epoch"))
except LeaseLost:
    print("lost")
else:
    print("published")
"""


@pytest.mark.parametrize("where", ["an epoch", "curves.parquet", "checkpoint.pt", "result.json"])
def test_a_stale_owner_that_wakes_up_publishes_nothing(storage, idp, where):
    program = SLEEPER.replace("SPEC", repr(SPEC.model_dump_json())).replace("STORAGE", repr(str(storage)))
    program = program.replace("WHERE", repr(where))
    reading, writing = os.pipe()
    sleeper = idp.start(python=program, stdout=writing, stderr=writing)
    os.close(writing)
    said = os.fdopen(reading)
    assert said.readline() == "asleep\n"
    directory = Storage(storage).trial(trial_id(SPEC)).path
    while Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    held, patience = latest_lease(directory), Patience(0.5)
    with pytest.raises(TrialHeld):
        run_trial(SPEC, Storage(storage))
    while not patience.expired(directory, held):
        time.sleep(0.1)
    epochs = []
    options = TrialOptions(instead_of=held.number)
    result = run_trial(SPEC, Storage(storage), lambda record: epochs.append(record["epoch"]), options)
    assert epochs == {"an epoch": [3], "result.json": []}.get(where, [2, 3]) and result.status == "COMPLETED"
    (directory / "evaluations").mkdir()
    (directory / "evaluations" / "test.json").touch()

    def files():
        every = (path for path in directory.rglob("*") if path.is_file() and path.suffix not in (".txt", ".tmp"))
        return {path: path.read_bytes() for path in every}

    before = files()
    os.kill(sleeper.pid, signal.SIGCONT)
    assert sleeper.wait(60) == 0
    with said:
        assert said.read() == "lost\n"
    assert files() == before and not list(directory.glob("*.tmp"))
    assert "another process has taken over" in (directory / "log.txt").read_text()


def test_a_trial_that_is_done_is_not_run_again(storage):
    first = run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    before = (directory / "result.json").stat()
    epochs = []
    assert run_trial(SPEC, Storage(storage), epochs.append) == first
    assert epochs == []
    assert (directory / "result.json").stat().st_mtime_ns == before.st_mtime_ns


def test_a_damaged_result_is_made_again_from_the_checkpoint(storage):
    first = run_trial(SPEC, Storage(storage))
    directory = Storage(storage).trial(trial_id(SPEC)).path
    (directory / "result.json").write_text("{")
    epochs = []
    again = run_trial(SPEC, Storage(storage), epochs.append)
    assert epochs == [] and again.test_spl == first.test_spl
    assert TrialDirectory(directory).read_result() == again
    assert "the result is damaged" in (directory / "log.txt").read_text()


def test_a_failure_is_not_written_over_another_runs_trial(tmp_path):
    from orchestrator.trial.failure import record_failure

    directory = Storage(tmp_path).trial(trial_id(SPEC)).path
    TrialDirectory(directory).write_spec(SPEC)
    lease = take(directory, Owner.here("another run"))
    with pytest.raises(TrialHeld):
        record_failure(TrialDirectory(directory), RuntimeError("its process died"), "this run")
    assert TrialDirectory(directory).read_result() is None
    result = TrialResult(trial_id=trial_id(SPEC), status="COMPLETED")
    lease.renew()
    put_result(directory, result)
    assert TrialDirectory(directory).read_result() == result


@pytest.mark.parametrize(
    "name",
    [
        ".lease-999999", ".lease-9999999", ".lease-0000007", ".lease-7", ".lease-000007 ", ".lease-\u0661",
        ".lease-\u0661\u0662\u0663\u0664\u0665\u0666", ".lease-\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["empty", "folder", "nowhere", "pipe", "device"])
def test_no_odd_name_or_kind_of_file_blocks_a_trial(tmp_path, name, kind):
    path = tmp_path / name
    {
        "empty": path.touch,
        "folder": path.mkdir,
        "nowhere": lambda: path.symlink_to("/nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    assert free(latest_lease(tmp_path))
    lease = take(tmp_path, Owner.here())
    lease.check()
    lease.renew()
    with pytest.raises(TrialHeld):
        take(tmp_path, Owner.here())
    lease.release()
    assert free(latest_lease(tmp_path))


def test_fuzzed_lease_contents_are_an_owners_or_nobodys(tmp_path):
    take(tmp_path, Owner.here("this run"))
    path = tmp_path / ".lease-000001"
    content = path.read_bytes()
    odd = [b"[" * 100_000, b" " * 2**20, b"null", b"5", b"\xff\xfe", b'{"pid": ' + b"9" * 5000 + b"}"]
    for changed in (*odd, *(mutated(content, number) for number in range(EXAMPLES))):
        path.write_bytes(changed)
        with bounded(processor_seconds=1, mebibytes=50):
            held = latest_lease(tmp_path)
            free(held)
        assert holder(held).isprintable()


def test_fuzzed_lease_names_block_nobody(tmp_path):
    for number in range(EXAMPLES):
        folder = tmp_path / str(number)
        folder.mkdir()
        name = mutated(b".lease-000005", number).replace(b"/", b"_").replace(b"\0", b"_")
        if name in (b"", b".", b".."):
            continue
        open(os.path.join(os.fsencode(folder), name), "wb").close()
        take(folder, Owner.here()).check()


def test_a_link_that_was_made_though_its_answer_was_lost_is_ours(tmp_path, monkeypatch):
    link = os.link

    def twice(*words):
        link(*words)
        link(*words)  # as an NFS client repeats it

    monkeypatch.setattr(os, "link", twice)
    lease = take(tmp_path, Owner.here())
    lease.renew()
    lease.check()
    assert lease.number == 2
    monkeypatch.setattr(os, "link", link)
    (tmp_path / ".lease-000003").write_text("{}")  # and one that somebody else made is not
    with pytest.raises(LeaseLost):
        lease.renew()


def elsewhere(directory):
    owner = Owner.here()
    object.__setattr__(owner, "boot", "before the power cut")
    return take(directory, owner)


def test_of_held_trials_those_without_a_sign_of_life_are_told(tmp_path, monkeypatch):
    gone, alive, given = (tmp_path / name for name in ("gone", "alive", "given back"))
    elsewhere(gone)
    elsewhere(given).release()
    elsewhere(alive)
    monkeypatch.setattr(leases, "time", Clock(beats=alive / ".lease-000001"))
    told = list(silent([gone, alive, given, tmp_path / "never"]))
    assert [(path, held.number) for path, held in told] == [(gone, 1)]


def test_a_trial_that_was_held_at_a_power_cut_is_taken_up_by_idp_trial(storage, monkeypatch, capsys):
    monkeypatch.setattr("orchestrator.storage.leases.EXPIRY_SECONDS", 0.3)
    sweep = storage / "two.yaml"
    sweep.write_text(SWEEP)
    assert main(["plan", str(sweep), "--storage", str(storage), "--json"]) == 0
    name = next(iter(json.loads(capsys.readouterr().out)["trial_ids"]))
    directory = Storage(storage).trial(name).path
    elsewhere(directory)
    assert main(["trial", str(sweep), name, "--storage", str(storage)]) == 0
    assert "waiting for a sign of life, 0 s at most" in capsys.readouterr().err
    assert TrialDirectory(directory).read_result().status == "COMPLETED"


def test_a_trial_that_somebody_takes_over_ends_with_one_line(storage, monkeypatch, capsys):
    sweep = storage / "two.yaml"
    sweep.write_text(SWEEP)

    def lost(*_, **__):
        raise LeaseLost("0123: another process has taken this trial over")

    monkeypatch.setattr("orchestrator.trial.train.run_trial", lost)
    main(["plan", str(sweep), "--storage", str(storage), "--json"])
    name = next(iter(json.loads(capsys.readouterr().out)["trial_ids"]))
    assert main(["trial", str(sweep), name, "--storage", str(storage)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "idp: 0123: another process has taken this trial over" in said


SWEEP = """
name: two
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}}
data: {train: 64, valid: 16, test: 16}
tasks: [{map_size: 9}]
grid: {k: [4], seed: [0, 1, 2, 3, 4, 5]}
training: {epochs: 1}
figures: [success]
"""


def test_two_drivers_on_one_storage_run_every_trial_once(tmp_path, storage_with_database, idp):
    sweep, storage = tmp_path / "two.yaml", storage_with_database
    sweep.write_text(SWEEP)
    command = ["run", sweep, "--storage", storage, "--in-process", "--json"]
    with ThreadPoolExecutor(2) as drivers:
        ended = list(drivers.map(lambda _: idp(*command), range(2)))
    assert [driver.returncode for driver in ended] == [0, 0], ended
    tables = [json.loads(driver.stdout)["rows"] for driver in ended]
    assert tables[0] == tables[1] and tables[0][0]["used"] == 6
    logs = [path.read_text() for path in (storage / "trials").glob("*/log.txt")]
    assert [log.count(" started on ") for log in logs] == [1] * 6
    assert [log.count(" COMPLETED") for log in logs] == [1] * 6


def test_a_run_gives_back_what_its_processes_hold_and_nothing_else(tmp_path):
    lease = take(tmp_path, Owner.here("this run"))
    give_back(tmp_path, "another run")
    with pytest.raises(TrialHeld):
        take(tmp_path, Owner.here("another run"))
    give_back(tmp_path, "this run")
    take(tmp_path, Owner.here("another run"))
    with pytest.raises(LeaseLost):  # what the process finds, should it live on
        lease.check()
    give_back(tmp_path / "never taken", "this run")
