"""Sweeps on a cluster: a real Ray head with a token, asked as from a laptop; and what needs none."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from cluster import BIN, ROOT

from orchestrator.cli.jobs import cancel_job, run_command
from orchestrator.cli.main import main
from orchestrator.cluster import jobs
from orchestrator.cluster.datasets import make_datasets, make_here
from orchestrator.cluster.jobs import Job, JobError, api_address, find_job
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import latest_lease
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import SweepError, SweepSpec, expand

SWEEP = """
cluster_name: tiny
provider: {type: external, module: orchestrator.cluster.ray_submit.RunningCluster}
max_workers: 0
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
metadata:
  sweep:
    name: tiny
    plugins: [mine]
    planners:
      mine: {core: mine_vin, adjoint: unrolled, hidden_channels: 4, q_channels: 4}
    data: {train: 32, valid: 8, test: 8}
    tasks: [{map_size: 7}]
    grid: {k: [3], seed: [0]}
    figures: [success]
    training: {epochs: 1, batch_size: 8}
    profiles: {long: {training: {epochs: 100000}}}
"""
PLUGIN = """
from planners.registry import CORES

CORES = {"mine_vin": CORES["vin"]}
"""


class Laptop:
    """A working directory, a shell, and a cluster somewhere."""

    def __init__(self, folder, head, idp):
        self.folder, self.storage, self.head, self._idp = folder, head.storage, head, idp
        self.address = {"RAY_API_SERVER_ADDRESS": head.jobs_address}

    def run(self, *words):
        return self._idp(*words, cwd=self.folder, env=self.address)

    def ray(self, *words):
        """Run a command line of Ray's own."""
        program = f"import sys\nfrom ray.scripts.scripts import main\nsys.argv = {['ray', *words]}\nmain()"
        return self._idp(python=program, cwd=self.folder, env=self.address)

    def start(self, *words, **variables):
        """Run a command line of `idp` that reads its libraries itself: Ray asks for its token then."""
        environment = {**self.head.environment, **self.address, **variables}
        return subprocess.run(
            [str(BIN / "idp"), *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="module")
def laptop(tmp_path_factory, head, idp, database):
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.yaml").write_text(SWEEP)
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "run.py").write_text((ROOT / "sweeps" / "run.py").read_text())
    head.storage.mkdir()
    (head.storage / "mlflow.db").write_bytes(database)
    # Made here: a process of the cluster that makes it would take seconds to start. Its data needs no plug-in.
    (folder / "plain.yaml").write_text(SWEEP.replace("plugins: [mine]", "").replace("mine_vin", "vin"))
    (trial,) = expand(load_sweep(folder / "plain.yaml"))
    make_datasets([trial.spec.data], Storage(head.storage).datasets, make=make_here)
    return Laptop(folder, head, idp)


def test_cells_are_measured_on_the_clusters_machines(laptop):
    storage = laptop.storage.with_name("measured")
    planned = laptop.run(
        "plan", "tiny.yaml", "--measure", "--address", laptop.head.address, "--storage", str(storage), "--json"
    )
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert [cell["status"] for cell in found["measured"]] == ["COMPLETED"] and found["measured"][0]["step_seconds"] > 0
    assert "1 cell measured" in found["expected_seconds_from"]
    assert len(list((storage / "measurements").iterdir())) == 1


def test_a_sweep_with_a_plugin_goes_to_the_cluster_and_is_followed_to_its_end(laptop):
    submitted = laptop.run("submit", "tiny.yaml", "--json")
    assert submitted.returncode == 0, submitted.stderr
    job = json.loads(submitted.stdout)
    assert job["job"] == "tiny-1" and job["trials"] == 1
    again = laptop.run("submit", "tiny.yaml")
    assert again.returncode == 2 and "tiny-1 runs it already" in again.stderr
    followed = laptop.run("logs", "tiny.yaml", "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "epoch 1/1" in followed.stdout
    assert [line.split()[:2] for line in followed.stdout.splitlines() if "  1/1  " in line] == [["mine", "3"]]
    status = json.loads(laptop.run("status", "tiny.yaml", "--storage", str(laptop.storage), "--json").stdout)
    assert (status["done"], status["missing"]) == (1, 0)
    assert [(job["job_id"], job["state"]) for job in status["jobs"]] == [("tiny-1", "SUCCEEDED")]


def test_stock_ray_submits_the_same_file_and_ends_as_the_sweep_does(laptop):
    done = laptop.ray("submit", "tiny.yaml", "run.py", "--", "--profile", "absent")
    assert done.returncode == 1 and "no profile 'absent'; known: long" in done.stdout
    done = laptop.ray("submit", "tiny.yaml", "run.py", "--", "--set", "description=two words")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to run: every trial is done" in done.stdout
    stopped = laptop.ray("down", "--yes", "tiny.yaml")
    assert stopped.returncode != 0 and "only submit and exec work here" in stopped.stderr


def test_a_stopped_job_gives_its_trials_back(laptop):
    assert laptop.run("submit", "tiny.yaml", "--profile", "long").returncode == 0
    deadline = time.monotonic() + 180.0
    while " epoch " not in laptop.run("logs", "tiny-long-1").stdout:
        assert time.monotonic() < deadline
        time.sleep(1.5)
    stopped = laptop.run("cancel", "tiny.yaml", "--profile", "long", "--job", "--json")
    assert json.loads(stopped.stdout)["jobs"] == {"tiny-long-1": "stopping"}
    while True:
        words = ["status", "tiny.yaml", "--profile", "long", "--storage", str(laptop.storage), "--json"]
        status = json.loads(laptop.run(*words).stdout)
        state = {job["job_id"]: job["state"] for job in status["jobs"]}["tiny-long-1"]
        if state != "RUNNING":
            break
        assert time.monotonic() < deadline
        time.sleep(1.5)
    assert state == "STOPPED" and status["missing"] == 1
    (trial,) = (
        path.parent
        for path in (laptop.storage / "trials").glob("*/checkpoint.pt")
        if not (path.parent / "result.json").exists()
    )
    held = latest_lease(trial)
    assert held is not None and held.owner is None


def test_without_the_token_there_is_one_clear_message(laptop, tmp_path):
    (tmp_path / "wrong").write_text("0" * 64)
    for variables, message in [
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token and got none (401)"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, "refuses the token (403)"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, "none: No such file or directory"),
    ]:
        refused = laptop.start("submit", "tiny.yaml", **variables)
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("words", [["submit", "SWEEP"], ["status"], ["logs", "x"], ["cancel", "SWEEP", "--job"]])
def test_an_unreachable_cluster_is_one_message_at_once(tmp_path, monkeypatch, capsys, words):
    sweep = tmp_path / "small.yaml"
    sweep.write_text("name: small\nplanners: {vin: {core: vin}}\n")
    monkeypatch.chdir(tmp_path)
    connect, tries = socket.socket.connect, []
    monkeypatch.setattr(socket.socket, "connect", lambda one, place: tries.append(place) or connect(one, place))
    assert main([str(sweep) if word == "SWEEP" else word for word in words] + ["--address", "http://127.0.0.1:9"]) == 2
    assert tries == [("127.0.0.1", 9)], "tried once, where Ray would go on for minutes"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("idp: no Ray cluster answers at http://127.0.0.1:9") and "--address" in line


def test_what_is_done_is_said_where_the_cluster_is_away(tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "small.yaml"
    sweep.write_text("name: small\nplanners: {vin: {core: vin}}\n")
    words = ["status", str(sweep), "--storage", str(tmp_path), "--address", "http://127.0.0.1:9"]
    assert main(words) == 2
    assert capsys.readouterr().out == "small: 1 trial: 0 done, 1 missing\n"


@pytest.mark.parametrize("address", ["ftp://head:1", "http://", "http://head:99999", "http://head:x", "http://[::1"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(JobError, match="expected http://HOST:8265"):
        api_address(address)


def test_an_address_is_given_or_the_environments_or_this_machines(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert api_address() == jobs.DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://lab:8265/")
    assert api_address() == "http://lab:8265"
    assert api_address("head:1") == "http://head:1"


def options(**given):
    fields = {"profile": None, "storage": None, "overrides": [], "only": None, "tracking_uri": None, "rerun": None}
    return Namespace(**(fields | given))


def test_the_job_runs_what_idp_run_would_with_the_same_options(tmp_path):
    sweep = tmp_path / "sweeps" / "small.yaml"
    sweep.parent.mkdir()
    sweep.write_text("name: small\nplanners: {vin: {core: vin}}\n")
    given = options(
        sweep=str(sweep), profile="p", storage=Path("/nfs/idp"), overrides=["a=1"], only="k=3", rerun="stale"
    )
    words = "idp run sweeps/small.yaml --address auto --profile p --storage /nfs/idp --set a=1 --only k=3 --rerun stale"
    assert run_command(given, load_sweep(sweep), tmp_path) == words.split()
    with pytest.raises(SweepError, match="from the root"):
        run_command(options(sweep=str(sweep), storage=Path("here")), load_sweep(sweep), tmp_path)


def test_who_reads_no_more_of_a_log_is_no_cluster_that_does_not_answer():
    class Client:
        get_address = staticmethod(lambda: "http://head:8265")

        async def tail_job_logs(self, job_id):
            yield "line"

    def read_enough(text):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        jobs.follow(Client(), job("a-1", "a"), read_enough)


def job(job_id, sweep, state="RUNNING"):
    return Job(job_id, state, sweep, "idp run", "", 0.0, None)


def test_a_job_is_found_by_its_id_or_as_the_latest_of_its_sweep():
    known = [job("b-2", "b"), job("a-1", "a"), job("b-1", "b")]
    assert find_job(known, "b-1").job_id == "b-1"
    assert find_job(known, "b").job_id == "b-2"
    with pytest.raises(JobError, match="the latest: b-2, a-1, b-1"):
        find_job(known, "c")
    # A later job of a sweep that is called as an earlier job is.
    known = [job("a-1-1", "a-1"), job("a-1", "a"), job("other", "")]
    assert find_job(known, "a-1").job_id == "a-1"
    with pytest.raises(JobError):
        find_job(known, "")


def test_only_a_sweeps_own_job_is_stopped_and_only_one_that_is_meant(monkeypatch):
    known = [job("b-2", "b"), job("b-1", "b"), job("a-2", "a", "SUCCEEDED"), job("a-1", "a")]
    stopped = []
    monkeypatch.setattr(jobs, "connect", lambda address: None)
    monkeypatch.setattr(jobs, "list_jobs", lambda client: known)
    monkeypatch.setattr(jobs, "stop", lambda client, one: stopped.append(one.job_id) or one.alive)
    sweep = {name: SweepSpec.model_validate({"name": name, "planners": {"p": {}}}) for name in ("a", "b", "c")}
    for name, job_id, told in (
        ("a", "b-1", "a job of b, not of a"),
        ("b", "b", "b-2, b-1; name one"),
        ("c", "", "no job"),
    ):
        with pytest.raises(JobError, match=told):
            cancel_job(sweep[name], job_id, None)
    assert stopped == []
    assert cancel_job(sweep["b"], "b-1", None) == {"b-1": "stopping"}
    assert cancel_job(sweep["a"], "a-2", None) == {"a-2": "was SUCCEEDED already"}
    assert cancel_job(sweep["b"], "", None) == {"b-2": "stopping", "b-1": "stopping"}


def test_ids_are_readable_and_never_used_twice():
    taken = ["table1-1", "table1-smoke-3", "table1-12"]
    assert jobs._new_id(taken, "table1", None) == "table1-13"
    assert jobs._new_id(taken, "table1", "smoke") == "table1-smoke-4"
    assert jobs._new_id(taken, "a+b", None) == "a-b-1"


def test_table1_is_a_cluster_file_by_rays_own_schema():
    from ray.autoscaler._private.util import prepare_config, validate_config

    from orchestrator.cluster.ray_submit import RunningCluster

    document = yaml.safe_load((ROOT / "sweeps" / "table1.yaml").read_text())
    validate_config(RunningCluster.fillout_available_node_types_resources(prepare_config(document)))
    assert load_sweep(ROOT / "sweeps" / "table1.yaml").name == document["cluster_name"] == "table1"


def test_a_cluster_file_without_a_sweep_is_said_to_have_none(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("cluster_name: lab\nprovider: {type: local}\n")
    with pytest.raises(SweepError, match=r"under metadata\.sweep"):
        load_sweep(path)
