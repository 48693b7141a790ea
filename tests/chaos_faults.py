"""What may happen to a running sweep: the faults of chaos.py, and the sweep that they hit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from mlflow_server import MLflowServer

NUMBERS = ("status", "test_success_rate", "test_optimality", "test_spl", "train_loss", "forward_residual", "epochs")
MOST_SECONDS = 240.0
"""A run that says nothing for so long hangs, which is a failure."""

STALL_SECONDS = 8.0
"""A trial of the sweep with a planner that hangs may stand still for so long."""


class Disturbed(AssertionError):
    """The sweep did not end as the undisturbed one did."""


def launch(words: list[str], stderr: TextIO) -> subprocess.Popen[str]:
    """Start a driver as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        env={**os.environ, "IDP_LEASE_SECONDS": "6"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup's children ignore it
    )


@dataclass
class Sweep:
    """A sweep on a storage of its own, with a second driver beside the first at times.

    `redone` counts, by trial, how often its result was damaged once it was there: it must be made again. `options` are
    those of `idp run`, which `launch` starts.
    """

    path: Path
    storage: Path
    server: MLflowServer | None = None
    beside: tuple[subprocess.Popen[str], Path] | None = None
    redone: Counter[str] = field(default_factory=Counter)
    options: tuple[str, ...] = ()
    launch: Callable[[list[str], TextIO], subprocess.Popen[str]] = launch

    def start(self, name: str = "stderr") -> subprocess.Popen[str]:
        with (self.path.parent / name).open("w") as stderr:
            return self.launch([*self._words("run"), "--json", *self.options], stderr)

    def start_beside(self) -> bool:
        """Start a second driver; False where there is one."""
        if self.beside is not None and self.beside[0].poll() is None:
            return False
        self.end_beside()
        self.beside = self.start("stderr-beside"), self.path.parent / "stderr-beside"
        return True

    def end_beside(self) -> None:
        """Wait for the second driver, which may end as it likes, but with a word."""
        if self.beside is None:
            return
        (driver, stderr), self.beside = self.beside, None
        try:
            driver.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            driver.kill()
            raise Disturbed(f"the second driver hangs:\n{stderr.read_text()}") from None
        if "Traceback (most recent call last)" in stderr.read_text():
            raise Disturbed(f"the second driver ended with a traceback:\n{stderr.read_text()}")

    def _words(self, verb: str) -> list[str]:
        words = [verb, str(self.path), "--storage", str(self.storage)]
        return [*words, "--tracking-uri", self.server.address] if self.server else words

    def sync(self) -> None:
        """Send MLflow what it has not seen while it was down."""
        subprocess.run(
            [sys.executable, "-m", "orchestrator", *self._words("sync")], check=True, stdout=subprocess.DEVNULL
        )

    def trials(self) -> list[Path]:
        return sorted(path for path in (self.storage / "trials").glob("*") if path.is_dir())

    def results(self) -> dict[str, dict[str, object]]:
        found = {}
        for trial in self.trials():
            result = json.loads((trial / "result.json").read_text())
            found[trial.name] = {name: result[name] for name in NUMBERS}
        return found


def descendants(pid: int) -> list[int]:
    """Return all processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        parents.setdefault(parent, []).append(int(path.name))
    found, ahead = [], [pid]
    while ahead:
        below = parents.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def of_kind(pid: int, word: bytes) -> list[int]:
    """Return the processes below `pid` in whose command line a word stands."""
    found = []
    for process in descendants(pid):
        try:
            if word in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue  # it has just ended
    return found


def _kill(pids: list[int], chance: random.Random) -> bool:
    if not pids:
        return False
    os.kill(chance.choice(pids), signal.SIGKILL)
    return True


def kill_driver(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    driver.kill()
    return True


def kill_worker(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    return _kill(of_kind(driver.pid, b"ImplicitFunc"), chance)


def kill_node(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    return _kill(of_kind(driver.pid, b"raylet/raylet"), chance)


def kill_head(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    return _kill(of_kind(driver.pid, b"gcs_server"), chance)


def interrupt(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    driver.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
    return True


def hang_up(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Close the terminal, which all processes of the run are told at once."""
    if "stopping by" in (sweep.path.parent / "stderr").read_text():
        return False  # on its way out already
    os.killpg(driver.pid, signal.SIGHUP)
    return True


def start_second(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    return sweep.start_beside()


def fall_asleep(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Stop the driver and all below it for longer than a lease holds, while a second driver takes over."""
    if not sweep.start_beside():
        return False
    asleep = [driver.pid, *descendants(driver.pid)]
    for signalled in (signal.SIGSTOP, signal.SIGCONT):
        for process in asleep:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signalled)
        if signalled == signal.SIGSTOP:
            time.sleep(chance.uniform(8.0, 16.0))
    return True


def hang(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Let a plug-in's planner wait for ever in the middle of a batch."""
    mark = sweep.path.parent / "mark"
    mark.touch()
    deadline = time.monotonic() + 4.0
    while time.monotonic() < deadline:
        if not mark.exists():
            return True
        time.sleep(0.05)
    try:
        mark.unlink()
    except FileNotFoundError:  # taken at the last moment
        return True
    return False


def damage_result(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Damage the result of a finished trial: it must be made again, without training."""
    found = [trial for trial in sweep.trials() if " COMPLETED" in log_of(trial) and is_whole(trial)]
    if not found:
        return False
    trial = chance.choice(found)
    driver.kill()
    if sweep.beside is not None:  # or it may have been read, and be whole for good, where it is looked for
        sweep.beside[0].kill()
        sweep.beside[0].wait()
        sweep.beside = None
    driver.wait()
    (trial / "result.json").write_bytes((trial / "result.json").read_bytes()[: chance.choice([0, 100])])
    sweep.redone[trial.name] += 1
    return True


def damage_curves(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Damage the curves of a finished trial, whose numbers are in its result all the same."""
    found = [trial / "curves.parquet" for trial in sweep.trials() if (trial / "result.json").exists()]
    found = [path for path in found if path.exists()]
    if not found:
        return False
    _damage(chance.choice(found), chance)
    return True


def is_whole(trial: Path) -> bool:
    try:
        return isinstance(json.loads((trial / "result.json").read_bytes()), dict)
    except (OSError, ValueError):
        return False


def log_of(trial: Path) -> str:
    try:
        return (trial / "log.txt").read_text()
    except FileNotFoundError:
        return ""


def damage_checkpoint(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Damage what an unfinished trial would go on from, then kill the driver so that it must."""
    running = [trial for trial in sweep.trials() if not (trial / "result.json").exists()]
    found = [path for trial in running for path in trial.glob("c*.p*")]
    if not found:
        return False
    driver.kill()
    _damage(chance.choice(found), chance)
    return True


def damage_shard(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    found = sorted((sweep.storage / "datasets").glob("*/*.parquet")) + sorted(
        (sweep.storage / "datasets").glob("*/manifest.json")
    )
    if not found:
        return False
    driver.kill()
    _damage(chance.choice(found), chance)
    return True


def _damage(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        path.write_bytes(content[: len(content) // 2])
        return
    for place in range(chance.randrange(40), len(content), 40):
        content[place] ^= 0x55
    path.write_bytes(content)


def _of_its_own(storage: Path) -> bool:
    """Return whether the storage is a small file system, which nobody else is on."""
    room = os.statvfs(storage)
    return room.f_blocks * room.f_frsize <= 2**29


def freeze(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Let every write into the storage wait for a while, as on a file server that is away.

    Half of the times for longer than the watchdog has patience, the kernel's alarm included.
    """
    if not _of_its_own(sweep.storage) or subprocess.run(["fsfreeze", "--freeze", sweep.storage]).returncode:
        return False
    try:
        time.sleep(chance.choice([chance.uniform(3.0, 10.0), STALL_SECONDS + 37.0]))
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", sweep.storage], check=True)
    return True


def fill_disk(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Leave no room in the storage for a while; it must be a small file system of its own."""
    if not _of_its_own(sweep.storage):
        return False
    filler = sweep.storage / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass  # the disk is full, which is what was wanted
    with contextlib.suppress(subprocess.TimeoutExpired):  # it may have nothing to write just now
        driver.wait(30)
    filler.unlink()
    return True


def stop_tracking(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Kill the MLflow server; it comes back some seconds later."""
    if sweep.server is None or not sweep.server.answers():
        return False
    sweep.server.stop(signal.SIGKILL)
    threading.Timer(chance.uniform(1.0, 15.0), sweep.server.start).start()
    return True


FAULTS: dict[str, Callable[[Sweep, subprocess.Popen[str], random.Random], bool]] = {
    "driver": kill_driver,
    "worker": kill_worker,
    "node": kill_node,
    "head": kill_head,
    "interrupt": interrupt,
    "hangup": hang_up,
    "second": start_second,
    "sleep": fall_asleep,
    "hang": hang,
    "result": damage_result,
    "curves": damage_curves,
    "checkpoint": damage_checkpoint,
    "shard": damage_shard,
    "disk": fill_disk,
    "frozen": freeze,
    "tracking": stop_tracking,
}
