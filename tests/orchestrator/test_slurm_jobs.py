"""The templates in a real Slurm of one node, whose GPUs are counted and not there: signals, the queue, going on."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
from slurm_node import slurm_node, why_not

from orchestrator.cli.main import main
from orchestrator.storage.layout import Storage

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.sweeps]
long = pytest.mark.skipif("IDP_SLURM_TEST" not in os.environ, reason="takes minutes: make slurm-test")
ROOT = Path(__file__).parents[2]
PATIENCE = 400.0
SWEEP = """
name: slurm
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}}
data: {train: 32, valid: 8, test: 8}
tasks: [{map_size: 9}]
grid: {k: [6], seed: [0, 1]}
training: {epochs: EPOCHS}
figures: [success]
"""


@pytest.fixture(scope="module")
def node(scratch):
    folder = scratch / "slurm"
    folder.mkdir()
    with slurm_node(folder) as node:
        yield node


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a sweep, from which jobs are submitted, with the installed program on the path."""
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("EPOCHS", "100"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IDP_STORAGE", str(tmp_path / "storage"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "IDP_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said():
    return "\n".join(path.read_text() for path in sorted(Path().glob("slurm-*.out")))


def wait(done, what, node, job):
    until = time.monotonic() + PATIENCE
    while not (found := done()):
        gone = set(node.state(job).split()) & {"FAILED", "CANCELLED", "TIMEOUT"}
        assert time.monotonic() < until and not gone, f"{what} has not come ({gone}):\n{said()}"
        time.sleep(0.2)
    return found


def begun(storage):
    """Return the trials that have a checkpoint and no end."""
    return [t for t in storage.trial_folders() if t.checkpoint.exists() and not t.result_file.exists()]


def numbers(storage):
    return {
        trial_id: (result.status, result.epochs, result.train_loss, result.test_success_rate)
        for trial_id, result in storage.results().items()
    }


def ended(node, job):
    states = node.state(job).split()
    return states if states and not {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"} & set(states) else None


def undisturbed(folder, capsys):
    assert main(["run", "sweep.yaml", "--in-process", "--storage", "alone", "--tracking-uri", "none"]) == 0
    out = capsys.readouterr().out
    assert "MLflow:       " in out and "idp sync sweep.yaml --storage alone" in out and "sqlite" not in out
    return numbers(Storage(folder / "alone"))


def test_the_tasks_of_an_array_share_the_gpus_and_go_on_where_they_were_ended(node, folder, capsys):
    expected = undisturbed(folder, capsys)
    options = ["--array=0-1", "--gres=gpu:1", "--partition=gpu", "--account=lab", "--time=10", "--cpus-per-task=1"]
    words = ["sweep.yaml", *([] if "IDP_SLURM_TEST" in os.environ else ["--in-process"])]  # Ray is started four times
    job = node.submit(*options, ROOT / "slurm" / "array.sbatch", *words, folder=folder)
    storage = Storage(folder / "storage")
    wait(lambda: begun(storage), "an epoch", node, job)
    assert "gres:gpu:1" in node.say("scontrol", "show", "job", f"{job}_0")
    assert "Account=lab" in node.say("scontrol", "show", "job", f"{job}_0")
    node.say("scancel", "--signal=TERM", "--batch", job)
    wait(lambda: "to go on" in said(), "the signal", node, job)
    assert set(wait(lambda: ended(node, job), "the end", node, job)) == {"COMPLETED"}
    assert re.search(rf"^Slurm queues {job}_[01] again", said(), re.MULTILINE) and "--address" not in said()
    assert numbers(storage) == expected
    assert "goes on after epoch" in "".join(trial.log.read_text() for trial in storage.trial_folders())
    assert not storage.mlflow.exists()


@pytest.fixture
def lasting(folder, monkeypatch):
    """Stand-ins on the path: an idp that lasts and gives back after $SLOW s, and a ray that only starts it."""
    programs = {
        "idp": "trap 'sleep \"$SLOW\"; echo gave back; exit 143' TERM\n"
        "echo works; for i in $(seq 3000); do sleep 0.1; done",
        "ray": 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    }
    (folder / "bin").mkdir()
    for name, body in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLOW", "0")
    return folder


TEMPLATES = [("array.sbatch", ["--array=0-1", "--cpus-per-task=1"]), ("cluster.sbatch", ["--nodes=1"])]


@pytest.mark.parametrize(("template", "options"), TEMPLATES)
def test_scancel_ends_a_job_that_was_queued_again_for_good(node, lasting, template, options):
    job = node.submit(*options, ROOT / "slurm" / template, "sweep.yaml", folder=lasting)
    tasks = 2 if template == "array.sbatch" else 1  # of the latest task, the number is that of the whole array
    wait(lambda: said().count("works") == tasks, "the start", node, job)
    node.say("scancel", "--signal=TERM", "--batch", job)
    wait(lambda: said().count("works") == 2 * tasks, "the start after the warning", node, job)
    assert len(re.findall(rf"^Slurm queues {job}(_[01])? again$", said(), re.MULTILINE)) == tasks
    node.say("scancel", job)
    until = time.monotonic() + PATIENCE
    while not ended(node, job):
        assert time.monotonic() < until and said().count("works") == 2 * tasks, said()
        time.sleep(0.2)
    assert set(node.state(job).split()) == {"CANCELLED"}
    assert said().count("does not queue it again") == tasks and said().count("gave back") == 2 * tasks


@long
@pytest.mark.parametrize(("template", "options"), TEMPLATES)
def test_a_job_that_gives_back_for_longer_than_it_has_is_queued_again(node, lasting, monkeypatch, template, options):
    monkeypatch.setenv("SLOW", "300")
    words = ["--time=1", "--signal=B:TERM@50", ROOT / "slurm" / template, "sweep.yaml"]
    job = node.submit(*options, *words, folder=lasting)
    wait(lambda: f"Slurm queues {job}" in said() and said().count("works") > 2, "a second start", node, job)
    node.say("scancel", "--full", "--signal=KILL", job)


@long
def test_a_cluster_that_its_time_limit_ended_goes_on_after_the_last_epoch(node, folder, capsys):
    (folder / "sweep.yaml").write_text(SWEEP.replace("EPOCHS", "300"))
    options = ["--nodes=1", "--gres=gpu:2", "--partition=gpu", "--time=60", "--signal=B:TERM@540"]
    job = node.submit(*options, ROOT / "slurm" / "cluster.sbatch", "sweep.yaml", folder=folder)
    storage = Storage(folder / "storage")
    wait(lambda: begun(storage), "an epoch", node, job)
    # The limit comes once something is there to go on from, however slow the machine; Slurm looks each half minute.
    minutes = node.say("squeue", "--noheader", "--jobs", job, "-o", "%M").partition(":")[0]
    node.say("scontrol", "update", f"JobId={job}", f"TimeLimit={int(minutes) + 3}")
    wait(lambda: "to go on" in said(), "the signal", node, job)
    node.say("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert wait(lambda: ended(node, job), "the end", node, job) == ["COMPLETED"]
    words = [line.partition("to go on: ")[2] for line in said().splitlines() if "to go on: " in line]
    assert words == [f"this log says next whether Slurm queues {job} again"]  # and no address of a head that is gone
    assert f"\nSlurm queues {job} again\n" in said()
    assert numbers(storage) == undisturbed(folder, capsys)
    assert "goes on after epoch" in "".join(trial.log.read_text() for trial in storage.trial_folders())
    assert not list((folder / "storage").glob(".slurm-*"))
