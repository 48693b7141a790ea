"""What is told to Prometheus, the alerts that follow from it, and that a real Prometheus takes both."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from samples import put_result

from orchestrator.cli import metrics as metrics_verb
from orchestrator.cli.main import main
from orchestrator.cli.metrics import Metrics, server
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Owner
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.runs import RunNote, runs, write_note

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
EXPECTED_ALERTS = Path(__file__).parents[1] / "alerts.test.yml"
no_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no prometheus here: apt-get install prometheus",
)
PATIENCE = 60.0
NOTE = RunNote(
    sweep="table1", user='ann"a\\', cluster="10.0.0.7:6379", gpus=1.0, total=9, done=4, failed=1, running=2, wants=5,
    epochs=12, began=1000.0, moved=1060.0, written=1100.0,
)  # fmt: skip


def ended(storage, number, status):
    trial = storage.trial(f"{number:08x}")
    put_result(trial.path, TrialResult(trial_id=trial.name, status=status, provenance=Provenance(code="0")))
    return trial


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A storage with some trials, one of which is worked on, and a run."""
    monkeypatch.setattr(metrics_verb, "FRESH_SECONDS", 0.0)
    storage = Storage(tmp_path / "storage")
    for number, status in enumerate(["COMPLETED", "COMPLETED", "OUT_OF_MEMORY", "FAILED", "FAILED", "CANCELLED"]):
        ended(storage, number, status)
    storage.trial("000000aa").path.mkdir()
    lease = storage.trial("00000003").take(Owner.here())  # failed before, and tried again
    with storage.at_work() as mark, lease.beating():
        write_note(mark, NOTE)
        yield storage


def samples(text):
    """Return the values by names with labels, as the format has them."""
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_trials_runs_and_room_are_told(storage):
    said = samples(Metrics(storage, {}).text())
    states = {re.search(r'"(.*)"', name)[1]: value for name, value in said.items() if name.startswith("idp_trials{")}
    assert states == {
        "completed": "2.0", "out_of_memory": "1.0", "failed": "1.0", "cancelled": "1.0", "running": "1.0",
        "waiting": "1.0",
    }  # fmt: skip
    assert said["idp_storage_up"] == "1.0"
    assert float(said['idp_disk_bytes{kind="size"}']) > float(said['idp_disk_bytes{kind="free"}']) > 0
    (run,) = runs(storage)
    name = f'run="{run.name}",sweep="table1",user="ann\\"a\\\\",cluster="10.0.0.7:6379"'
    of_run = {re.search('state="(.*)"', key)[1]: value for key, value in said.items() if "idp_run_trials{" in key}
    assert of_run == {"running": "2.0", "waiting": "3.0", "done": "4.0", "failed": "1.0"}
    assert said[f"idp_run_sweep_trials{{{name}}}"] == "9.0"
    assert said[f"idp_run_epochs_total{{{name}}}"] == "12.0" and said[f"idp_run_gpus{{{name}}}"] == "2.0"
    assert float(said[f"idp_run_stands_still_seconds{{{name}}}"]) >= 40.0


def test_what_changes_is_seen_and_what_is_damaged_does_no_harm(storage):
    metrics = Metrics(storage, {})
    before = samples(metrics.text())['idp_trials{state="completed"}']
    ended(storage, 0xAA, "COMPLETED")
    storage.trial("00000005").result_file.write_bytes(b"{")
    (storage.working / "junk").mkdir()
    (storage.working / "junk" / "run.json").write_text("[]")
    (storage.working / "junk2").symlink_to("/")
    after = samples(metrics.text())
    assert (before, after['idp_trials{state="completed"}']) == ("2.0", "3.0")
    assert after['idp_trials{state="failed"}'] == "2.0" and len(runs(storage)) == 1


def test_a_storage_that_is_away_is_told_and_ends_nothing(tmp_path, capsys):
    said = samples(Metrics(Storage(tmp_path / "none"), {"mlflow": "http://127.0.0.1:9/health"}).text())
    assert said["idp_storage_up"] == "0.0" and said['idp_service_up{service="mlflow"}'] == "0.0"
    assert "No such file" in capsys.readouterr().err


def test_once_and_what_is_refused(storage, capsys):
    assert main(["metrics", "--storage", str(storage), "--once"]) == 0
    assert 'idp_trials{state="completed"} 2' in capsys.readouterr().out
    for words, said in (
        (["--listen", "9464"], "--listen '9464': expected HOST:PORT"),
        (["--listen", "127.0.0.1:x"], "expected HOST:PORT"),
        (["--listen", "127.0.0.1:" + "9" * 5000], "expected HOST:PORT"),
        (["--listen", "é..x:19465"], "'é..x' is no name of a machine"),
        (["--listen", "a\x00b:19465"], "is no name of a machine"),
        (["--probe", "mlflow"], "--probe 'mlflow': expected NAME=URL"),
        (["--probe", "a=file:///etc/passwd"], "expected NAME=URL"),
    ):
        assert main(["metrics", "--storage", str(storage), *words]) == 2
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_a_service_that_is_no_web_server_is_down_and_costs_nothing_else(storage):
    class Talk(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(2**16)
            self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Talk) as ssh:
        threading.Thread(target=ssh.serve_forever, daemon=True).start()
        told = samples(Metrics(storage, {"ssh": f"http://127.0.0.1:{ssh.server_address[1]}/"}).text())
        ssh.shutdown()
    assert told['idp_service_up{service="ssh"}'] == "0.0" and told["idp_storage_up"] == "1.0"


@pytest.fixture
def address(storage):
    answering = server(("127.0.0.1", 0), Metrics(storage, {}))
    thread = threading.Thread(target=answering.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{answering.server_address[1]}"
    answering.shutdown()
    thread.join()
    answering.server_close()


def test_it_answers_one_question_alone(address):
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "idp_storage_up 1.0" in answer.read().decode()
    for path in ("/", "/metrics/../etc/passwd", "/storage"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{address}{path}")


def test_it_listens_at_an_address_of_version_6(storage):
    try:
        with server(metrics_verb._place("[::1]:0"), Metrics(storage, {})) as answering:
            assert answering.server_address[0] == "::1"
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("this machine has no IPv6")


def test_who_hangs_up_is_no_fault_and_a_fault_is_written_down(address, monkeypatch, capsys):
    asked, gone, answered = threading.Event(), threading.Event(), threading.Event()
    shutdown = socketserver.TCPServer.shutdown_request
    monkeypatch.setattr(socketserver.TCPServer, "shutdown_request", lambda *words: (shutdown(*words), answered.set()))

    def late(metrics):
        asked.set()
        assert gone.wait(PATIENCE)
        return "x" * 2**24

    monkeypatch.setattr(Metrics, "text", late)
    with socket.create_connection(address.split(":")) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert asked.wait(PATIENCE)
    gone.set()
    assert answered.wait(PATIENCE) and capsys.readouterr().err == ""

    answered.clear()
    monkeypatch.setattr(Metrics, "text", lambda metrics: 1 / 0)
    with socket.create_connection(address.split(":")) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert answered.wait(PATIENCE) and "ZeroDivisionError" in capsys.readouterr().err


def test_the_page_names_every_number_and_every_state(storage):
    """docs/administration.md, "Watch"."""
    page = (Path(__file__).parents[2] / "docs" / "administration.md").read_text()
    told = Metrics(storage, {"mlflow": "http://127.0.0.1:9/"}).text()
    rows = {name: row for row in page.splitlines() for name in re.findall(r"`(idp_\w+)", row.partition(" | ")[0])}
    assert set(rows) >= set(re.findall(r"# TYPE (\w+)", told))
    for name, state in set(re.findall(r'^(\w+)\{.*state="(\w+)"', told, re.MULTILINE)):
        assert re.search(rf"\b{state}\b", rows[name]), (name, state)


def dashboards_questions():
    document = json.loads((MONITORING / "grafana/dashboards/idp.json").read_text())
    return [target["expr"] for panel in document["panels"] for target in panel["targets"]]


def test_whatever_is_asked_for_is_told(storage):
    """The names in alerts and on the dashboard are those of `idp metrics`."""
    told = set(re.findall(r"# TYPE (\w+)", Metrics(storage, {"mlflow": "http://127.0.0.1:9/"}).text()))
    rules = yaml.safe_load((MONITORING / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    asked = " ".join([*dashboards_questions(), *(rule["expr"] for rule in rules)])
    assert set(re.findall(r"\bidp_\w+", asked)) <= told
    assert {rule["alert"] for rule in rules} >= {"DiskFull", "Unhealthy", "SweepStandsStill"}


@no_prometheus
def test_alerts_are_given_when_they_should_be_and_not_before(tmp_path):
    for name in ("alerts.yml", "prometheus.yml"):
        shutil.copy(MONITORING / "prometheus" / name, tmp_path)
    shutil.copy(EXPECTED_ALERTS, tmp_path)
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", EXPECTED_ALERTS.name]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@no_prometheus
def test_a_real_prometheus_takes_the_numbers_the_alerts_and_the_dashboards_questions(address, tmp_path):
    config = yaml.safe_load((MONITORING / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "idp"]
    config["scrape_configs"] = [{**job, "scrape_timeout": "1s", "static_configs": [{"targets": [address]}]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(MONITORING / "prometheus/alerts.yml", tmp_path)
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        watching = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stdout=output, stderr=output)
    try:
        until, where = time.monotonic() + PATIENCE, ""
        while not where:
            assert time.monotonic() < until, log.read_text()
            where = _listening(watching.pid)
            time.sleep(0.1)

        def ask(question):
            query = urllib.parse.urlencode({"query": question})
            with urllib.request.urlopen(f"http://127.0.0.1:{where}/api/v1/query?{query}") as answer:
                return json.loads(answer.read())

        while not (got := ask('idp_trials{state="completed"}')["data"]["result"]):
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        assert got[0]["value"][1] == "2"
        (run,) = ask("idp_run_epochs_total")["data"]["result"]
        assert run["metric"]["user"] == NOTE.user
        assert {ask(question)["status"] for question in dashboards_questions()} == {"success"}
    finally:
        watching.terminate()
        watching.wait(30)


def _listening(pid):
    """Return the port that a process listens at, empty for none yet."""
    sockets = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(handle))
        except OSError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            return str(int(fields[1].rpartition(":")[2], 16))
    return ""
