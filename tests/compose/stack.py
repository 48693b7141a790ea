"""The stack under test: compose in a copy of the tree, its secrets, and requests to it from either machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine import BASE, COMPOSE, DOCKER, LAB, NGINX, POSTGRES, PROMETHEUS, Engine, inside, shell

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.executable)
OWNER = 1000
"""Who the containers run as, and so who owns secrets and storage; the test itself runs as root."""

_REQUEST = """
import base64, json, sys, urllib.error, urllib.request
url, headers, data = json.loads(sys.argv[1])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(url, headers=headers, data=None if data is None else json.dumps(data).encode())
try:
    with opener.open(request, timeout=20) as answer:
        print(answer.status, answer.read().decode(errors="replace"))
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(errors="replace"))
except OSError as error:
    print(0, error)
"""


class Stack:
    """The stack in a copy of the tree, which an ordinary user's clone would be.

    Args:
        engine: The engine that it runs in.
        scratch: Where the copy and the storage are made.
    """

    def __init__(self, engine: Engine, scratch: Path) -> None:
        self.engine, self.tree, self.storage = engine, scratch / "idp", scratch / "storage"
        self.host = "127.0.0.1"
        self.settings = {
            "IDP_UID": OWNER, "IDP_GID": OWNER, "IDP_STORAGE": self.storage, "IDP_IMAGE": "idp-test/idp:1",
            "POSTGRES_IMAGE": POSTGRES, "NGINX_IMAGE": NGINX, "PROMETHEUS_IMAGE": PROMETHEUS,
            "PYTHON_IMAGE": BASE, "BASE_IMAGE": BASE, "PIP_NO_INDEX": 1,
            "BUILD_NETWORK": "host", "TORCH_INDEX": "", "SHM_SIZE": "1gb", "OBJECT_STORE_MB": 256,
        }  # fmt: skip

    def copy_tree(self) -> None:
        """Copy what git would have cloned, uncommitted changes included, and the wheels that the image is made of."""
        shutil.rmtree(self.tree, ignore_errors=True)
        listed = shell("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        wheels = [path.relative_to(ROOT) for path in (ROOT / "docker/wheelhouse").glob("*.whl")]
        for name in [*map(Path, filter(None, listed.split("\0"))), *wheels]:
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        shell("git", "-C", str(self.tree), "init", "--quiet")

    def write_settings(self, **changes: object) -> None:
        """Write .env: the example with the images that are here; later calls change more."""
        self.settings.update(changes)
        lines = (self.tree / ".env.example").read_text().splitlines()
        names = {line.partition("=")[0] for line in lines if not line.startswith("#")}
        assert set(self.settings) <= names, f".env.example lacks {set(self.settings) - names}"
        kept = [line for line in lines if line.partition("=")[0] not in self.settings]
        (self.tree / ".env").write_text("\n".join([*kept, *(f"{k}={v}" for k, v in self.settings.items())]) + "\n")

    def secret(self, name: str) -> str:
        """Return a secret."""
        return (self.tree / "docker/secrets" / name).read_text()

    def script(self, name: str, *words: str) -> str:
        """Run one of the scripts in docker/."""
        return shell(str(self.tree / "docker" / name), *words, cwd=self.tree, env=self.engine.env)

    def compose(self, *words: str, file: str = "docker-compose.yml") -> str:
        """Run compose in the tree and return what it printed."""
        return shell(
            COMPOSE, "--file", file, *words, cwd=self.tree, env=self.engine.env, stderr=subprocess.PIPE
        )  # fmt: skip

    def remove(self) -> None:
        """Remove every container and volume of the engine, whatever compose knows of them."""
        for kind, words in (("container", ("ls", "--all", "--quiet")), ("volume", ("ls", "--quiet"))):
            if found := self.engine.docker(kind, *words).split():
                self.engine.docker(kind, "rm", "--force", *found)

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        label = "label=com.docker.compose.service=" + service
        found = self.engine.docker("ps", "--all", "--no-trunc", "--quiet", "--filter", label).split()
        assert len(found) == 1, f"{service}: {len(found)} containers"
        return found[0]

    def inspect(self, service: str) -> Any:
        """Return what Docker knows of a service's container."""
        return json.loads(self.engine.docker("inspect", self.container(service)))[0]

    def wait_healthy(self, *services: str, seconds: float = 240) -> None:
        """Wait until services are healthy.

        Raises:
            SystemExit: They are not in time; the last lines of their logs are printed.
        """
        end = time.monotonic() + seconds
        states: dict[str, str] = {}
        while time.monotonic() < end:
            states = {service: self.inspect(service)["State"]["Health"]["Status"] for service in services}
            if set(states.values()) == {"healthy"}:
                return
            time.sleep(2)
        for service, state in states.items():
            if state != "healthy":
                command = [DOCKER, "logs", "--tail", "40", self.container(service)]
                subprocess.run(command, env={**os.environ, **self.engine.env}, stderr=subprocess.STDOUT)
        raise SystemExit(f"compose-test: not healthy after {seconds:.0f} s: {states}")

    def client(self) -> dict[str, str]:
        """Return the variables that a user sets to speak to the cluster."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.tree / "docker/secrets/ray_token"),
            "RAY_API_SERVER_ADDRESS": f"http://{self.host}:8265",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(self.tree),
            "IDP_STORAGE": str(self.storage),
            "no_proxy": "*",
        }

    def command(self, name: str, *words: str, namespace: str = LAB) -> list[str]:
        """Return the words that run one of our programs on a machine."""
        return [*inside(namespace), str(PYTHON.with_name(name)), *words]

    def run(self, name: str, *words: str, namespace: str = LAB, env: dict[str, str] | None = None) -> str:
        """Run one of our programs on a machine, as a user of the cluster, and return what it printed."""
        command = self.command(name, *words, namespace=namespace)
        return shell(*command, cwd=self.tree, env={**self.client(), **(env or {})})

    def ask(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        data: object = None,
        namespace: str = LAB,
        env: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Send an HTTP request and return status and body; status 0 where nothing answers that can be trusted."""
        words = [str(PYTHON), "-c", _REQUEST, json.dumps([url, headers or {}, data])]
        status, _, body = shell(*inside(namespace), *words, env=env).partition(" ")
        return int(status), body

    def listening(self, namespace: str = LAB) -> set[tuple[str, int]]:
        """Return the addresses and TCP ports that a machine itself listens on, containers' own networks aside."""
        lines = shell(*inside(namespace), "ss", "-ltnH").splitlines()
        pairs = (line.split()[3].rpartition(":") for line in lines)
        return {(host.strip("[]").removeprefix("::ffff:"), int(port)) for host, _, port in pairs}
