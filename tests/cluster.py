"""A real Ray head with a token and two processors, which all tests of a session share that need not start their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

from forkserver import Forkserver

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
MOST_SECONDS = 180.0
"""How long a head may take to answer."""


def token_environment(folder: Path) -> dict[str, str]:
    """Return what makes a process use the token in a folder, which is made there; Ray asks when it is imported."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}


class Head:
    """`ray start --head`, with the dashboard that takes jobs.

    Args:
        folder: Where it writes; a short path, since Ray's sockets have long names.
        environment: What `token_environment` has returned.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        gcs, dashboard, agent, client = free_ports(4)
        self.address, self.jobs_address = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self.storage, self._log = folder / "storage", folder / "head.log"
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}", "--node-ip-address=127.0.0.1"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [
            "--include-log-monitor=False",
            "--no-monitor",  # nothing grows and shrinks this cluster
            "--num-cpus=1",
            "--object-store-memory=80000000",
            f"--temp-dir={folder / 'ray'}",
        ]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={client}"]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, **environment, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.environment["RAY_prestart_worker_first_driver"] = "0"  # nobody would use what it starts ahead
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**self.environment, "IDP_STORAGE": str(self.storage)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, idp: Forkserver) -> None:
        """Return once it takes jobs."""
        deadline = time.monotonic() + MOST_SECONDS
        while (answer := idp("status", "--address", self.jobs_address)).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Ray head does not answer: {answer.stderr}{self._log.read_text()}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End it with all its processes."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
