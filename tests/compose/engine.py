"""A Docker engine of the test's own, in a network namespace of its own, and images that nothing is pulled for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ["docker.io", "docker-compose", "debootstrap", "iproute2", "iptables"]
LAB, LAPTOP = "idp-test-lab", "idp-test-laptop"
LAB_ADDRESS, LAPTOP_ADDRESS = "10.77.0.1", "10.77.0.2"
BASE = "idp-test/bookworm:1"
POSTGRES, NGINX, PROMETHEUS = STAND_INS = ("idp-test/postgres:1", "idp-test/nginx:1", "idp-test/prometheus:1")
DOCKER, COMPOSE = "/usr/bin/docker", "/usr/bin/docker-compose"  # Debian's: they build without a plug-in


def shell(*words: str, env: dict[str, str] | None = None, **options: object) -> str:
    """Run a command and return what it printed; its error output goes to ours.

    Raises:
        SystemExit: It failed.
    """
    done = subprocess.run(  # type: ignore[call-overload]
        words, text=True, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}, **options
    )
    if done.returncode:
        print(done.stdout, (done.stderr or "")[-4000:], sep="\n")
        raise SystemExit(f"compose-test: {' '.join(words)}: exit code {done.returncode}")
    return str(done.stdout)


def install() -> None:
    """Install the engine and what makes images, from Debian's packages, where they are missing."""
    if subprocess.run(["dpkg", "-s", *PACKAGES], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        shell("apt-get", "update", "-qq")
        # policy-rc.d or not, the service that the package starts is not ours to use.
        shell(
            "apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES,
            env={"DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip


def inside(namespace: str) -> list[str]:
    """Return what to put before a command, so that it runs in a network namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def make_network() -> None:
    """Make two machines that see each other and nothing else: the lab's and somebody's laptop."""
    remove_network()
    for name in (LAB, LAPTOP):
        shell("ip", "netns", "add", name)
    shell("ip", "link", "add", "eth0", "netns", LAB, "type", "veth", "peer", "name", "eth0", "netns", LAPTOP)
    for name, address in ((LAB, LAB_ADDRESS), (LAPTOP, LAPTOP_ADDRESS)):
        shell("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        shell("ip", "-n", name, "link", "set", "lo", "up")
        shell("ip", "-n", name, "link", "set", "eth0", "up")


def remove_network() -> None:
    """Remove the two machines, where they are."""
    for name in (LAB, LAPTOP):
        if Path("/run/netns", name).exists():
            shell("ip", "netns", "delete", name)


class Engine:
    """A Docker engine with everything that is its own under one directory.

    Args:
        scratch: The directory.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        # A short path: a socket's may have 107 characters.
        self.env = {
            "DOCKER_HOST": f"unix://{scratch}/docker.sock",
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ['PATH']}",
        }

    def start(self, namespace: str | None = None) -> None:
        """Start it, in a namespace or beside us, and wait until it answers."""
        home = self.scratch / "engine"
        home.mkdir(parents=True, exist_ok=True)
        command = [
            *(inside(namespace) if namespace else []), "dockerd", "--host", self.env["DOCKER_HOST"],
            "--data-root", str(home / "data"), "--exec-root", str(home / "exec"), "--pidfile", str(home / "pid"),
        ]  # fmt: skip
        with (self.scratch / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(120):
            if subprocess.run([DOCKER, "version"], env={**os.environ, **self.env}, capture_output=True).returncode == 0:
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.5)
        raise SystemExit(f"compose-test: the engine does not start: {self.scratch}/dockerd.log")

    def stop(self) -> None:
        """Stop it; containers with a restart policy come back with the next start."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=120)
        self._process = None
        # Network namespaces of containers stay mounted, and what is mounted can't be removed.
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (place := Path(line.split()[1])).is_relative_to(self.scratch):
                shell("umount", str(place))

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def docker(self, *words: str) -> str:
        """Run a docker command and return what it printed."""
        return shell(DOCKER, *words, env=self.env)

    def has_image(self, name: str) -> bool:
        """Whether the image is there."""
        return bool(self.docker("images", "--quiet", name).strip())

    def make_images(self) -> None:
        """Make the images that a lab would pull: the base, and what stands in for the official ones."""
        if not self.has_image(BASE):
            root = self.scratch / "bookworm"
            shell("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root))
            with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
                shell(DOCKER, "import", "-", BASE, env=self.env, stdin=tar.stdout)
            shutil.rmtree(root)
        for name in STAND_INS:
            if not self.has_image(name):
                stage = name.partition("/")[2].partition(":")[0]
                self.docker(
                    "build", "--quiet", "--network", "host", "--build-arg", f"BASE_IMAGE={BASE}", "--target", stage,
                    "--tag", name, "--file", str(HERE / "images.Dockerfile"), str(HERE),
                )  # fmt: skip
