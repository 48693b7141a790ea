"""Storages on machines without a shared file system, which share through a bucket: moto's S3 server, by HTTP."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from mutations import EXAMPLES, bounded, mutated
from samples import put_result, sample_run
from werkzeug.serving import WSGIRequestHandler, make_server

from datagen.tasks.registry import DatasetSpec, dataset_id
from orchestrator.cli.main import main
from orchestrator.cluster.datasets import make_datasets, make_here
from orchestrator.cluster.rounds import Terms
from orchestrator.cluster.trials import run_trials
from orchestrator.errors import ResultError
from orchestrator.storage import bucket as buckets
from orchestrator.storage import mirror as mirrors
from orchestrator.storage.bucket import Bucket, BucketError
from orchestrator.storage.code import code_hash, whole_code
from orchestrator.storage.evaluations import EvaluationResult, write_evaluation
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.parcels import (
    packed_dataset,
    packed_trial,
    place_dataset,
    place_trial,
    unpacked,
    unpacked_trial,
)
from orchestrator.sweep.specs import Resources, SweepSpec, expand

TRIALS = expand(
    SweepSpec.model_validate(
        {"name": "s", "planners": {"v": {"core": "vin", "adjoint": "unrolled"}}, "grid": {"seed": [*range(12)]}}
    )
)
NAMES = [trial.trial_id for trial in TRIALS]
SMALL = """
name: mirrored
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 4, q_channels: 2}}
data: {train: 32, valid: 8, test: 8}
tasks: [{map_size: 5}]
grid: {k: [3], seed: SEEDS}
training: {epochs: EPOCHS}
figures: [success]
"""


class Silent(WSGIRequestHandler):
    def log(self, *words):
        pass


@pytest.fixture(scope="module")
def server():
    """Moto's, one request after the other: between its look whether an object is there and its write others come."""
    app, one = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serial(environment, respond):
        with one:
            return app(environment, respond)

    server = make_server("127.0.0.1", 0, serial, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="lab")
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(server):
    return f"s3://lab/{uuid.uuid4().hex}"


def of_machine(address, storage, said=None):
    """Return the mirror of another machine: nobody can see there whether a process of this one lives."""
    mirror = Mirror(Bucket(address), Storage(storage), (said if said is not None else []).append)
    mirror._owner = Owner("run", str(storage), "elsewhere", 1, "1")
    return mirror


def put(storage, trial):
    run, directory = sample_run(trial, epochs=2), Storage(storage).trial(trial.trial_id)
    directory.write_spec(trial.spec)
    directory.note("COMPLETED")
    directory.checkpoint.write_bytes(b"weights")
    put_result(directory.path, run.result)


def wait(come):
    until = time.monotonic() + 20.0
    while not come():
        assert time.monotonic() < until
        time.sleep(0.02)


def fail(error):
    raise error


def _race(address, storage, start, wins):
    mirror = Mirror(Bucket(address), Storage(storage), print)
    start.wait()
    wins.put([name for name in NAMES if mirror.take(name)])
    start.wait()  # who ends has lost what it holds


def test_of_processes_that_race_for_leases_exactly_one_gets_each(address, tmp_path):
    context = multiprocessing.get_context("fork")
    start, wins = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(address, tmp_path / str(n), start, wins)) for n in range(3)]
    for racer in racers:
        racer.start()
    won = [name for _ in racers for name in wins.get(timeout=60)]
    for racer in racers:
        racer.join()
    assert sorted(won) == sorted(NAMES)


def test_a_lease_is_held_given_back_and_lost_by_whoever_is_silent(address, tmp_path, monkeypatch):
    said = []
    one, two = of_machine(address, tmp_path / "one", said), of_machine(address, tmp_path / "two")
    monkeypatch.setattr(mirrors, "LOOK_SECONDS", 0.0)
    assert one.take(NAMES[0]) and one.take(NAMES[0]) and one.take(NAMES[1])
    assert not two.free(NAMES[0]) and not two.take(NAMES[0])
    one._send(NAMES[1])  # which has come to nothing: its lease goes back
    assert two.take(NAMES[1])
    monkeypatch.setattr(mirrors, "EXPIRY_SECONDS", 0.3)
    deadline = time.monotonic() + 20
    one._beat()
    assert not two.take(NAMES[0])  # it has just shown life
    while not two.take(NAMES[0]):
        assert time.monotonic() < deadline
    one._beat()
    assert len(said) == 1 and "another machine has taken it over" in said[0]
    assert not one.take(NAMES[0])


def test_a_lease_in_a_bucket_is_held_for_as_long_as_its_owner_has_set(address, tmp_path, monkeypatch):
    one, two = of_machine(address, tmp_path / "one"), of_machine(address, tmp_path / "two")
    for name, seconds in (NAMES[0], 60.0), (NAMES[1], 0.01):
        one._owner = Owner("run", "one", "elsewhere", 1, "1", seconds)
        assert one.take(name)
    monkeypatch.setattr(mirrors, "EXPIRY_SECONDS", 0.3)
    assert not two.free(NAMES[0])
    wait(lambda: two.free(NAMES[1]))
    assert not two.free(NAMES[0])


def test_a_run_that_was_killed_here_is_followed_at_once(address, tmp_path):
    dead = of_machine(address, tmp_path)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    here = Owner.here()
    dead._owner = Owner("run", here.host, here.boot, int(gone.stdout), "1")
    assert dead.take(NAMES[0])
    assert of_machine(address, tmp_path).take(NAMES[0])


def test_a_trial_that_has_ended_comes_whole_and_is_not_run_again(address, tmp_path):
    put(tmp_path / "one", TRIALS[0])
    one, two = of_machine(address, tmp_path / "one"), of_machine(address, tmp_path / "two")
    assert two.free(NAMES[0])  # a look before it had ended
    assert one.give(NAMES) == 1 and one.give(NAMES) == 0
    assert not two.take(NAMES[0]), "it has ended meanwhile"
    with two.working():
        pass
    assert not Bucket(address).entries("leases")
    for file in Storage(tmp_path / "one").trial(NAMES[0]).path.iterdir():
        assert (tmp_path / "two" / "trials" / NAMES[0] / file.name).read_bytes() == file.read_bytes()


def test_what_other_code_made_is_run_again_and_replaced(address, tmp_path):
    put(tmp_path / "old", TRIALS[0])
    old = Storage(tmp_path / "old").trial(NAMES[0])
    put_result(old.path, sample_run(TRIALS[0], code="0" * 12).result)
    put(tmp_path / "new", TRIALS[0])
    assert of_machine(address, tmp_path / "old").give(NAMES) == 1
    new = of_machine(address, tmp_path / "new")
    assert new.take(NAMES[0])
    assert new._send(NAMES[0])
    assert of_machine(address, tmp_path / "third").fetch(NAMES) == [NAMES[0]]


def test_a_bucket_that_is_away_starts_nothing_and_what_has_ended_is_kept(address, tmp_path, monkeypatch):
    said = []
    put(tmp_path, TRIALS[0])
    mirror = of_machine(address, tmp_path, said)
    monkeypatch.setattr(mirrors, "LOOK_SECONDS", 0.2)
    assert mirror.take(NAMES[0])
    monkeypatch.setattr(mirror._bucket, "_name", "nobodys")
    with mirror.working():
        time.sleep(0.3)
        assert not mirror.free(NAMES[1]) and not mirror.take(NAMES[1])
        mirror.ended(NAMES[0])
    assert "NoSuchBucket" in said[0] and f"{NAMES[0][:8]} is not in {address} yet" in said[-1]
    monkeypatch.undo()
    assert of_machine(address, tmp_path).give(NAMES) == 1


def test_a_trial_that_can_not_be_read_is_named_and_keeps_no_other_from_the_bucket(address, tmp_path, monkeypatch):
    said, errors = [], {NAMES[0]: [OSError(5, "Input/output error")] * 2, NAMES[1]: [MemoryError()]}

    def read(trial):
        if errors.get(trial.name):
            raise errors[trial.name].pop()
        return packed_trial(trial)

    monkeypatch.setattr(mirrors, "packed_trial", read)
    mirror = of_machine(address, tmp_path, said)
    for trial in TRIALS[:3]:
        assert mirror.take(trial.trial_id)
        put(tmp_path, trial)
    with mirror.working():
        for name in NAMES[:3]:
            mirror.ended(name)
        wait(lambda: mirror.trials() == [NAMES[2]])
    assert mirror.trials() == sorted(NAMES[1:3]), "what can be read again later is sent at the end"
    first = f"{address}/trials/{NAMES[0]}.tar: left alone: OSError: [Errno 5] Input/output error"
    assert said == [first, f"{address}/trials/{NAMES[1]}.tar: left alone: MemoryError: MemoryError", first]


def test_a_sign_of_life_that_fails_is_told_and_is_not_the_last(address, tmp_path, monkeypatch):
    said = []
    mirror = of_machine(address, tmp_path, said)
    assert mirror.take(NAMES[0])
    before = Bucket(address).entries("leases")
    monkeypatch.setattr(mirrors, "EXPIRY_SECONDS", 0.3)
    life, failures = mirror._life, [RuntimeError("can't start new thread")]
    monkeypatch.setattr(mirror, "_life", lambda: life() if not failures else fail(failures.pop()))
    with mirror.working():
        wait(lambda: Bucket(address).entries("leases") != before)
    assert said == [f"{address}/leases/{NAMES[0]}: left alone: RuntimeError: can't start new thread"]


@pytest.mark.parametrize("wrong", ["s3:/lab", "s3://", "s3://LAB/x", "gs://lab/x", "s3://lab/x\n"])
def test_other_addresses_are_refused(wrong):
    with pytest.raises(BucketError, match="expected s3://BUCKET/PREFIX"):
        Bucket(wrong)


def test_a_store_that_keeps_to_no_condition_is_refused(monkeypatch):
    class Careless(BaseHTTPRequestHandler):
        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_DELETE(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as careless:
        threading.Thread(target=careless.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{careless.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        try:
            with pytest.raises(BucketError, match="two machines would run the same trial"):
                Bucket("s3://lab/x")
        finally:
            careless.shutdown()


def test_a_storage_in_a_bucket_is_refused_with_what_to_do_instead(capsys):
    assert main(["plan", "quickstart", "--storage", "s3://lab/x"]) == 2
    said = capsys.readouterr().err
    assert "files that grow" in said and "--mirror s3://BUCKET/PREFIX" in said


def test_fuzzed_parcels_are_taken_whole_or_refused(tmp_path):
    put(tmp_path / "one", TRIALS[0])
    one = Storage(tmp_path / "one").trial(NAMES[0])
    body = packed_trial(one)
    refused = 0
    for number in range(EXAMPLES):
        damaged = mutated(body, number)
        with bounded(processor_seconds=2, mebibytes=50):
            try:
                with unpacked_trial(NAMES[0], damaged) as (arrived, result):
                    assert result == one.read_result() and arrived.read_spec() == one.read_spec()
                    place_trial(arrived, result, Storage(tmp_path / str(number)).trial(NAMES[0]), Owner.here())
            except ResultError as error:
                assert "\n" not in str(error)
                refused += 1
            with pytest.raises(ResultError):
                place_dataset(damaged, tmp_path / "set")
    assert refused > EXAMPLES / 3 and not (tmp_path / "set").exists()


def extended(records, times=1):
    """Return a tar file of one member, before which such records of its further header stand."""
    about = tarfile.TarInfo()
    about.type, about.size = tarfile.XHDTYPE, len(records)
    before = about.tobuf() + records + bytes(-len(records) % tarfile.BLOCKSIZE)
    return before * times + tarfile.TarInfo("spec.json").tobuf() + bytes(2 * tarfile.BLOCKSIZE)


def sized(size):
    about = tarfile.TarInfo("spec.json")
    about.size = size
    return about.tobuf(tarfile.GNU_FORMAT) + bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize(
    "body",
    [
        extended(b"1" * 200_000 + b" hdrcharset=\n"),  # tarfile's own reader looks at its digits for hours
        extended(b"9 path=a\n", times=5000),
        sized(2**70),
        sized(-1024),
    ],
    ids=["digits without end", "headers upon headers", "more than there can be", "less than nothing"],
)
def test_a_tar_file_that_is_made_to_hurt_is_refused_at_once(body):
    with bounded(processor_seconds=2, mebibytes=50), pytest.raises(ResultError):
        unpacked(body)


def test_a_pipe_among_the_tests_of_a_trial_is_named_and_not_waited_for(address, tmp_path, capsys):
    storage = Storage(tmp_path)
    put(tmp_path, TRIALS[0])
    pipe = storage.trial(NAMES[0]).path / "evaluations" / "pipe.json"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    with bounded(processor_seconds=60, mebibytes=500):
        assert main(["mirror", address, "--storage", str(tmp_path)]) == 1
    assert "pipe.json: expected a file" in capsys.readouterr().err


def test_machines_that_run_trials_at_once_run_each_once_and_end_with_all(address, tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "LOOK_SECONDS", 0.1)
    ran, resources = [], Resources()
    code_hash(), whole_code()  # before there are threads, as in a run: Python 3.11 may fail to parse in two at once

    def run_all(storage, mirror):
        def fit(together, constants):
            while (name := together.next()) is not None:
                ran.append(name)
                put(storage, TRIALS[NAMES.index(name)])
                together.ended(name, "no result")

        with mirror.working():
            run_trials(TRIALS, Storage(storage), mock.Mock(), Terms(resources, tmp_path, mirror=mirror), fit)

    places = [tmp_path / "one", tmp_path / "two"]
    machines = [threading.Thread(target=run_all, args=(place, of_machine(address, place))) for place in places]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert sorted(ran) == sorted(NAMES)
    assert Storage(places[0]).results() == Storage(places[1]).results() and len(Storage(places[0]).results()) == 12
    assert not Bucket(address).entries("leases")


def test_a_storage_is_restored_by_the_verb(address, tmp_path, capsys):
    put(tmp_path / "one", TRIALS[0])
    assert main(["mirror", address, "--send", "--storage", str(tmp_path / "one")]) == 0
    assert main(["mirror", address, "--storage", str(tmp_path / "restored")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("sent: 1 trial, no dataset") and "taken: 1 trial, no dataset" in said
    assert Storage(tmp_path / "restored").results() == Storage(tmp_path / "one").results()


def test_one_way_is_one_way_for_tests_too(address, tmp_path, capsys):
    storages = [Storage(tmp_path / name) for name in ("one", "two")]
    for storage, k in zip(storages, (3, 4), strict=True):
        put(storage.path, TRIALS[0])
        found = EvaluationResult(
            trial_id=NAMES[0], dataset_id="d", split="test", map_size=5, maps=8, k=k, success_rate=0.5, optimality=0.5,
            spl=0.5, accuracy=0.5, seconds=1.0,
        )  # fmt: skip
        write_evaluation(storage.trial(NAMES[0]), found)
    sent = {f"{NAMES[0]}/d-test-k3.json"}
    for storage, way, told in (
        (storages[0], "--send", "sent: 1 trial, no dataset, 1 test on"),
        (storages[1], "--take", "taken: no trial, no dataset, 1 test on"),
        (storages[0], "--take", "taken: no trial, no dataset, no test on"),
    ):
        assert main(["mirror", address, way, "--storage", str(storage)]) == 0
        assert told in capsys.readouterr().out and Bucket(address).entries("evaluations").keys() == sent
    assert main(["mirror", address, "--send", "--storage", str(storages[1])]) == 0
    assert [len(storage.trial(NAMES[0]).evaluations) for storage in storages] == [1, 2]


def test_what_is_more_than_one_write_takes_is_named_and_nothing_else_waits(address, tmp_path, monkeypatch, capsys):
    put(tmp_path / "one", TRIALS[0])
    storage = Storage(tmp_path / "one")
    small, large = (DatasetSpec(map_size=5, train=count, valid=8, test=8) for count in (8, 800))
    make_datasets([small, large], storage.datasets, make=make_here)
    sizes = [len(packed_dataset(storage.datasets / dataset_id(spec))) for spec in (small, large)]
    most = max(sizes[0], len(packed_trial(storage.trial(NAMES[0]))))
    assert most < sizes[1]
    monkeypatch.setattr(buckets, "MOST_BYTES", most)
    said, key = [], f"datasets/{dataset_id(large)}.tar"
    mirror = of_machine(address, storage, said)
    mirror.exchange_datasets([small, large], lambda: None)
    assert mirror.datasets() == [dataset_id(small)] and mirror.free(NAMES[1]), "the bucket is not away"
    assert len(said) == 1 and f"{address}/{key}: left alone: " in said[0] and f"at most {most:,}" in said[0]

    assert main(["mirror", address, "--storage", str(storage)]) == 1
    answer = capsys.readouterr()
    assert "sent: 1 trial, no dataset" in answer.out and answer.err == f"idp: {said[0]}\n"
    # Somebody else has put one there: it is not taken, and the rest is.
    boto3.client("s3").put_object(Bucket="lab", Key=f"{address[9:]}/{key}", Body=bytes(most + 1))
    assert main(["mirror", address, "--storage", str(tmp_path / "two")]) == 1
    answer = capsys.readouterr()
    assert "taken: 1 trial, 1 dataset" in answer.out
    assert f"{key}: left alone" in answer.err and answer.err.count("\n") == 1


def test_no_name_in_a_bucket_leads_out_of_the_storage_or_to_what_it_is_not_of(address, tmp_path, capsys):
    put(tmp_path / "one", TRIALS[0])
    one, two = Storage(tmp_path / "one"), Storage(tmp_path / "two")
    small = DatasetSpec(map_size=5, train=8, valid=8, test=8)
    make_datasets([small], one.datasets, make=make_here)
    body, name = packed_dataset(one.datasets / dataset_id(small)), dataset_id(small)
    keys = [f"{tmp_path}/victim", f"{tmp_path}/{name}", f"../../{name}", f"inside/{name}", "..", "victim"]
    for key in keys:
        boto3.client("s3").put_object(Bucket="lab", Key=f"{address[9:]}/datasets/{key}.tar", Body=body)
    assert main(["mirror", address, "--storage", str(two)]) == 0
    assert "taken: no trial, no dataset" in capsys.readouterr().out and not two.datasets.exists()
    with pytest.raises(ResultError, match=f"dataset_id: expected 'victim', got '{name}'"):
        place_dataset(body, tmp_path / "victim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    tests = [
        EvaluationResult(
            trial_id=NAMES[0], dataset_id=name, split="test", map_size=5, maps=8, k=k, success_rate=0.5, optimality=0.5,
            spl=0.5, accuracy=0.5, seconds=1.0,
        )
        for k in (3, 4)
    ]  # fmt: skip
    trial = one.trial(NAMES[0])
    for test in tests:
        write_evaluation(trial, test)
    stands, other = (trial.evaluation(name, "test", k) for k in (3, 4))
    before, key = stands.read_bytes(), f"evaluations/{NAMES[0]}/{other.name}"
    other.unlink()
    boto3.client("s3").put_object(Bucket="lab", Key=f"{address[9:]}/{key}", Body=before.replace(b"\n", b"\n "))
    assert main(["mirror", address, "--take", "--storage", str(one)]) == 1
    assert capsys.readouterr().err == f"idp: {address}/{key}: left alone: holds another evaluation\n"
    assert stands.read_bytes() == before and not other.exists()


@pytest.mark.skipif(not os.environ.get("IDP_MIRROR_TEST"), reason="trains: make mirror-test")
def test_a_second_machine_runs_nothing_and_has_everything(address, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SMALL.replace("SEEDS", "[0, 1]").replace("EPOCHS", "1"))
    for machine in ("one", "two"):
        command = ["run", str(sweep), "--in-process", "--tracking-uri", "none", "--mirror", address, "--json"]
        assert main([*command, "--storage", str(tmp_path / machine)]) == 0
        answer = capsys.readouterr()
        assert ("2 trials to run" in answer.err) == (machine == "one"), answer.err
        assert len(json.loads(answer.out)["rows"]) == 1
    assert logs(tmp_path / "one") == logs(tmp_path / "two")
    assert main(["mirror", address, "--storage", str(tmp_path / "restored")]) == 0
    assert "taken: 2 trials, 1 dataset" in capsys.readouterr().out
    assert logs(tmp_path / "restored") == logs(tmp_path / "one")
    assert {p.name for p in (tmp_path / "restored" / "datasets").glob("*/*")} == {
        p.name for p in (tmp_path / "one" / "datasets").glob("*/*.*")
    }


def logs(storage):
    return {path.parent.name: path.read_text() for path in (Path(storage) / "trials").glob("*/log.txt")}


@pytest.mark.skipif(not os.environ.get("IDP_MIRROR_TEST"), reason="a minute, with Ray: make mirror-test")
def test_machines_that_run_one_sweep_run_each_trial_once_and_survive_a_kill(address, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SMALL.replace("SEEDS", str([*range(16)])).replace("EPOCHS", "30"))
    environment = {**os.environ, "IDP_LEASE_SECONDS": "4", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "orchestrator", "run", str(sweep), "--tracking-uri", "none", "--mirror", address]

    def start(machine):
        words = [*command, "--storage", str(tmp_path / machine), *(["--in-process"] if machine != "one" else [])]
        with (tmp_path / f"{machine}.err").open("w") as errors:
            return subprocess.Popen(words, stdout=errors, stderr=errors, env=environment, start_new_session=True)

    running = {machine: start(machine) for machine in ("one", "two", "three")}
    while " epoch " not in (tmp_path / "three.err").read_text():
        assert running["three"].poll() is None, (tmp_path / "three.err").read_text()
        time.sleep(0.1)
    os.killpg(running["three"].pid, signal.SIGKILL)
    running["three"].wait()
    for machine in ("one", "two"):
        assert running[machine].wait(600) == 0, (tmp_path / f"{machine}.err").read_text()
    found = logs(tmp_path / "one")
    assert len(found) == 16 and found == logs(tmp_path / "two")
    for name, log in found.items():
        assert log.count(" COMPLETED") == 1, (name, log)
    assert not Bucket(address).entries("leases").keys() - set(found)
