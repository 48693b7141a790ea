"""Several machines in one: a sweep over Ray nodes that share nothing but the storage, two of which are lost on the way.

    python tests/multinode.py [--epochs 40]

Each machine is a set of namespaces: its own network, joined to the others by a bridge, its own processes, host name and
temporary files. One is cut off from the network in the middle of the sweep, another is killed. The sweep must end by
itself with the numbers of a run on a single machine. Needs root and Linux; says so and does nothing without.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos import SWEEP, Disturbed, Sweep, check

NETWORK = "10.213.77"
PORT = 9479
MOST_SECONDS = 400.0
WORKERS = ("anna", "boris", "clara")
FAST_DETECTION = {
    # A lost machine is noticed after some 5 s; Ray's own settings take up to a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


def why_not() -> str:
    """Return why machines can't be made here, empty where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"missing programs: {', '.join(missing)}"
    tried = subprocess.run(["ip", "netns", "add", "idp-probe"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "idp-probe"], check=True)
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Machine:
    """A Ray node in namespaces of its own.

    Attributes:
        name: Its host name.
        address: Its address on the bridge.
        process: What all its processes end with.
    """

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def inside(self, *command: str) -> list[str]:
        """Return a command that runs another one on this machine."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return ["nsenter", "--target", child, "--net", "--uts", "--pid", "--mount", *command]

    def cut_off(self) -> None:
        ip("-n", "idp-switch", "link", "set", self.name, "down")

    def kill(self) -> None:
        # The namespace's first process dies with it, and all others with that one: as when the power goes.
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def network() -> Iterator[None]:
    # The bridge has a namespace too, since a firewall (Docker's, say) may drop what passes one beside it.
    names = ("head", *WORKERS)
    try:
        ip("netns", "add", "idp-switch")
        ip("-n", "idp-switch", "link", "add", "bridge", "type", "bridge")
        ip("-n", "idp-switch", "link", "set", "bridge", "up")
        for number, name in enumerate(names, start=1):
            own = f"idp-{name}"
            ip("netns", "add", own)
            ip("-n", "idp-switch", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", own)
            ip("-n", "idp-switch", "link", "set", name, "master", "bridge", "up")
            ip("-n", own, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")
            ip("-n", own, "link", "set", "lo", "up")
        yield
    finally:
        for name in (*names, "switch"):
            subprocess.run(["ip", "netns", "del", f"idp-{name}"], capture_output=True)


def start(name: str, address: str, environment: dict[str, str], own: Path, log: Path) -> Machine:
    """Start a machine; `own` is the folder that each has for itself."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}"]
    ray += ["--object-store-memory=80000000", "--disable-usage-stats"]
    # The head is not lost in this test, so it has none of the trials.
    ray += (
        ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={own / 'ray'}"]
        if name == "head"
        else [f"--address={NETWORK}.1:{PORT}", "--num-cpus=1"]
    )
    script = f'hostname {name} && mount -t tmpfs -o size=2g tmpfs {own} && exec "$@"'
    command = ["ip", "netns", "exec", f"idp-{name}"]
    command += ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += ["sh", "-c", script, "sh", *ray]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    return Machine(name, address, process)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, Machine]]:
    """Yield a head and three workers, by name."""
    own, token = folder / "own", folder / "token"
    own.mkdir()
    token.write_text(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), OMP_NUM_THREADS="1", **FAST_DETECTION)
    machines: dict[str, Machine] = {}
    with network():
        try:
            for number, name in enumerate(("head", *WORKERS), start=1):
                log = folder / f"{name}.log"
                machines[name] = start(name, f"{NETWORK}.{number}", dict(os.environ), own, log)
                if name == "head":
                    _wait_for_text(log, "runtime started", machines[name])
            for name in WORKERS:
                _wait_for_text(folder / f"{name}.log", "runtime started", machines[name])
            yield machines
        finally:
            for machine in machines.values():
                machine.kill()


def _wait_for_text(log: Path, text: str, machine: Machine) -> None:
    deadline = time.monotonic() + 90.0
    while text not in log.read_text():
        if machine.process.poll() is not None or time.monotonic() > deadline:
            raise Disturbed(f"{machine.name} does not start:\n{log.read_text()}")
        time.sleep(0.2)


def run_on(machine: Machine, sweep: Path, storage: Path, log: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "orchestrator", "run", str(sweep), "--storage", str(storage)]
    with log.open("wb") as file:
        return subprocess.Popen(
            machine.inside(*words, "--address", f"{NETWORK}.1:{PORT}"),
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


def hosts_of(sweep: Sweep) -> dict[str, list[str]]:
    """Return the machines that have begun each trial, first to last."""
    logs = {trial.name: trial / "log.txt" for trial in sweep.trials()}
    return {name: re.findall(r"started on (\w+),", log.read_text()) for name, log in logs.items() if log.exists()}


def working(sweep: Sweep, host: str) -> list[str]:
    """Return the trials that a machine is in the middle of, with at least one epoch behind it."""
    found = []
    for name, hosts in hosts_of(sweep).items():
        log = (sweep.storage / "trials" / name / "log.txt").read_text()
        after = log.rpartition(f"started on {host},")[2]
        if hosts[-1] == host and " epoch " in after and " COMPLETED" not in after:
            found.append(name)
    return found


def lose(sweep: Sweep, machine: Machine, how: Callable[[], None], driver: subprocess.Popen[bytes]) -> str:
    """Lose a machine in the middle of a trial, and return the trial."""
    deadline = time.monotonic() + MOST_SECONDS
    while not (trials := working(sweep, machine.name)):
        if driver.poll() is not None or time.monotonic() > deadline:
            raise Disturbed(f"{machine.name} is not in the middle of any trial: {hosts_of(sweep)}")
        time.sleep(0.05)
    how()
    return trials[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}")
        return
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="idp-multinode-") as name:
        folder = Path(name)
        path = folder / "chaos.yaml"
        path.write_text(SWEEP.replace("SEEDS", "[0, 1, 2, 3]").replace("EPOCHS", str(options.epochs)))
        alone = Sweep(path, folder / "alone")
        if alone.start().wait(MOST_SECONDS):
            raise Disturbed((folder / "stderr").read_text())
        expected = alone.results()
        say(f"on one machine: {len(expected)} trials")
        with cluster(folder) as machines:
            say(f"a head and {len(WORKERS)} workers, each in its own namespaces")
            refused = run_on(machines["head"], path, folder / "own" / "storage", folder / "refused.log")
            said = (refused.wait(MOST_SECONDS), (folder / "refused.log").read_text())
            if said[0] != 2 or "is not shared by all machines" not in said[1] or "Traceback" in said[1]:
                raise Disturbed(f"a storage that each machine has for itself was not refused: {said}")
            say(f"a storage that each has for itself: {said[1].strip().splitlines()[-1]}")
            spread = Sweep(path, folder / "shared")
            driver = run_on(machines["head"], path, spread.storage, folder / "driver.log")
            try:
                watch(spread, machines, driver, say)
                code = driver.wait(MOST_SECONDS)
            finally:
                driver.send_signal(signal.SIGKILL)
            output = (folder / "driver.log").read_text()
            if code or "Traceback" in output:
                raise Disturbed(f"the sweep ended with {code}:\n{output}")
            check(spread, expected)
            say("every number is that of the single machine, each trial was completed once; the table:")
            print(re.search(r"^planner +K.*?\n\n", output, re.MULTILINE | re.DOTALL)[0])  # type: ignore[index]


def watch(
    sweep: Sweep, machines: dict[str, Machine], driver: subprocess.Popen[bytes], say: Callable[[str], None]
) -> None:
    """Lose two machines, and see that others take their trials over."""
    cut = lose(sweep, machines["boris"], machines["boris"].cut_off, driver)
    say(f"boris is cut off in the middle of {cut}")
    killed = lose(sweep, machines["clara"], machines["clara"].kill, driver)
    say(f"clara is killed in the middle of {killed}")
    deadline = time.monotonic() + MOST_SECONDS
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    hosts = hosts_of(sweep)
    say(f"the sweep ended; machines that worked on each trial: {hosts}")
    if {host for names in hosts.values() for host in names} != set(WORKERS):
        raise Disturbed(f"not all machines had trials: {hosts}")
    for trial, lost in ((cut, "boris"), (killed, "clara")):
        if hosts[trial][-1] == lost:
            raise Disturbed(f"{trial} was not taken over from {lost}: {hosts[trial]}")


if __name__ == "__main__":
    main()
