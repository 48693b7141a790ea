"""What the files of the lab cluster promise, as far as reading tells; `make compose-test` runs the stack itself."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = ("docker-compose.yml", "compose.worker.yml")
WATCHERS = {"metrics", "prometheus", "grafana"}
BESIDE = WATCHERS | {"tls"}
"""Services of profiles that a cluster works without."""
MADE_OF = ("docker-compose.yml", "compose.worker.yml", "docker/ray-node.yml", ".env.example", "Dockerfile")


def settings() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def resolved(name: str, **changed: str) -> dict:
    """Return a compose file as compose would read it: `extends` followed, variables of .env put in."""
    values = settings() | changed

    def put_in(found: re.Match[str]) -> str:
        variable, default = found[1], found[2]
        value = values.get(variable, "")
        assert value or default is not None or variable in values, f"{name}: {variable} is not in .env.example"
        assert value or not (default or "").startswith("?"), f"{name}: {variable} must be set"
        return value or (default or "").removeprefix("-")

    text = re.sub(r"(?<!\$)\$\{(\w+):?([-?][^}]*)?\}", put_in, (ROOT / name).read_text())
    content = yaml.safe_load(text)
    for service in content["services"].values():
        if extended := service.pop("extends", None):
            parent = resolved(extended["file"], **changed)["services"][extended["service"]]
            for key, value in parent.items():
                if isinstance(value, dict):
                    service[key] = value | service.get(key, {})
                elif isinstance(value, list):
                    service[key] = value + [entry for entry in service.get(key, []) if entry not in value]
                else:
                    service.setdefault(key, value)
    return content


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> dict:
    return resolved(request.param, BIND_ADDRESS="10.0.0.7", HEAD_ADDRESS="10.0.0.7")


def test_every_service_restarts_is_probed_and_gains_no_privileges(file: dict) -> None:
    for name, service in file["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged") and "pid" not in service, name
        assert service["cap_drop"] == ["ALL"], name
        # PostgreSQL's own entrypoint gives files to its user and becomes it.
        expected = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"} if name == "postgres" else set()
        assert set(service.get("cap_add", [])) == expected, name


def test_no_service_takes_the_machine_along(file: dict) -> None:
    for name, service in file["services"].items():
        if name in BESIDE:
            assert service["pids_limit"] <= 256 and service["mem_limit"] in ("512m", "1g", "2g"), name
            continue
        assert 256 <= service["pids_limit"] <= 32768, name
        variable = {"postgres": "POSTGRES_MEMORY", "mlflow": "MLFLOW_MEMORY", "head": "HEAD_MEMORY"}.get(name)
        assert service["mem_limit"] == (settings()[variable] if variable else 0), name
    worker = resolved("docker-compose.yml", NODE_MEMORY="12000m")["services"]["worker-cpu"]
    assert worker["mem_limit"] == "12000m"


def test_who_runs_anybodys_code_does_not_reach_the_database() -> None:
    file = resolved("docker-compose.yml")
    networks = {name: set(service["networks"]) for name, service in file["services"].items()}
    assert networks["postgres"] == {"back"} and file["networks"]["back"] == {"internal": True}
    assert networks["mlflow"] == {"front", "back"}
    assert all(networks[name] == {"front"} for name in ("head", "worker-cpu", "worker-gpu"))


def test_images_are_pinned(file: dict) -> None:
    for name, service in file["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"
    for variable in ("PYTHON_IMAGE", "BASE_IMAGE"):
        assert re.search(r":\d+\.\d+", settings()[variable])
        assert f"ARG {variable}={settings()[variable]}\n" in (ROOT / "Dockerfile").read_text()


def test_the_image_has_all_that_the_wheel_is_made_of() -> None:
    """Else `make image` ends where the wheel is built; the engine that would say so is not everywhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    stage = (ROOT / "Dockerfile").read_text().partition(" AS project\n")[2].partition("\nFROM ")[0]
    copied = {word for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE"}
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in let_in for name in copied)


def test_who_watches_is_asked_for_sees_and_changes_nothing_and_is_seen_from_here_alone() -> None:
    services = resolved(FILES[0], BIND_ADDRESS="10.0.0.7", COMPOSE_PROFILES="cpu,monitoring")["services"]
    assert {name for name, service in services.items() if service.get("profiles") == ["monitoring"]} == WATCHERS
    for name in WATCHERS:
        service = services[name]
        assert service["networks"] == ["front"] and "secrets" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert all(volume.endswith(":ro") for volume in service["volumes"] if volume != "prometheus:/prometheus"), name
    config = yaml.safe_load((ROOT / "docker/monitoring/prometheus/prometheus.yml").read_text())
    asked = {name: job for job in config["scrape_configs"] for name in [job["job_name"]]}
    assert asked["idp"]["static_configs"] == [{"targets": ["metrics:9464"]}]
    nodes = {entry["names"][0]: entry["port"] for entry in asked["ray"]["dns_sd_configs"]}
    ports = {name: int(services[name]["environment"]["NODE_PORTS"]) for name in ("head", "worker-cpu", "worker-gpu")}
    assert nodes == ports


def test_only_two_ports_are_published_and_on_loopback() -> None:
    every = resolved(FILES[0])["services"].items()
    ports = {name: service.get("ports", []) for name, service in every if name not in BESIDE}
    assert {name: each for name, each in ports.items() if each} == {
        "head": ["127.0.0.1:8265:8265"],
        "mlflow": ["127.0.0.1:5000:5000"],
    }


def test_ray_asks_for_a_token_on_every_node(file: dict) -> None:
    nodes = [service for service in file["services"].values() if service.get("command", [""])[0].startswith("ray-")]
    assert len(nodes) == 3
    for service in nodes:
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "ray_token" in service["secrets"]
        assert any(volume.endswith(":/storage") for volume in service["volumes"])


def test_services_start_when_what_they_need_is_healthy() -> None:
    services = {name: each for name, each in resolved(FILES[0])["services"].items() if name not in BESIDE}
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert needs == {
        "postgres": {},
        "mlflow": {"postgres": {"condition": "service_healthy"}},
        "head": {},
        "worker-cpu": {"head": {"condition": "service_healthy"}},
        "worker-gpu": {"head": {"condition": "service_healthy"}},
    }
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert (profiles["worker-cpu"], profiles["worker-gpu"], profiles["head"]) == (["cpu"], ["gpu"], [])


def test_one_gpu_worker_takes_all_gpus(file: dict) -> None:
    reserved = file["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_the_object_store_fits_into_shared_memory(file: dict) -> None:
    gigabytes = float(settings()["SHM_SIZE"].removesuffix("gb"))
    assert int(settings()["OBJECT_STORE_MB"]) / 1024 < gigabytes
    nodes = [service for service in file["services"].values() if "OBJECT_STORE_MB" in service.get("environment", {})]
    assert len(nodes) == 3 and all(node["shm_size"] == settings()["SHM_SIZE"] for node in nodes)


def test_blocks_of_ports_do_not_overlap() -> None:
    values = settings()
    blocks = sorted(int(values[name]) for name in ("HEAD_PORTS", "CPU_PORTS", "GPU_PORTS"))
    assert all(after - before >= 1000 for before, after in pairwise(blocks))
    single = [int(values[name]) for name in ("RAY_PORT", "DASHBOARD_PORT", "MLFLOW_PORT")]
    assert not any(block <= port < block + 1000 for block in blocks for port in single)


def test_no_secret_has_a_default(file: dict) -> None:
    for name, secret in file["secrets"].items():
        assert secret == {"file": f"docker/secrets/{name}"}
    for name in MADE_OF:
        for line in (ROOT / name).read_text().splitlines():
            given = re.search(r"(?i)(password|token|secret|key)\w*\s*[:=]\s*(\S+)", line.partition("#")[0])
            assert given is None or given[2].startswith(("/run/secrets/", "{", "token", "[")), f"{name}: {line}"


def test_no_secret_gets_into_git_or_the_image() -> None:
    ignored = ["docker/secrets/ray_token", ".env", "docker/wheelhouse/torch.whl"]
    found = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 128:  # not a git repository
        assert found.stdout.split() == ignored
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in kept and "docker/secrets" in kept and not any(line.startswith("!.") for line in kept)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of what `make secrets` needs."""
    (tmp_path / "docker").mkdir()
    for name in ("secrets.sh", "stack.sh"):
        shutil.copy(ROOT / "docker" / name, tmp_path / "docker")
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def run(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(script), *words], capture_output=True, text=True)


def test_make_secrets_makes_private_random_files_once(tree: Path) -> None:
    example = (tree / ".env.example").read_text().replace("IDP_STORAGE=/srv/idp-storage", f"IDP_STORAGE={tree}/s")
    owner = os.getuid() or 1000
    (tree / ".env").write_text(example.replace("IDP_UID=1000", f"IDP_UID={owner}"))
    assert run(tree / "docker/secrets.sh").returncode == 0
    made = sorted((tree / "docker/secrets").iterdir())
    contents = [path.read_text() for path in made]
    assert {path.name for path in made} == set(resolved(FILES[0])["secrets"])
    assert len(set(contents)) == len(made) and all(re.fullmatch(r"[0-9a-f]{64}", text) for text in contents)
    assert {(stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in made} == {(0o600, owner)}
    assert (tree / "s").stat().st_uid == owner
    assert run(tree / "docker/secrets.sh").returncode == 0
    assert [path.read_text() for path in made] == contents


def test_make_secrets_leaves_a_quarter_of_the_memory_to_the_machine(tree: Path) -> None:
    run(tree / "docker/secrets.sh")  # refuses to go on as root, with a .env made
    values = dict(line.split("=", 1) for line in (tree / ".env").read_text().splitlines() if "=" in line[:20])
    kilobytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024
    assert int(values["NODE_MEMORY"].removesuffix("m")) * 1024 <= 0.76 * kilobytes
    assert int(values["NODE_MEMORY"].removesuffix("m")) > 0


def test_make_secrets_refuses_containers_that_run_as_root(tree: Path) -> None:
    (tree / ".env").write_text((tree / ".env.example").read_text().replace("IDP_UID=1000", "IDP_UID=0"))
    refused = run(tree / "docker/secrets.sh")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "IDP_UID" in refused.stderr


def test_the_firewall_lets_in_every_port_but_the_metrics(tree: Path) -> None:
    shutil.copy(ROOT / "docker/firewall.sh", tree / "docker")
    assert run(tree / "docker/firewall.sh", "10.0.0.0/24").returncode == 2  # no .env yet
    shutil.copy(tree / ".env.example", tree / ".env")
    printed = run(tree / "docker/firewall.sh", "10.0.0.0/24").stdout
    assert re.findall(r"port ([\d:]+)", printed) == [
        "6379",
        "8265",
        "5000",
        "20003:20999",
        "21003:21999",
        "22003:22999",
    ]


@pytest.fixture
def firewall(tree: Path) -> Path:
    shutil.copy(tree / ".env.example", tree / ".env")
    return Path(shutil.copy(ROOT / "docker/firewall.sh", tree / "docker"))


@pytest.mark.parametrize("network", ["10.0.0.7", "10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "2001:db8:1::/48", "::1"])
def test_the_firewall_takes_a_network(firewall: Path, network: str) -> None:
    printed = run(firewall, network).stdout
    assert printed.count(f"ufw allow proto tcp from {network} to any port ") == 6


@pytest.mark.parametrize(
    "words",
    [
        *(
            [word]
            for word in ("foo", "10.0.0.0/8; rm -rf /", "10.0.0/8", "10.0.0.256", "10.0.0.0/33", "$(id)", "", "fd00")
        ),
        *([word] for word in ("10.0.0.0/8\nreboot", "fd00::/129", "fd00::g", "10.0.0.0/", "any")),
        [],
        ["10.0.0.0/8", "10.1.0.0/16"],
    ],
)
def test_the_firewall_refuses_what_is_no_network(firewall: Path, words: list[str]) -> None:
    refused = run(firewall, *words)
    assert refused.returncode == 2 and refused.stdout == "" and ", such as 192.168.7.0/24" in refused.stderr


def test_the_firewall_takes_the_ports_that_compose_would(firewall: Path) -> None:
    names = ("RAY_PORT", "DASHBOARD_PORT", "MLFLOW_PORT", "HEAD_PORTS", "CPU_PORTS", "GPU_PORTS")
    whole, env = run(firewall, "10.0.0.0/24").stdout, firewall.parents[1] / ".env"
    lines = env.read_text()
    defaults = dict(re.findall(r"\$\{(\w+_PORTS?):-(\d+)\}", "".join((ROOT / name).read_text() for name in MADE_OF)))
    for name in names:  # as in a .env of an earlier version
        env.write_text(re.sub(rf"(?m)^{name}=.*\n", "", lines))
        assert run(firewall, "10.0.0.0/24").stdout == whole and settings()[name] == defaults[name]
        for wrong in ("seven", "0", "65536", "$(id)") + (("64537",) if name.endswith("S") else ()):
            env.write_text(re.sub(rf"(?m)^{name}=.*", f"{name}={wrong}", lines))
            refused = run(firewall, "10.0.0.0/24")
            assert refused.returncode == 2 and refused.stdout == ""
            assert f".env: {name} is {wrong}: expected a port" in refused.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "/nowhere/token"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null", "NODE_ADDRESS": "127.0.0.1"}, "BIND_ADDRESS"),
    ],
)
def test_a_node_refuses_to_start_without_a_token_or_on_loopback(given: dict[str, str], told: str) -> None:
    variables = {
        "PATH": os.environ["PATH"],
        "NODE_PORTS": "20000",
        "RAY_PORT": "6379",
        "DASHBOARD_PORT": "8265",
        **given,
    }
    refused = subprocess.run(
        [ROOT / "docker/entrypoint.sh", "ray-head"], env=variables, capture_output=True, text=True, timeout=20
    )
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and told in refused.stderr


@pytest.mark.parametrize("name", FILES)
def test_compose_accepts_it(name: str, tree: Path) -> None:
    compose = [["docker", "compose"]] if shutil.which("docker") else []
    compose += [["docker-compose"]] if shutil.which("docker-compose") else []
    working = [each for each in compose if subprocess.run([*each, "version"], capture_output=True).returncode == 0]
    if not working:
        pytest.skip("no compose here")
    for part in (*FILES, "docker/ray-node.yml"):
        shutil.copy(ROOT / part, tree / part)
    (tree / ".env").write_text(
        re.sub(r"(?m)^(BIND|HEAD)_ADDRESS=.*", r"\1_ADDRESS=10.0.0.7", (tree / ".env.example").read_text())
    )
    command = [*working[0], "--file", name, "config", "--quiet"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
