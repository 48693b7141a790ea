"""The Slurm templates, with stand-ins for Slurm, Ray and idp: what they start, and what they do with a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parents[2] / "slurm"
PATIENCE = 120.0
"""Seconds after which what has not come is given up; it takes one or two, unless the machine is busy."""
PROGRAMS = {
    # Ends by itself, or like idp run on a signal.
    "idp": 'echo "idp $* $RAY_AUTH_MODE $RAY_ADDRESS $MLFLOW_TRACKING_URI $RAY_OVERRIDE_RESOURCES" >> "$LOG"\n'
    'echo "$IDP_TO_GO_ON" > "$LOG.to-go-on"\n'
    "trap 'echo gave back >> \"$LOG\"; exit 143' TERM\n"
    '[ -z "$LONG" ] || { touch "$LOG.running"; for i in $(seq 100); do sleep 0.1; done; }',
    "srun": '"$@"',
    "ray": 'echo "ray $*" >> "$LOG"; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"',
    "squeue": 'echo "$STATE"',
}


@pytest.fixture
def node(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    variables = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "LONG": "",
        "STATE": "RUNNING None",
        "IDP_STORAGE": str(tmp_path / "storage"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURMD_NODENAME": "node1",
        "SLURM_JOB_ID": "70042",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_CPUS_PER_TASK": "8",
    }
    return tmp_path, variables


def start(template, variables):
    command = ["bash", str(TEMPLATES / template), "my sweep.yaml", "--profile", "smoke"]
    folder = Path(variables["LOG"]).parent
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        return subprocess.Popen(command, env=variables, stdout=stdout, stderr=stderr)


def log(folder):
    return (folder / "log").read_text().splitlines()


def test_a_cluster_runs_the_sweep_on_the_first_node_with_a_token(node):
    folder, variables = node
    assert start("cluster.sbatch", variables).wait(PATIENCE) == 0
    started, ran = log(folder)
    assert started.startswith("ray symmetric-run --address node1:20042 --min-nodes 4 -- ")
    # In the variable, so that no command which is shown names a head that is gone with the job.
    assert ran.startswith("idp run my sweep.yaml --profile smoke token node1:20042")
    assert list((folder / "storage").iterdir()) == []  # nothing of the token is left


def test_a_task_of_an_array_keeps_no_database_and_takes_the_processors_it_was_given(node):
    folder, variables = node
    assert start("array.sbatch", variables).wait(PATIENCE) == 0
    (ran,) = log(folder)
    assert ran.startswith("idp run my sweep.yaml --profile smoke") and ran.endswith(' none {"CPU": 8}')
    assert start("array.sbatch", {**variables, "MLFLOW_TRACKING_URI": "http://mlflow:5000"}).wait(PATIENCE) == 0
    assert log(folder)[-1].endswith(' http://mlflow:5000 {"CPU": 8}')


def signalled(folder, template, variables):
    """Start a job that lasts, send it Slurm's signal, and return what it has said when it has ended."""
    job = start(template, {**variables, "LONG": "1", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"})
    deadline = time.monotonic() + PATIENCE
    while not (folder / "log.running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(PATIENCE) == 143
    return (folder / "stdout").read_text()


# Slurm ends a job whose trials are given back too slowly; that it did for the time is its reason.
@pytest.mark.parametrize("state", ["RUNNING None", "COMPLETING TimeLimit"])
@pytest.mark.parametrize(("template", "task"), [("cluster.sbatch", "70042"), ("array.sbatch", "7_3")])
def test_a_job_that_was_warned_gives_its_trials_back_and_queues_again(node, template, task, state):
    folder, variables = node
    assert signalled(folder, template, {**variables, "STATE": state}) == f"Slurm queues {task} again\n"
    assert log(folder)[-2:] == ["gave back", f"scontrol requeue {task}"]
    assert (folder / "log.to-go-on").read_text() == f"this log says next whether Slurm queues {task} again\n"


@pytest.mark.parametrize("state", ["COMPLETING None", "CANCELLED None", ""])
@pytest.mark.parametrize(("template", "task"), [("cluster.sbatch", "70042"), ("array.sbatch", "7_3")])
def test_a_job_that_was_cancelled_gives_its_trials_back_and_stays_ended(node, template, task, state):
    folder, variables = node
    said = signalled(folder, template, {**variables, "STATE": state})
    assert said.startswith(f"{task} is {state or 'unknown to squeue'}: this script does not queue it again")
    assert log(folder)[-1] == "gave back"


@pytest.mark.parametrize("template", ["cluster.sbatch", "array.sbatch"])
def test_a_job_without_a_shared_storage_is_refused(node, template):
    folder, variables = node
    del variables["IDP_STORAGE"]
    job = start(template, variables)
    assert job.wait(PATIENCE) != 0 and "that all nodes share" in (folder / "stderr").read_text()
    assert not (folder / "log").exists()
