"""The lab cluster for real: build it, start it, run sweeps on it, attack it, break it, back it up, tear it down.

    make compose-test    (as root; 26 minutes on two busy cores)

Everything happens in an engine and network namespaces of the test's own, which it removes; nothing is pulled.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import engine
from engine import LAB, LAB_ADDRESS, LAPTOP, Engine, shell
from stack import OWNER, Stack

SWEEP, PROFILE = "sweeps/table1.yaml", ("--profile", "smoke")
SERVICES = ("postgres", "mlflow", "head", "worker-cpu")
PUBLIC = {8265, 5000}
SCIENCE = ("success_rate", "optimality", "spl", "success_by_distance")


def check(holds: bool, what: str) -> None:
    """Print what holds; end the test where it does not.

    Raises:
        SystemExit: It does not hold.
    """
    print(f"   {'ok' if holds else 'NOT'}: {what}", flush=True)
    if not holds:
        raise SystemExit("compose-test: failed")


def secrets(stack: Stack) -> None:
    """`make secrets`: random, private, and never overwritten."""
    stack.copy_tree()
    stack.write_settings()
    stack.script("secrets.sh")
    files = sorted((stack.tree / "docker/secrets").iterdir())
    before = [path.read_text() for path in files]
    check(len(set(before)) == 5 and min(map(len, before)) >= 64, "five secrets, each of its own")
    check({(p.stat().st_mode & 0o777, p.stat().st_uid) for p in files} == {(0o600, OWNER)}, "readable by one user")
    stack.script("secrets.sh")
    check([path.read_text() for path in files] == before, "a second `make secrets` changes nothing")
    listed = shell("git", "-C", str(stack.tree), "ls-files", "--others", "--exclude-standard").splitlines()
    check(not [name for name in listed if "secrets/" in name or name == ".env"], "git does not see them")


def build(stack: Stack) -> None:
    """`make image`, from the wheelhouse alone."""
    stack.engine.start()
    stack.engine.make_images()
    stack.compose("build", "head")
    size = int(stack.engine.docker("image", "inspect", "--format", "{{.Size}}", "idp-test/idp:1"))
    user = stack.engine.docker("run", "--rm", "--network", "none", "idp-test/idp:1", "id", "-u").strip()
    check(user == str(OWNER), f"an image of {size / 1e9:.2f} GB, whose user is {user}")
    names = ("/srv/idp", "/opt/idp", "/home/idp")
    found = stack.engine.docker(
        "run",
        "--rm",
        "--network",
        "none",
        "idp-test/idp:1",
        "find",
        *names,
        "-name",
        "*_password",
        "-o",
        "-name",
        ".env",
    )
    check(not found.strip(), "no secret in it")
    stack.engine.stop()


def start(stack: Stack) -> None:
    """`docker compose up -d`, on a machine that another one sees."""
    engine.make_network()
    stack.engine.start(LAB)
    stack.compose("up", "-d")
    stack.wait_healthy(*SERVICES)
    check(True, f"{', '.join(SERVICES)} are healthy")
    restart = {stack.inspect(service)["HostConfig"]["RestartPolicy"]["Name"] for service in SERVICES}
    check(restart == {"unless-stopped"}, "each comes back after a crash")


def closed(stack: Stack) -> None:
    """Nothing is open that should not be."""
    listening = stack.listening()
    check(listening == {("127.0.0.1", port) for port in PUBLIC}, f"the machine listens on {sorted(listening)} only")
    check(
        stack.ask(f"http://{LAB_ADDRESS}:8265/api/gcs_healthz", namespace=LAPTOP)[0] == 0, "the laptop reaches nothing"
    )
    refusals(stack, LAB)
    inner = stack.inspect("head")["NetworkSettings"]["Networks"].popitem()[1]["IPAddress"]
    ports = [6379, 8265, *range(20003, 20009)]
    answers = probe(stack, inner, ports, LAB)
    check(
        set(answers.values()) == {"refused"}, f"without the token the head's own ports refuse, too: {sorted(answers)}"
    )
    network = stack.inspect("head")["HostConfig"]["NetworkMode"]
    words = "export RAY_AUTH_MODE=disabled; timeout 60 ray start --address head:6379"
    joined = subprocess.run(
        [engine.DOCKER, "run", "--rm", "--network", network, "idp-test/idp:1", "bash", "-c", words],
        env={**os.environ, **stack.engine.env}, capture_output=True, text=True,
    )  # fmt: skip
    check(joined.returncode != 0, "a worker without the token can't join")


def refusals(stack: Stack, namespace: str) -> None:
    """Published ports refuse whoever shows no token or password, or a wrong one."""
    ray, mlflow = f"http://{stack.host}:8265", f"http://{stack.host}:5000"

    def status(url: str, headers: dict[str, str] | None = None, data: object = None) -> int:
        return stack.ask(url, headers, data, namespace)[0]

    job = {"entrypoint": "touch /tmp/broken-into"}
    check(status(f"{ray}/api/jobs/", data=job) == 401, "a job without a token: 401")
    check(status(f"{ray}/api/jobs/", {"Authorization": "Bearer wrong"}, job) == 403, "a job with a wrong one: 403")
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status", "/logs", "/metrics"):
        check(status(ray + path) == 401, f"Ray's {path}: 401")
    experiments = "/api/2.0/mlflow/experiments/search?max_results=1"
    for path in ("/", experiments, "/ajax-api" + experiments[4:], "/api/2.0/mlflow-artifacts/artifacts", "/graphql"):
        check(status(mlflow + path) == 401, f"MLflow's {path.partition('?')[0]}: 401")
    for login in ("admin:password1234", "admin:admin", "idp:wrong", f"nobody:{stack.secret('mlflow_password')}"):
        check(status(mlflow + experiments, basic(login)) == 401, f"MLflow as {login.partition(':')[0]}, wrongly: 401")
    asked = {**basic(f"idp:{stack.secret('mlflow_password')}"), "Host": "evil.example"}
    check(status(mlflow + experiments, asked) == 403, "MLflow under a foreign host name: 403")
    asked.pop("Host")
    check(status(mlflow + experiments, asked) == 200, "MLflow with the password: 200")
    intruder = {"username": "intruder", "password": "a-long-password"}
    asked["Content-Type"] = "application/json"
    check(status(f"{mlflow}/api/2.0/mlflow/users/create", asked, intruder) == 403, "the writer of runs adds no account")
    check(status(f"{ray}/api/gcs_healthz") == status(f"{mlflow}/health") == 200, "health probes answer anybody")


def basic(login: str) -> dict[str, str]:
    """Return the header of a login."""
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def probe(stack: Stack, address: str, ports: list[int], namespace: str) -> dict[int, str]:
    """Return what each port says to a client without the token."""
    script = Path(__file__).with_name("probe.py")
    found = json.loads(stack.run("python", str(script), address, *map(str, ports), namespace=namespace))
    return {int(port): answer for port, answer in found.items()}


def table(stack: Stack, storage: Path, *words: str) -> list[dict[str, object]]:
    """Return the rows of the sweep's table, what was measured in seconds and bytes left out."""
    rows = json.loads(stack.run("idp", "table", SWEEP, *PROFILE, "--storage", str(storage), "--format", "json", *words))
    return [{"axes": row["axes"], "used": row["used"], **{key: row[key] for key in SCIENCE}} for row in rows["rows"]]


def disturbed(stack: Stack) -> None:
    """`idp submit`, and while it runs a worker crashes and MLflow is restarted."""
    job = json.loads(stack.run("idp", "submit", SWEEP, *PROFILE, "--json"))["job"]
    follow = subprocess.Popen(
        stack.command("idp", "logs", job, "--follow"), cwd=stack.tree, env={**os.environ, **stack.client()},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: done(stack) >= 3, "three trials")
    state = stack.inspect("worker-cpu")["State"]
    os.kill(state["Pid"], 9)
    stack.compose("restart", "mlflow")
    at = done(stack)
    check(at < 24, f"after {at} of 24 trials the worker's container was killed and MLflow restarted")
    said, _ = follow.communicate(timeout=1200)
    print("".join(f"      {line}\n" for line in said.splitlines()[-34:]))
    check(follow.returncode == 0, f"the job {job} went on to its end")
    stack.wait_healthy(*SERVICES)
    check(stack.inspect("worker-cpu")["State"]["StartedAt"] > state["StartedAt"], "the worker came back by itself")
    status = json.loads(stack.run("idp", "status", SWEEP, *PROFILE, "--json"))
    check((status["done"], status["trials"]) == (24, 24), "idp status: 24 of 24 done")
    check(all(row["used"] == 1 for row in table(stack, stack.storage)), "the table is complete")
    check({path.stat().st_uid for path in stack.storage.rglob("*")} == {OWNER}, f"all files belong to user {OWNER}")


def done(stack: Stack) -> int:
    """Return how many trials have a result."""
    return len(list(stack.storage.glob("trials/*/result.json")))


def wait_for(holds: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait until something holds.

    Raises:
        SystemExit: It does not in time.
    """
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"compose-test: no {what} after {seconds:.0f} s")
        time.sleep(1)


def undisturbed(stack: Stack) -> None:
    """`ray submit SWEEP sweeps/run.py`, part of the same sweep into a storage of its own: the same numbers."""
    only = ("--only", "planner=id-vin")
    stack.run("ray", "submit", SWEEP, "sweeps/run.py", "--", *PROFILE, *only, "--storage", "/storage/again")
    check(True, f"ray submit {SWEEP} sweeps/run.py ran to its end")
    again = table(stack, stack.storage / "again", *only)
    expected = table(stack, stack.storage, *only)
    check(len(again) == 4 and again == expected, "four trials again: the numbers of the disturbed sweep, to the bit")


def tracked(stack: Stack) -> None:
    """MLflow has the sweep, in PostgreSQL, with artifacts through its own store."""
    query = "select count(*) from runs r join experiments e using (experiment_id) where e.name = 'table1'"
    query += " and r.status = 'FINISHED'"
    count = stack.compose("exec", "-T", "postgres", "psql", "-At", "-U", "mlflow", "-d", "mlflow", "-c", query)
    check(int(count) >= 24 * 2 + 1, f"PostgreSQL has {int(count)} finished runs: 24 trials, 24 means, the sweep")
    inside = ("exec", "-T", "head", "docker/entrypoint.sh", "idp")
    again = json.loads(stack.compose(*inside, "sync", SWEEP, *PROFILE, "--json"))
    check(again["trials"] == 24, "idp sync brings it up to date from the storage")
    found = json.loads(stack.compose(*inside, "doctor", "--address", "http://127.0.0.1:8265", "--json"))
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    check("failed" not in states.values(), f"idp doctor inside the head: {states}")
    folder, names = artifact(stack)
    check(bool(names), f"artifacts of the sweep, by HTTP: {names}")
    check(folder.startswith("mlflow-artifacts:"), "they went through MLflow")


def artifact(stack: Stack) -> tuple[str, list[str]]:
    """Return where the sweep's own run keeps artifacts, and their names and sizes."""
    api, login = f"http://{stack.host}:5000/api/2.0/mlflow", basic(f"idp:{stack.secret('mlflow_password')}")
    experiment = json.loads(stack.ask(f"{api}/experiments/get-by-name?experiment_name=table1", login)[1])["experiment"]
    search = {
        "experiment_ids": [experiment["experiment_id"]], "filter": "tags.`idp.kind` = 'sweep'",
        "order_by": ["attributes.start_time ASC"],
    }  # fmt: skip
    login_json = {**login, "Content-Type": "application/json"}
    run = json.loads(stack.ask(f"{api}/runs/search", login_json, search)[1])["runs"][0]
    found = json.loads(stack.ask(f"{api}/artifacts/list?run_id={run['info']['run_id']}", login)[1])
    return run["info"]["artifact_uri"], sorted(f"{f['path']} ({f.get('file_size', 0)})" for f in found.get("files", []))


def silent(stack: Stack) -> None:
    """No secret is in a log, in what Docker shows of a container, in a process list or in what was sent as a job."""
    values = [stack.secret(path.name) for path in (stack.tree / "docker/secrets").iterdir()]
    for service in SERVICES:
        both = subprocess.run(
            [engine.DOCKER, "logs", stack.container(service)], env={**os.environ, **stack.engine.env},
            capture_output=True, text=True,
        )  # fmt: skip
        shown = both.stdout + both.stderr + json.dumps(stack.inspect(service))
        check(not any(value in shown for value in values), f"{service}: no secret in its log or in docker inspect")
    processes = shell("ps", "-eo", "args")
    check(not any(value in processes for value in values), "no secret in a process's arguments")
    for service in ("head", "worker-cpu"):
        pattern = "|".join(values)
        found = stack.compose("exec", "-T", service, "sh", "-c", f"grep -rlE '{pattern}' /tmp/ray/ || true")
        check(not found.strip(), f"{service}: no secret in Ray's own logs or packages {found}")


def restarted_head(stack: Stack) -> None:
    """The head restarts: workers come back to it, and a sweep submitted again finds its results."""
    stack.compose("restart", "head")
    stack.wait_healthy(*SERVICES)

    def workers() -> bool:
        states = json.loads(
            stack.run("ray", "list", "nodes", "--address", f"http://{stack.host}:8265", "--format", "json")
        )
        return any(node["state"] == "ALIVE" and not node["is_head_node"] for node in states)

    wait_for(workers, "worker on the new head", 180)
    said = stack.run("idp", "submit", SWEEP, *PROFILE, "--json")
    log = stack.run("idp", "logs", json.loads(said)["job"], "--follow")
    check("[1/" not in log and "id-convgppn" in log, "submitted again, the sweep trains nothing and prints its table")


def encrypted(stack: Stack) -> None:
    """The profile `tls`: a laptop that knows the authority reaches both services, nobody does in the clear."""
    stack.script("certificate.sh", LAB_ADDRESS)
    stack.write_settings(TLS_ADDRESS=LAB_ADDRESS)
    stack.compose("up", "-d", "tls")
    stack.wait_healthy("tls")
    authority = str(stack.tree / "docker/secrets/tls/authority.crt")
    knowing = {"SSL_CERT_FILE": authority, "REQUESTS_CA_BUNDLE": authority}
    token, password = {"Authorization": f"Bearer {stack.secret('ray_token')}"}, stack.secret("mlflow_password")
    experiments = "5443/api/2.0/mlflow/experiments/search?max_results=1"
    for name, place, login in (("Ray", "8443/api/version", token), ("MLflow", experiments, basic(f"idp:{password}"))):
        url = f"{LAB_ADDRESS}:{place}"
        answers = [
            stack.ask(f"https://{url}", login, namespace=LAPTOP, env=knowing)[0],
            stack.ask(f"https://{url}", namespace=LAPTOP, env=knowing)[0],
            stack.ask(f"https://{url}", login, namespace=LAPTOP)[0],
            stack.ask(f"http://{url}", login, namespace=LAPTOP)[0],
        ]
        said = "200; without password 401, without the authority nothing, in the clear 400"
        check(answers == [200, 401, 0, 400], f"{name} from the laptop: {said}")
    user = {**knowing, "RAY_API_SERVER_ADDRESS": f"https://{LAB_ADDRESS}:8443"}
    words = ("--only", "planner=id-vin", "--json")
    job = json.loads(stack.run("idp", "submit", SWEEP, *PROFILE, *words, namespace=LAPTOP, env=user))["job"]
    said = stack.run("idp", "logs", job, "--follow", namespace=LAPTOP, env=user)
    check("id-vin" in said, "a sweep submitted and followed over TLS prints its table")
    stack.compose("rm", "--stop", "--force", "tls")


def watched(stack: Stack) -> None:
    """The profile `monitoring`: Prometheus has everybody's numbers, and alerts when a service is gone."""
    stack.compose("up", "-d", "metrics", "prometheus")
    stack.wait_healthy("metrics", "prometheus")

    def value(question: str) -> float:
        query = urllib.parse.urlencode({"query": question})
        found = json.loads(stack.ask(f"http://127.0.0.1:9090/api/v1/query?{query}")[1])["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    wait_for(lambda: value("count(up == 1)") == 4, "numbers of the storage, both Ray nodes and Prometheus itself")
    check(value('idp_trials{state="completed"}') == 24, "Prometheus: 24 completed trials")
    check(value("sum(idp_service_up)") == 3, "MLflow, the head and the worker are up")
    open_ports = {pair for pair in stack.listening() if pair[1] == 9090}
    check(open_ports == {("127.0.0.1", 9090)}, "it listens on this machine's own address only")
    stack.compose("stop", "mlflow")
    wait_for(lambda: value('ALERTS{alertname="Unhealthy", alertstate="firing", service="mlflow"}') == 1, "alert")
    check(True, "MLflow is stopped: the alert Unhealthy fires")
    stack.compose("start", "mlflow")
    stack.wait_healthy("mlflow")
    wait_for(lambda: value('ALERTS{alertname="Unhealthy"}') == 0, "end of the alert")
    check(True, "MLflow is back: it ends")
    stack.compose("rm", "--stop", "--force", "metrics", "prometheus")


def backed_up(stack: Stack) -> None:
    """Back up, lose everything, restore."""
    before, rows = artifact(stack), table(stack, stack.storage)
    backup = stack.tree.parent / "backup"
    print("     ", stack.script("backup.sh", str(backup)).strip())
    check(backup.stat().st_mode & 0o777 == 0o700, "the backup, which holds the secrets, is private")
    stack.compose("down", "--volumes")
    for path in (stack.storage, stack.tree / "docker/secrets"):
        shutil.rmtree(path)
    (stack.tree / ".env").unlink()
    check(True, "volumes, storage, secrets and .env are gone")
    stack.script("restore.sh", str(backup))
    stack.wait_healthy(*SERVICES)
    check(artifact(stack) == before, "MLflow has its runs and artifacts again")
    check(table(stack, stack.storage) == rows, "the table is the same")
    check({path.stat().st_uid for path in stack.storage.rglob("*")} == {OWNER}, f"all files belong to user {OWNER}")


def upgraded(stack: Stack) -> None:
    """Another image, MLflow's database brought to its version, a new password: everything still there."""
    before = artifact(stack)
    old = stack.secret("mlflow_password")
    stack.engine.docker("tag", "idp-test/idp:1", "idp-test/idp:2")
    stack.write_settings(IDP_IMAGE="idp-test/idp:2")
    stack.compose("stop", "mlflow")
    stack.compose("run", "--rm", "mlflow", "mlflow-upgrade")
    (stack.tree / "docker/secrets/mlflow_password").unlink()
    stack.script("secrets.sh")
    stack.compose("up", "-d", "--force-recreate")
    stack.wait_healthy(*SERVICES)
    check(stack.inspect("head")["Config"]["Image"] == "idp-test/idp:2", "the stack runs the other image")
    check(artifact(stack) == before, "MLflow still has its runs and artifacts")
    experiments = f"http://{stack.host}:5000/api/2.0/mlflow/experiments/search?max_results=1"
    check(stack.ask(experiments, basic(f"idp:{old}"))[0] == 401, "the old password is one no more")


def several_machines(stack: Stack) -> None:
    """compose.worker.yml: Ray on the machine's own address, a sweep from the laptop."""
    stack.compose("down")
    stack.host = LAB_ADDRESS
    stack.write_settings(BIND_ADDRESS=LAB_ADDRESS, HEAD_ADDRESS=LAB_ADDRESS)
    stack.compose("up", "-d", "mlflow")
    nodes = ("--profile", "head", "--profile", "cpu")
    stack.compose(*nodes, "up", "-d", file="compose.worker.yml")
    stack.wait_healthy(*SERVICES)
    rules = stack.script("firewall.sh", "10.77.0.0/24")
    spans = [line.split(" port ")[1].split()[0].partition(":") for line in rules.splitlines() if " port " in line]
    let_in = [range(int(first), int(last or first) + 1) for first, _, last in spans]
    ports = sorted({port for host, port in stack.listening() if host != "127.0.0.1"})
    covered = [port for port in ports if any(port in span for span in let_in)]
    check({6379, 8265, 5000, 20003, 21003} <= set(covered), f"docker/firewall.sh lets in {covered}")
    left = sorted(set(ports) - set(covered))
    check(all(port in (20000, 20001, 20002, 21000) for port in left), f"it keeps out {left}, the metrics")
    answers = probe(stack, LAB_ADDRESS, covered, LAPTOP)
    check(set(answers.values()) == {"refused"}, "each that it lets in refuses who has no token")
    refusals(stack, LAPTOP)
    words = ("--set", "grid.seed=[7]", "--only", "planner=id-vin,task=manipulation")
    job = json.loads(stack.run("idp", "submit", SWEEP, *PROFILE, *words, "--json", namespace=LAPTOP))["job"]
    said = stack.run("idp", "logs", job, "--follow", namespace=LAPTOP)
    check("[2/2]" in said, "a sweep submitted from the laptop ran to its end")
    stack.compose(*nodes, "down", file="compose.worker.yml")


STEPS: tuple[Callable[[Stack], None], ...] = (
    secrets, build, start, closed, disturbed, undisturbed, tracked, silent, restarted_head, encrypted, watched,
    backed_up, upgraded, several_machines,
)  # fmt: skip


def main() -> None:
    """Run all steps, then remove everything that was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/idp-compose"))
    parser.add_argument("--keep-images", action="store_true", help="leave the engine's data for the next run")
    parser.add_argument("--skip", nargs="+", default=[], choices=[step.__name__ for step in STEPS])
    options = parser.parse_args()
    if os.getuid():
        raise SystemExit("compose-test: an engine of its own needs root: sudo make compose-test")
    engine.install()
    options.scratch.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.scratch / "backup", ignore_errors=True)
    shutil.rmtree(options.scratch / "storage", ignore_errors=True)
    docker = Engine(options.scratch)
    stack = Stack(docker, options.scratch)
    began = time.monotonic()
    try:
        for step in STEPS:
            if step.__name__ not in options.skip:
                print(
                    f"== {step.__name__}: {(step.__doc__ or '').strip()}  [{time.monotonic() - began:.0f} s]",
                    flush=True,
                )
                step(stack)
    finally:
        if docker.running:
            stack.remove()
        docker.stop()
        engine.remove_network()
        for path in options.scratch.iterdir():
            if not (options.keep_images and path.name == "engine"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"compose-test: passed in {time.monotonic() - began:.0f} s; everything it made is removed")


if __name__ == "__main__":
    main()
