"""A small real sweep, disturbed at random moments, must end with the table of an undisturbed one.

    python tests/chaos.py [--faults 20] [--seed 0] [--kinds driver worker ...]

Each fault hits a run of `idp run`; whatever ends is started again with the same command, until the sweep is done. Then
every number must be the undisturbed run's, and no trial may have been begun again after it was complete. Where a sweep
is done before all faults have hit, another one takes the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_server import MLflowServer

SWEEP = """
name: chaos
planners:
  vin: {core: vin, adjoint: unrolled, hidden_channels: 8, q_channels: 4}
  id-vin: {core: vin, adjoint: implicit, hidden_channels: 8, q_channels: 4}
data: {train: 256, valid: 32, test: 32}
tasks: [{map_size: 9}]
grid: {k: [6], seed: SEEDS}
training: {epochs: EPOCHS}
"""
NUMBERS = ("status", "test_success_rate", "test_optimality", "test_spl", "train_loss", "forward_residual", "epochs")
MOST_SECONDS = 240.0
"""A run that says nothing for so long hangs, which is a failure."""


@dataclass
class Sweep:
    """A sweep on a storage of its own."""

    path: Path
    storage: Path
    server: MLflowServer | None = None

    def start(self) -> subprocess.Popen[str]:
        command = [*self._command("run"), "--json"]
        folder = self.path.parent
        with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
            environment = {**os.environ, "IDP_LEASE_SECONDS": "6"}
            return subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True, env=environment)

    def _command(self, verb: str) -> list[str]:
        command = [sys.executable, "-m", "orchestrator", verb, str(self.path), "--storage", str(self.storage)]
        return [*command, "--tracking-uri", self.server.address] if self.server else command

    def sync(self) -> None:
        """Send MLflow what it has not seen while it was down."""
        subprocess.run(self._command("sync"), check=True, stdout=subprocess.DEVNULL)

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
            continue
        parents.setdefault(parent, []).append(int(path.name))
    found, ahead = [], [pid]
    while ahead:
        below = parents.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def _of_kind(pid: int, word: bytes) -> list[int]:
    found = []
    for process in descendants(pid):
        try:
            if word in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue
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
    return _kill(_of_kind(driver.pid, b"ImplicitFunc"), chance)


def kill_node(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    return _kill(_of_kind(driver.pid, b"raylet/raylet"), chance)


def kill_head(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    return _kill(_of_kind(driver.pid, b"gcs_server"), chance)


def interrupt(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    driver.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
    return True


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


def fill_disk(sweep: Sweep, driver: subprocess.Popen[str], chance: random.Random) -> bool:
    """Leave no room in the storage for a while; it must be a small file system of its own."""
    room = os.statvfs(sweep.storage)
    if room.f_blocks * room.f_frsize > 2**29:
        return False
    filler = sweep.storage / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass
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
    "checkpoint": damage_checkpoint,
    "shard": damage_shard,
    "disk": fill_disk,
    "tracking": stop_tracking,
}


class Disturbed(AssertionError):
    """The sweep did not end as the undisturbed one did."""


def run_undisturbed(sweep: Sweep) -> dict[str, dict[str, object]]:
    driver = sweep.start()
    if driver.wait(MOST_SECONDS):
        raise Disturbed((sweep.path.parent / "stderr").read_text())
    return sweep.results()


def disturb(
    sweep: Sweep, faults: int, kinds: list[str], seed: int, say: Callable[[str], None], wait: float = 8.0
) -> dict[str, int]:
    """Run the sweep with `faults` faults and return how many of each kind hit.

    Args:
        sweep: The sweep.
        faults: How many faults.
        kinds: Keys of `FAULTS`.
        seed: Of the moments and the kinds.
        say: Is told what happens.
        wait: Most seconds between a fault and the next.
    """
    chance = random.Random(seed)
    hits = dict.fromkeys(kinds, 0)
    runs = 0
    while True:
        runs += 1
        if runs > 3 * faults + 10:
            raise Disturbed("the sweep does not come to an end")
        driver = sweep.start()
        deadline = time.monotonic() + MOST_SECONDS
        # Most faults come once this run trains; some while it starts.
        early = chance.random() < 0.25
        moment = time.monotonic() + chance.uniform(1.0, wait) if early else math.inf
        while driver.poll() is None:
            if time.monotonic() > deadline:
                driver.kill()
                raise Disturbed(f"run {runs} hangs:\n{(sweep.path.parent / 'stderr').read_text()}")
            if moment == math.inf and " epoch " in (sweep.path.parent / "stderr").read_text():
                moment = time.monotonic() + chance.uniform(0.0, wait / 4)
            if sum(hits.values()) < faults and time.monotonic() > moment and _begun(sweep):
                # What has hit least goes first, in random order.
                for kind in sorted(kinds, key=lambda kind: (hits[kind], chance.random())):
                    if driver.poll() is None and FAULTS[kind](sweep, driver, chance):
                        hits[kind] += 1
                        say(f"run {runs}: {kind}")
                        break
                moment = time.monotonic() + chance.uniform(0.5, wait)
            time.sleep(0.05)
        stderr = (sweep.path.parent / "stderr").read_text()
        say(f"run {runs}: exit {driver.returncode}: {(stderr.strip().splitlines() or [''])[-1][:150]}")
        if "Traceback (most recent call last)" in stderr:
            raise Disturbed(f"run {runs} ended with a traceback:\n{stderr}")
        if driver.returncode == 0:
            return hits


def _begun(sweep: Sweep) -> bool:
    return any((trial / "log.txt").exists() for trial in sweep.trials())


def check(sweep: Sweep, expected: dict[str, dict[str, object]]) -> None:
    """Raise where the sweep has not come out as it should, or has done something again."""
    found = sweep.results()
    if found != expected:
        different = {
            name: (found.get(name), numbers) for name, numbers in expected.items() if found.get(name) != numbers
        }
        raise Disturbed(f"other numbers (disturbed, undisturbed): {different}")
    for trial in sweep.trials():
        log = (trial / "log.txt").read_text()
        after = log.partition(" COMPLETED")[2]
        if _mlflow_runs(sweep).get(f"trial:{trial.name}") != ["FINISHED"]:
            raise Disturbed(f"{trial.name} has not one finished run in MLflow: {_mlflow_runs(sweep)}")
        if log.count(" COMPLETED") != 1 or " started on " in after or " epoch " in after:
            raise Disturbed(f"{trial.name} was run again after it was complete:\n{log}")


def _mlflow_runs(sweep: Sweep) -> dict[str, list[str]]:
    """Return the states of the runs of each trial."""
    query = (
        "select t.value, r.status from runs r join tags t using (run_uuid) "
        "where t.key = 'idp.key' and r.lifecycle_stage = 'active'"
    )
    found: dict[str, list[str]] = {}
    database = sweep.server.folder if sweep.server else sweep.storage
    with contextlib.closing(sqlite3.connect(database / "mlflow.db")) as connection:
        for key, status in connection.execute(query):
            found.setdefault(key, []).append(status)
    return found


def campaign(
    folder: Path, storage: Path, faults: int, kinds: list[str], seed: int, say: Callable[[str], None], **size: object
) -> dict[str, int]:
    """Run the sweep undisturbed and disturbed, compare, and return how many faults of each kind hit."""
    path = folder / "chaos.yaml"
    path.write_text(
        SWEEP.replace("SEEDS", str(size.get("seeds", [0, 1, 2]))).replace("EPOCHS", str(size.get("epochs", 6)))
    )
    calm = Sweep(path, folder / "undisturbed")
    expected = run_undisturbed(calm)
    say(f"undisturbed: {len(expected)} trials")
    disturbed = Sweep(path, storage)
    if "tracking" in kinds:
        disturbed.server = MLflowServer(f"sqlite:///{folder}/mlflow.db", folder)
        disturbed.server.start()
    try:
        hits = disturb(disturbed, faults, kinds, seed, say, wait=float(str(size.get("wait", 8.0))))
        if disturbed.server:
            while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
                time.sleep(0.2)
            disturbed.sync()
        check(disturbed, expected)
    finally:
        if disturbed.server:
            disturbed.server.stop()
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--storage", type=Path, help="an empty folder; for full disks, a small file system of its own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idp-chaos-") as name:
        storage = options.storage or Path(name) / "storage"
        started = time.monotonic()

        def say(line: str) -> None:
            print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

        hits = Counter[str]()
        for number in itertools.count():
            folder, left = Path(name) / f"sweep{number}", options.faults - hits.total()
            folder.mkdir()
            place, seed = storage / f"sweep{number}", options.seed + number
            new = campaign(folder, place, left, options.kinds, seed, say, epochs=options.epochs)
            hits += Counter(new)
            say(f"the same table; faults so far: {dict(hits)}")
            if hits.total() >= options.faults:
                break
            if not any(new.values()):
                raise SystemExit("no fault of these kinds can hit here")
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
