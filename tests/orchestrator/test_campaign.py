"""Real runs: Ray, Tune and MLflow as a user has them, in processes of their own."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from chaos_faults import of_kind
from cluster import ROOT

from datagen.storage import dataset as parquet
from datagen.tasks.registry import dataset_id
from orchestrator.cli.main import main
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import latest_lease
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import expand

SWEEP = """
name: tiny
planners:
  vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}
  id-vin: {core: vin, adjoint: implicit, hidden_channels: 8, q_channels: 4}
data: {train: 64, valid: 16, test: 16}
tasks: [{map_size: 9}]
grid: {k: [4], seed: [0, 1]}
training: {epochs: 1, batch_size: 16}
figures: [success]
next: sweeps/table1.yaml
"""
STUCK_TOO = (
    SWEEP.replace("data:", "  stuck: {core: stuck, adjoint: unrolled, grid: {seed: [0]}}\ndata:")
    + """
plugins: [stuck_planner]
resources: {stall_seconds: 2}
"""
)
CORES = """
from planners.specs import Entry

CORES = {"stuck": Entry("stuck_planner.core:Stuck")}
"""
STUCK = '''
import ctypes
import os

import torch
from torch import nn

from planners.cores import Injected


class Stuck(nn.Module):
    """Waits for ever in its fourth batch, where STUCK is set, and no thread of Python runs meanwhile."""

    def __init__(self, options, *, wrap, actions=4, in_channels=2):
        super().__init__()
        self.calls = 0
        self.reward = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.head = nn.Conv2d(4, actions, 1)

    def encode(self, x):
        self.calls += 1
        if self.calls == 4 and "STUCK" in os.environ:
            ctypes.PyDLL(None).sleep(10_000)
        return Injected((self.reward(x),))

    def initial_value(self, r):
        return torch.zeros_like(r.per_sample[0][:, :1])

    def step(self, v, r):
        return (r.per_sample[0] + 0.5 * v).amax(1, keepdim=True) * 0.5

    def policy(self, v, r):
        return self.head(r.per_sample[0] + v)
'''
FOLDER = {
    "planners.py": "x = 1\n",  # a user's own modules, of our names and of Python's
    "statistics.py": "raise RuntimeError('hidden')\n",
    "orchestrator/__init__.py": "raise RuntimeError('another checkout')\n",
    "sweeps/table1.yaml": "name: table1\nplanners: {vin: {core: vin}}\n",
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder of a plug-in whose planner gets stuck: of its own, since what has a plug-in goes on Python's path."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "stuck_planner").mkdir()
    (folder / "stuck_planner" / "__init__.py").write_text(CORES)
    (folder / "stuck_planner" / "core.py").write_text(STUCK)
    return folder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, database, plugin):
    """A sweep that was run once.

    A process that made its data was killed, one of its trials can't write its log, and one makes no progress.
    """
    folder = tmp_path_factory.mktemp('it\'s a "campaign"')
    for name, text in FOLDER.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    path, storage = folder / "tiny.yaml", folder / "storage"
    path.write_text(STUCK_TOO)
    load_plugins(["stuck_planner"], beside=[plugin])
    trials = expand(load_sweep(path))
    broken = trials[-2]
    # A folder where the log should be: an error outside anything that the trial itself foresees.
    (Storage(storage).trial(broken.trial_id).path / "log.txt").mkdir(parents=True)
    (storage / "mlflow.db").write_bytes(database)
    # As the installed program has it: the current folder is not on its path.
    command = [sys.executable, "-P", "-m", "orchestrator", "run", str(path), "--storage", str(storage)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{plugin}", "OMP_NUM_THREADS": "1", "STUCK": "1"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **piped) as process:

        def kill_the_writer():
            while process.poll() is None:
                if writers := of_kind(process.pid, b"ShardWriter"):  # it reads libraries for a second before it writes
                    return os.kill(writers[0], signal.SIGKILL)
                time.sleep(0.05)

        killer = threading.Thread(target=kill_the_writer)
        killer.start()
        try:
            out, err = process.communicate(timeout=280)
        finally:
            process.kill()
            killer.join()
    return path, storage, trials, broken, subprocess.CompletedProcess(command, process.returncode, out, err)


def test_one_broken_trial_is_failed_with_its_traceback_and_the_rest_go_on(campaign):
    _, storage, trials, broken, done = campaign
    others = trials[:-1]  # than the one that is stuck
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"idp: {broken.trial_id} FAILED: IsADirectoryError" in done.stderr
    for trial in others:
        result = Storage(storage).trial(trial.trial_id).read_result()
        assert result is not None
        assert result.status == ("FAILED" if trial is broken else "COMPLETED"), result.reason
        assert result.provenance.code == code_hash(), "whatever the current folder holds"
    failed = Storage(storage).trial(broken.trial_id).read_result()
    assert failed is not None and "Traceback" in failed.traceback


def test_a_trial_that_makes_no_progress_is_taken_up_again_and_failed_in_the_end(campaign):
    _, storage, trials, _, done = campaign
    assert "its process died (1): no progress for 0:00:02 h" in done.stderr
    stuck = Storage(storage).trial(trials[-1].trial_id)
    result = stuck.read_result()
    assert result is not None and result.status == "FAILED"
    assert result.reason.startswith("TrialDied: its process died 3 times in a row: no progress for 0:00:02 h")
    log = stuck.log.read_text()
    assert log.count("Timeout (0:00:02)!") == 3
    stood = re.findall(r'File "(.*stuck_planner/core\.py)"', log)
    assert len(stood) == 3 and all("py_modules_files" in path for path in stood), (
        "workers have the copy that was shipped"
    )


def test_the_run_ends_with_the_table_and_what_comes_next(campaign):
    _, storage, _, _, done = campaign
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if "1/2" in line or "2/2" in line][:2] == ["vin", "id-vin"]
    assert "1 failed" in done.stdout
    assert any(
        line.startswith("MLflow page:") and str(storage / "mlflow.db") in line.replace("'\"'\"'", "'") for line in lines
    )
    assert any("open http://127.0.0.1:5000/#/experiments/1/runs" in line for line in lines)
    assert lines[-1].startswith("next sweep:") and "idp run sweeps/table1.yaml" in lines[-1]


def test_progress_is_plain_lines_without_noise(campaign):
    _, _, trials, _, done = campaign
    for line in done.stderr.splitlines():
        known = (
            "5 trials to run, expected time: unknown; disk: about ",
            "starting Ray",
            trials[0].spec.data.task,
            "idp: ",
            "5 trials in",
        )
        still = re.match(r"(\d+ (h|min|s) ?)+: ", line)  # said where a busy machine takes long
        assert still or line.startswith(known) or line.split()[0] in {trial.trial_id[:8] for trial in trials}, line
    assert "epoch 1/1" in done.stderr


def test_the_shard_of_a_killed_worker_is_made_again(campaign, tmp_path, capsys):
    path, storage, trials, _, done = campaign
    assert "died; another makes the shard" in done.stderr
    spec = trials[0].spec.data
    directory = storage / "datasets" / dataset_id(spec)
    assert parquet.is_complete(spec, storage / "datasets")
    for shard in parquet.shards(spec):
        parquet.write_shard(spec, shard, tmp_path / "again")
        assert (tmp_path / "again" / directory.name / shard.name).read_bytes() == (directory / shard.name).read_bytes()
    assert main(["data", str(path), "--storage", str(storage)]) == 0
    assert capsys.readouterr().out == f"{directory}\n"


def test_mlflow_holds_parent_trials_and_means(campaign):
    _, storage, trials, broken, _ = campaign
    with sqlite3.connect(storage / "mlflow.db") as connection:
        status = dict(
            connection.execute(
                "select t.value, r.status from runs r join tags t using (run_uuid) "
                "where t.key = 'idp.key' and r.lifecycle_stage = 'active'"
            )
        )
    assert status["sweep"] == "FAILED"
    for trial in trials:
        assert status[f"trial:{trial.trial_id}"] == ("FAILED" if trial in (broken, trials[-1]) else "FINISHED")
    assert sum(key.startswith("mean:") for key in status) == 2


def test_what_is_done_is_not_done_again_and_what_failed_is(campaign, idp, plugin):
    path, storage, trials, broken, _ = campaign
    failed = (broken, trials[-1])
    done = [Storage(storage).trial(trial.trial_id).path / "result.json" for trial in trials if trial not in failed]
    before = [path.stat().st_mtime_ns for path in done]
    (Storage(storage).trial(broken.trial_id).path / "log.txt").rmdir()
    report = storage / "sweeps" / "tiny" / "report.html"
    report.unlink()
    report.mkdir()  # a report that can't be written costs nothing but itself
    where = {"PYTHONPATH": str(plugin)}  # and no STUCK: it is no longer
    again = idp("run", path, "--storage", storage, "--in-process", env=where)
    assert again.returncode == 0, again.stderr
    assert "the report could not be written: IsADirectoryError" in again.stderr and "Traceback" not in again.stderr
    report.rmdir()
    assert "2 trials to run" in again.stderr
    assert [path.stat().st_mtime_ns for path in done] == before
    assert [len(Storage(storage).trial(trial.trial_id).read_curves()) for trial in failed] == [1, 1]
    check = (
        "import sys; from orchestrator.cli.main import main\n"
        f"code = main(['run', {str(path)!r}, '--storage', {str(storage)!r}, '--json'])\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numba', 'matplotlib', 'pandas'} & sys.modules.keys()\n"
        "sys.exit(code or (f'loads {heavy}' if heavy else 0))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{plugin}"}
    third = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=environment)
    assert third.returncode == 0, third.stderr
    assert [row["used"] for row in json.loads(third.stdout)["rows"]] == [2, 2, 1]
    assert [path for path in storage.rglob("*") if path.suffix in (".tmp", ".pkl")] == []


def test_a_run_that_the_cluster_can_not_take_leaves_nothing_behind(idp, head, tmp_path):
    path, inside = tmp_path / "tiny.yaml", tmp_path / "working_dir_files" / "storage"
    path.write_text(SWEEP)
    done = idp("run", path, "--storage", inside, "--address", head.address)
    assert done.returncode == 2 and "a folder that goes away with this job" in done.stderr
    assert list(inside.iterdir()) == []


BROKEN = """if not Path(os.environ["MARK"]).exists():
            Path(os.environ["MARK"]).touch()
            Stuck.broken = True
        if Stuck.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


def test_a_process_that_a_trial_has_broken_takes_no_other(idp, tmp_path, storage_with_database):
    """As a CUDA context is, which fails every call after an error."""
    (tmp_path / "stuck_planner").mkdir()
    (tmp_path / "stuck_planner" / "__init__.py").write_text(CORES)
    sleeps = STUCK[STUCK.index("if self.calls == 4") : STUCK.index("        return Injected")]
    core = STUCK.replace(sleeps, BROKEN).replace("import os\n", "import os\nfrom pathlib import Path\n")
    core = core.replace(
        "    def __init__", "    broken = False  # for as long as the process lives\n\n    def __init__"
    )
    (tmp_path / "stuck_planner" / "core.py").write_text(core)
    path = tmp_path / "tiny.yaml"
    sweep = STUCK_TOO.replace("{seed: [0]}", "{seed: [0, 1, 2]}").replace("stall_seconds: 2", "at_most: {cpus: 1}")
    path.write_text(sweep)
    environment = {"PYTHONPATH": str(tmp_path), "MARK": str(tmp_path / "mark")}
    command = ("run", path, "--storage", storage_with_database, "--only", "planner=stuck", "--tracking-uri", "none")
    done = idp(*command, env=environment)
    assert done.returncode == 1, done.stderr
    statuses = [result.status for result in Storage(storage_with_database).results().values()]
    assert sorted(statuses) == ["COMPLETED", "COMPLETED", "FAILED"], done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that torch can't use")
def test_a_gpu_that_torch_can_not_use_stops_the_run_and_fails_nothing(idp, tmp_path, storage_with_database):
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP)
    environment = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "GPU": 1})}
    command = ("run", path, "--storage", storage_with_database, "--tracking-uri", "none")
    done = idp(*command, "--only", "seed=0", env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    message = f"idp: {socket.gethostname()} lends its trials a GPU, but its torch {torch.__version__} "
    assert done.stderr.splitlines()[-1].startswith(message) and "run the same command again" in done.stderr
    assert not Storage(storage_with_database).results()


def test_one_trial_without_ray_gives_the_same_numbers(campaign, idp, tmp_path, plugin):
    path, storage, trials, _, _ = campaign
    environment = {"PYTHONPATH": str(plugin)}
    done = idp("trial", path, trials[0].trial_id[:6], "--storage", tmp_path, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout)
    in_ray = Storage(storage).trial(trials[0].trial_id).read_result()
    assert in_ray is not None
    numbers = ("test_success_rate", "test_optimality", "test_spl", "train_loss", "forward_residual")
    assert [alone[name] for name in numbers] == [getattr(in_ray, name) for name in numbers]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_killed_trial_goes_on_and_a_signal_stops_with_a_summary(campaign, tmp_path, storage_with_database, idp):
    number, storage = signal.SIGHUP, storage_with_database
    (storage / "datasets").symlink_to(campaign[1] / "datasets")
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP.replace("epochs: 1,", "epochs: 10000,"))
    reading, writing = os.pipe()
    process = idp.start("run", path, "--storage", storage, "--only", "planner=vin,seed=0", stderr=writing)
    os.close(writing)
    with open(reading) as said:
        lines: list[str] = []
        victim = ""
        died = False
        for line in said:
            lines.append(line)
            if not victim and re.match("[0-9a-f]{8}  .* epoch ", line):  # and not what is said after a long silence
                victim = line.split()[0]
                (pid,) = of_kind(process.pid, b"ImplicitFunc")[:1]
                os.kill(pid, signal.SIGKILL)
            elif "its process died (1)" in line:
                died = True
            elif died and line.startswith(victim):
                os.killpg(process.pid, number)  # as a terminal that closes: to all processes of the run at once
                break
        lines += said.readlines()
        assert process.wait(280) == 128 + number, "".join(lines)
    text = "".join(lines)
    assert re.search("0 of 1 trials are done; to go on: .*idp run", text)
    epochs = [
        int(line.split("epoch ")[1].split("/")[0]) for line in lines if line.startswith(victim) and "epoch" in line
    ]
    assert epochs == list(range(1, len(epochs) + 1))
    (log,) = (storage / "trials").glob(f"{victim}*/log.txt")
    assert "goes on after epoch" in log.read_text()
    assert text.splitlines()[-1] == f"idp: stopped by {number.name}"
    for directory in (storage / "trials").iterdir():
        held = latest_lease(directory)
        assert held is not None and held.owner is None, "not given back"
    with sqlite3.connect(storage / "mlflow.db") as connection:
        assert {row[0] for row in connection.execute("select status from runs")} == {"KILLED"}
    deadline = time.monotonic() + 120
    while left := _session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert "Traceback" not in text


def _session(number: int) -> list[str]:
    """Return the commands of the processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if fields[3] == str(number) and fields[0] != "Z":
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue  # it has just ended
    return found
