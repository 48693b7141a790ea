"""Real runs: Ray, Tune and MLflow as a user has them, in processes of their own."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datagen import parquet
from datagen.task import dataset_id
from orchestrator.results import read_curves, read_result, trial_directory
from orchestrator.specs import expand
from orchestrator.sweep_files import load_sweep

SWEEP = """
name: tiny
planners:
  vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}
  id-vin: {core: vin, adjoint: implicit, hidden_channels: 8, q_channels: 4}
data: {train: 64, valid: 16, test: 16}
tasks: [{map_size: 9}]
grid: {k: [4], seed: [0, 1]}
training: {epochs: 1}
next: sweeps/table1.yaml
"""


def idp(*arguments, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    command = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, **options)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A sweep that was run once; in one of its trials there is a fault of the machine's making."""
    folder = tmp_path_factory.mktemp('it\'s a "campaign"')
    path, storage = folder / "tiny.yaml", folder / "storage"
    path.write_text(SWEEP)
    trials = expand(load_sweep(path))
    broken = trials[-1]
    # A folder where the log should be: an error outside anything that the trial itself foresees.
    (trial_directory(storage, broken.trial_id) / "log.txt").mkdir(parents=True)
    done = idp("run", path, "--storage", storage)
    return path, storage, trials, broken, done


def test_one_broken_trial_is_failed_with_its_traceback_and_the_rest_go_on(campaign):
    _, storage, trials, broken, done = campaign
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"idp: {broken.trial_id} FAILED: IsADirectoryError" in done.stderr
    for trial in trials:
        result = read_result(trial_directory(storage, trial.trial_id))
        assert result is not None
        assert result.status == ("FAILED" if trial is broken else "COMPLETED"), result.reason
    failed = read_result(trial_directory(storage, broken.trial_id))
    assert failed is not None and "Traceback" in failed.traceback


def test_the_run_ends_with_the_table_and_what_comes_next(campaign):
    _, storage, _, _, done = campaign
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if "1/2" in line or "2/2" in line][:2] == ["vin", "id-vin"]
    assert "1 failed" in done.stdout
    assert any(
        line.startswith("MLflow page:") and str(storage / "mlflow.db") in line.replace("'\"'\"'", "'") for line in lines
    )
    assert any("then open http://127.0.0.1:5000/#/experiments/1/runs" in line for line in lines)
    assert lines[-1].startswith("next sweep:") and "idp run sweeps/table1.yaml" in lines[-1]


def test_progress_is_plain_lines_without_noise(campaign):
    _, _, trials, _, done = campaign
    for line in done.stderr.splitlines():
        known = ("starting Ray", trials[0].spec.data.task, "idp: ", "4 trials in")
        assert line.startswith(known) or line.split()[0] in {trial.trial_id[:8] for trial in trials}, line
    assert "epoch 1/1" in done.stderr


def test_mlflow_holds_parent_trials_and_means(campaign):
    _, storage, trials, broken, _ = campaign
    with sqlite3.connect(storage / "mlflow.db") as connection:
        status = dict(
            connection.execute(
                "select t.value, r.status from runs r join tags t using (run_uuid) where t.key = 'idp.key'"
            )
        )
    assert status["sweep"] == "FAILED"
    for trial in trials:
        assert status[f"trial:{trial.trial_id}"] == ("FAILED" if trial is broken else "FINISHED")
    assert sum(key.startswith("mean:") for key in status) == 2


def test_what_is_done_is_not_done_again_and_what_failed_is(campaign):
    path, storage, trials, broken, _ = campaign
    done = [trial_directory(storage, trial.trial_id) / "result.json" for trial in trials if trial is not broken]
    before = [path.stat().st_mtime_ns for path in done]
    (trial_directory(storage, broken.trial_id) / "log.txt").rmdir()
    report = storage / "sweeps" / "tiny" / "report.html"
    report.unlink()
    report.mkdir()  # a report that can't be written costs nothing but itself
    again = idp("run", path, "--storage", storage)
    assert again.returncode == 0, again.stderr
    assert "the report could not be written: IsADirectoryError" in again.stderr and "Traceback" not in again.stderr
    report.rmdir()
    assert "starting Ray for 1 trials" in again.stderr
    assert [path.stat().st_mtime_ns for path in done] == before
    assert len(read_curves(trial_directory(storage, broken.trial_id))) == 1
    started = time.monotonic()
    check = (
        "import sys; from orchestrator.cli import main\n"
        f"code = main(['run', {str(path)!r}, '--storage', {str(storage)!r}, '--json'])\n"
        "heavy = {'torch', 'ray', 'mlflow'} & sys.modules.keys()\n"
        "sys.exit(code or (f'loads {heavy}' if heavy else 0))"
    )
    third = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    assert time.monotonic() - started < 3.0
    assert [row["used"] for row in json.loads(third.stdout)["rows"]] == [2, 2]
    assert [path for path in storage.rglob("*") if path.suffix in (".tmp", ".pkl")] == []


def test_a_run_that_the_cluster_can_not_take_leaves_nothing_behind(campaign, tmp_path):
    inside = tmp_path / "working_dir_files" / "storage"
    done = idp("run", campaign[0], "--storage", inside)
    assert done.returncode == 2 and "a folder that goes away with this job" in done.stderr
    assert list(inside.iterdir()) == []


def test_one_trial_without_ray_gives_the_same_numbers(campaign, tmp_path):
    path, storage, trials, _, _ = campaign
    done = idp("trial", path, trials[0].trial_id[:6], "--storage", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout)
    in_ray = read_result(trial_directory(storage, trials[0].trial_id))
    assert in_ray is not None
    numbers = ("test_success_rate", "test_optimality", "test_spl", "train_loss", "forward_residual")
    assert [alone[name] for name in numbers] == [getattr(in_ray, name) for name in numbers]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_killed_trial_goes_on_and_a_signal_stops_with_a_summary(tmp_path):
    number = signal.SIGTERM
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP.replace("epochs: 1", "epochs: 10000"))
    command = [sys.executable, "-m", "orchestrator", "run", str(path), "--storage", str(tmp_path / "storage")]
    command += ["--only", "planner=vin"]  # two trials for two processors: a killed one need not wait for its turn
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        learning: set[str] = set()
        victim = ""
        for line in process.stderr:
            lines.append(line)
            if "epoch" in line and not victim:
                learning.add(line.split()[0])
            if len(learning) == 2 and not victim:  # whichever process is first in the list, it has a checkpoint
                victim = line.split()[0]
                (pid,) = _processes(b"ImplicitFunc", tmp_path / "storage")[:1]
                os.kill(pid, signal.SIGKILL)
            elif "its process died (1)" in line:
                victim = line.split()[0]
            elif any("its process died" in said for said in lines) and line.startswith(victim):
                process.send_signal(number)
                break
        lines += process.stderr.readlines()
        assert process.wait(60) == 128 + number, "".join(lines)
    text = "".join(lines)
    assert re.search("0 of 2 trials are done; to go on: .*idp run", text)
    epochs = [
        int(line.split("epoch ")[1].split("/")[0]) for line in lines if line.startswith(victim) and "epoch" in line
    ]
    assert epochs == list(range(1, len(epochs) + 1))
    (log,) = (tmp_path / "storage" / "trials").glob(f"{victim}*/log.txt")
    assert "goes on after epoch" in log.read_text()
    assert text.splitlines()[-1] == f"idp: stopped by {number.name}"
    assert "Traceback" not in text


def test_the_shard_of_a_killed_worker_is_made_again(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(SWEEP.replace("train: 64", "train: 12000").replace("map_size: 9", "map_size: 15"))
    storage = tmp_path / "storage"
    spec = expand(load_sweep(path))[0].spec.data
    killed: list[int] = []
    stop = threading.Event()

    def kill_one_writer() -> None:
        shards = storage / "datasets"
        while not stop.is_set() and not killed:
            if list(shards.rglob("train-*.parquet")):
                for pid in _processes(b"ShardWriter", storage)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one_writer)
    killer.start()
    try:
        done = idp("data", path, "--storage", storage, cwd=Path(__file__).parents[2])
    finally:
        stop.set()
        killer.join()
    assert killed, done.stderr
    assert done.returncode == 0, done.stderr
    assert "died; another makes the shard" in done.stderr
    assert done.stdout == f"{storage / 'datasets' / dataset_id(spec)}\n"
    directory = storage / "datasets" / dataset_id(spec)
    assert parquet.is_complete(spec, storage / "datasets")
    for shard in parquet.shards(spec)[:2]:
        parquet.write_shard(spec, shard, tmp_path / "again")
        assert (tmp_path / "again" / directory.name / shard.name).read_bytes() == (directory / shard.name).read_bytes()


def _processes(kind: bytes, storage: Path) -> list[int]:
    """Return the ids of the Ray workers of a kind in the cluster that serves `storage`, and in no other."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_worker(path, kind, storage)]


def _is_worker(process: Path, kind: bytes, storage: Path) -> bool:
    try:
        if kind not in (process / "cmdline").read_bytes():
            return False
        parent = process
        while parent.name != "1":
            number = (parent / "stat").read_text().rpartition(")")[2].split()[1]
            if number == "0":
                return False
            parent = Path("/proc") / number
            if str(storage).encode() in (parent / "cmdline").read_bytes().split(b"\0"):
                return True
    except OSError:
        return False  # it has just ended
    return False
