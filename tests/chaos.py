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
import math
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_faults import FAULTS, MOST_SECONDS, STALL_SECONDS, Disturbed, Sweep, is_whole, launch, log_of
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
figures: [success]
"""
STUCK_SWEEP = """
plugins: [chaos_planner]
resources: {stall_seconds: STALL}
"""
STUCK_PLANNER = "  stuck: {core: stuck, adjoint: unrolled, mark: MARK}\n"
STUCK_MODULE = '''
import time
from pathlib import Path

import torch
from torch import nn

from datagen.spec import Spec
from planners.cores import Injected
from planners.specs import Entry


class Options(Spec):
    mark: str = ""


class Stuck(nn.Module):
    """Waits for ever where it finds the mark, which it takes away; not before it has trained, while all may be slow."""

    def __init__(self, options, *, wrap, actions=4, in_channels=2):
        super().__init__()
        self.mark, self.calls = Path(options.mark), 0
        self.reward = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.head = nn.Conv2d(4, actions, 1)

    def encode(self, x):
        self.calls += 1
        if self.calls > 20 and self.mark.exists():
            self.mark.unlink(missing_ok=True)
            while True:
                time.sleep(1)
        return Injected((self.reward(x),))

    def initial_value(self, r):
        return torch.zeros_like(r.per_sample[0][:, :1])

    def step(self, v, r):
        return (r.per_sample[0] + 0.5 * v).amax(1, keepdim=True) * 0.5

    def policy(self, v, r):
        return self.head(r.per_sample[0] + v)


CORES = {"stuck": Entry("chaos_planner:Stuck", Options)}
'''


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
            sweep.end_beside()
            if sum(sweep.redone.values()) and any(not is_whole(trial) for trial in sweep.trials()):
                continue  # the second driver was at it when it was damaged
            return hits


def _begun(sweep: Sweep) -> bool:
    return any(log_of(trial) for trial in sweep.trials())


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
        # A result that was damaged is made again, from the last checkpoint: no epoch is trained twice.
        again = sweep.redone[trial.name]
        if log.count(" COMPLETED") != 1 + again or after.count(" started on ") > again or ": loss " in after:
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
    folder: Path,
    storage: Path,
    faults: int,
    kinds: list[str],
    seed: int,
    say: Callable[[str], None],
    undisturbed: Callable[[Sweep], dict[str, dict[str, object]]] = run_undisturbed,
    options: tuple[str, ...] = (),
    launch: Callable[..., Any] = launch,
    **size: object,
) -> dict[str, int]:
    """Run the sweep undisturbed and disturbed, compare, and return how many faults of each kind hit."""
    path = folder / "chaos.yaml"
    path.write_text(
        SWEEP.replace("SEEDS", str(size.get("seeds", [0, 1, 2]))).replace("EPOCHS", str(size.get("epochs", 6)))
    )
    if "hang" in kinds:
        (folder / "chaos_planner.py").write_text(STUCK_MODULE)
        text = path.read_text().replace("data: {", f"{STUCK_PLANNER.replace('MARK', str(folder / 'mark'))}data: {{")
        path.write_text(text + STUCK_SWEEP.replace("STALL", f"{STALL_SECONDS:g}"))
    calm = Sweep(path, folder / "undisturbed")
    expected = undisturbed(calm)
    say(f"undisturbed: {len(expected)} trials")
    together = int("first" in kinds)
    if together:
        run_together(Sweep(path, folder / "together"), expected)
        say("three first runs at once: the same table")
    kinds = [kind for kind in kinds if kind != "first"]
    disturbed = Sweep(path, storage, options=options, launch=launch)
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
    return hits | {"first": together} if together else hits


def run_together(sweep: Sweep, expected: dict[str, dict[str, object]]) -> None:
    """Let three drivers begin on a storage that is not there yet: all must end well, and nothing be done twice."""
    names = [f"stderr-{number}" for number in range(3)]
    drivers = [sweep.start(name) for name in names]
    for name, driver in zip(names, drivers, strict=True):
        code = driver.wait(2 * MOST_SECONDS)
        stderr = (sweep.path.parent / name).read_text()
        if code or "Traceback (most recent call last)" in stderr:
            raise Disturbed(f"of three first runs one ended with {code}:\n{stderr}")
    check(sweep, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=[*FAULTS, "first"], default=[*FAULTS, "first"])
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
            folder, left = Path(name) / f"sweep{number}", options.faults - hits.total() + hits["first"]
            folder.mkdir()
            place, seed = storage / f"sweep{number}", options.seed + number
            new = campaign(folder, place, left, options.kinds, seed, say, epochs=options.epochs)
            hits += Counter(new)
            say(f"the same table; faults so far: {dict(hits)}")
            options.kinds = [kind for kind in options.kinds if kind != "first"]
            if hits.total() - hits["first"] >= options.faults:
                break
            if not any(new.values()):
                raise SystemExit("no fault of these kinds can hit here")
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
