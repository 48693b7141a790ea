"""A long run: thousands of small trials with faults all along, whose memory, files and numbers must stay as they are.

    python tests/soak.py [--minutes 240] [--trials 2000] [--storage DIR]

One sweep after another is run in one storage until the time is over, each to its end: drivers, workers, nodes and heads
are killed and hung up, results and shards damaged, MLflow taken away, and the disk filled where the storage is a small
file system of its own. All the while this watches the driver's memory and open files. (The clock is left alone: the
machine's is everybody's, and under libfaketime 0.9.10 Python's `time.sleep` fails with EINVAL, so that Ray does not
start. No lease or time-out of ours compares two clocks.)

At the end every trial must be complete, trained once, with the numbers of an undisturbed run; the table of the last
sweep must be that of an undisturbed one; no driver may have grown with the hours; and after `idp gc --remove` nothing
may be left that a storage without faults has not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos_faults import FAULTS, Disturbed, Sweep
from mlflow_server import MLflowServer

SWEEP = """
name: soak-NUMBER
planners: {vin: {core: vin, adjoint: unrolled, hidden_channels: 4, q_channels: 2}}
data: {train: 32, valid: 8, test: 8}
tasks: [{map_size: 5}]
grid: {k: [3], seed: SEEDS}
training: {epochs: 2}
"""
LEFT_OUT = ("first", "hang", "second", "sleep", "checkpoint", "curves")
"""Faults that need more than a trial of a moment has: a second driver, a long epoch, a checkpoint that is not final."""

MOST_SECONDS = 900.0
"""A run that says nothing for so long hangs; compiling kernels, on a busy machine, takes minutes."""

GROWTH = 1.5
"""A driver of the last third may need so many times the memory of one of the first."""

SAMPLE = 12
"""Trials of each sweep that are run again, undisturbed, to compare."""


@dataclass
class Watch:
    """What was seen of the drivers, one life each."""

    peaks: list[tuple[float, int, int]] = field(default_factory=list)
    """Most MiB, most open files and threads of each driver that lived long enough to train."""
    _now: tuple[float, int, int] = (0.0, 0, 0)

    def look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmRSS" in fields:
            seen = int(fields["VmRSS"].split()[0]) / 1024, files, int(fields["Threads"])
            self._now = tuple(map(max, self._now, seen))  # type: ignore[assignment]

    def ended(self, trained: bool) -> None:
        if trained:
            self.peaks.append(self._now)
        self._now = (0.0, 0, 0)

    def thirds(self) -> list[list[float]]:
        """Return the medians over the drivers of the first and the last third."""
        third = max(1, len(self.peaks) // 3)
        return [
            [statistics.median(column) for column in zip(*part, strict=True)]
            for part in (self.peaks[:third], self.peaks[-third:])
        ]


def run(
    sweep: Sweep, kinds: list[str], every: float, until: float, chance: random.Random, watch: Watch
) -> Counter[str]:
    """Run a sweep to its end, with faults until the time is over, and return how many of each kind hit."""
    hits: Counter[str] = Counter()
    stderr = sweep.path.parent / "stderr"
    failed = 0
    while True:
        driver = sweep.start()
        moment = time.monotonic() + chance.expovariate(1 / every)
        said, deadline = 0, time.monotonic() + MOST_SECONDS
        while driver.poll() is None:
            watch.look(driver.pid)
            if (size := stderr.stat().st_size) != said:
                said, deadline = size, time.monotonic() + MOST_SECONDS
            if time.monotonic() > deadline:
                driver.kill()
                raise Disturbed(f"nothing was said for {MOST_SECONDS:g} s:\n{stderr.read_text()[-4000:]}")
            if moment < time.monotonic() < until and " epoch " in stderr.read_text():
                for kind in sorted(kinds, key=lambda kind: (hits[kind], chance.random())):
                    if driver.poll() is None and FAULTS[kind](sweep, driver, chance):
                        hits[kind] += 1
                        break
                moment = time.monotonic() + chance.expovariate(1 / every)
            time.sleep(0.1)
        text = stderr.read_text()
        watch.ended(" epoch " in text)
        if "Traceback (most recent call last)" in text:
            raise Disturbed(f"a driver ended with a traceback:\n{text[-4000:]}")
        if driver.returncode == 0:
            return hits
        failed += 1
        if failed > sum(hits.values()) + 10:
            raise Disturbed(f"the sweep does not come to an end:\n{text[-4000:]}")


def verb(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, "-m", "orchestrator", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise Disturbed(f"idp {words[0]}: {done.stderr}")
    return done.stdout


def rows(storage: Path, seeds: list[int] | None = None) -> dict[str, object]:
    """Return what the trials have come to, by their ids."""
    found = {}
    for trial in (storage / "trials").iterdir():
        spec = json.loads((trial / "spec.json").read_text())
        if seeds is None or spec["seed"] in seeds:
            result = json.loads((trial / "result.json").read_text())
            found[trial.name] = [result[name] for name in ("status", "test_success_rate", "train_loss", "epochs")]
    return found


def check(
    path: Path, storage: Path, seeds: list[int], redone: Counter[str], folder: Path, chance: random.Random
) -> None:
    """Raise where a trial of the sweep is not complete, was trained twice or has other numbers than it should."""
    found = rows(storage, seeds)
    if len(found) != len(seeds) or {row[0] for row in found.values()} != {"COMPLETED"}:  # type: ignore[index]
        raise Disturbed(f"{len(found)} trials of {len(seeds)}: {Counter(row[0] for row in found.values())}")  # type: ignore[index]
    for name in found:
        log = (storage / "trials" / name / "log.txt").read_text()
        if log.count(" COMPLETED") != 1 + redone[name] or ": loss " in log.partition(" COMPLETED")[2]:
            raise Disturbed(f"{name} was run again after it was complete:\n{log}")
    some = sorted(chance.sample(seeds, min(SAMPLE, len(seeds))))
    only = f"seed={','.join(map(str, some))}"
    verb("run", path, "--in-process", "--storage", folder / "calm", "--tracking-uri", "none", "--only", only)
    calm = rows(folder / "calm", some)
    if calm != {name: found[name] for name in calm} or len(calm) != len(some):
        raise Disturbed(f"other numbers than undisturbed: {calm}, {[found.get(name) for name in calm]}")


def check_table(path: Path, storage: Path, folder: Path) -> None:
    """Raise where the table of a whole sweep is not that of an undisturbed run."""
    verb("run", path, "--in-process", "--storage", folder / "whole", "--tracking-uri", "none")
    # Times are of the machine, and differ without any fault.
    found, calm = (
        [
            {name: value for name, value in row.items() if "seconds" not in name and "memory" not in name}
            for row in json.loads(verb("table", path, "--json", "--storage", place))["rows"]
        ]
        for place in (storage, folder / "whole")
    )
    if found != calm:
        raise Disturbed(f"another table than undisturbed: {found}, {calm}")


def left_over(storage: Path) -> list[str]:
    """Return what lies in a storage that nobody needs."""
    verb("gc", "--remove", "--storage", storage)
    odd = [*storage.glob("**/*.tmp"), *storage.glob("sweeps/*/ray/*"), *storage.glob("working/*")]
    usual = {".lease", "spec.json", "result.json", "curves.parquet", "checkpoint.pt", "log.txt"}
    for trial in (storage / "trials").iterdir():
        names = Counter(path.name.partition("-")[0] for path in trial.iterdir())
        odd += [trial / name for name, count in names.items() if name not in usual or count > 1]
    return [str(path.relative_to(storage)) for path in odd]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=240.0)
    parser.add_argument("--trials", type=int, default=2000, help="of each sweep")
    parser.add_argument(
        "--every", type=float, help="seconds between faults, on average (default: a fortieth of the time, at most 45)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", type=Path, help="an empty folder; for full disks, a small file system of its own")
    options = parser.parse_args()
    chance, watch, hits = random.Random(options.seed), Watch(), Counter[str]()
    kinds = [kind for kind in FAULTS if kind not in LEFT_OUT]
    started = time.monotonic()
    until = started + 60.0 * options.minutes
    every = options.every or min(45.0, 1.5 * options.minutes)
    with tempfile.TemporaryDirectory(prefix="idp-soak-") as name:
        folder = Path(name)
        storage = options.storage or folder / "storage"
        server = MLflowServer(f"sqlite:///{folder}/mlflow.db", folder)
        server.start()
        done = number = 0
        try:
            while number == 0 or time.monotonic() < until:
                seeds = list(range(done, done + options.trials))
                path = folder / "soak.yaml"
                path.write_text(SWEEP.replace("NUMBER", str(number)).replace("SEEDS", str(seeds)))
                sweep = Sweep(path, storage, server=server)
                hits += run(sweep, kinds, every, until, chance, watch)
                check(path, storage, seeds, sweep.redone, folder, chance)
                done, number = done + options.trials, number + 1
                now = watch.peaks[-1] if watch.peaks else (0.0, 0, 0)
                print(
                    f"{(time.monotonic() - started) / 60:7.1f} min  {done} trials, {sum(hits.values())} faults, "
                    f"{len(watch.peaks)} drivers; the last: {now[0]:.0f} MiB, {now[1]} files, {now[2]} threads",
                    flush=True,
                )
            check_table(path, storage, folder)
        finally:
            server.stop()
        if odd := left_over(storage):
            raise Disturbed(f"left over: {odd[:20]} and {max(0, len(odd) - 20)} more")
        first, last = watch.thirds()
        grown = [now / max(before, 1e-9) for before, now in zip(first, last, strict=True)]
        print(f"faults: {dict(hits)}; MiB, files, threads of drivers: {first} at first, {last} at last")
        if max(grown) > GROWTH:
            raise Disturbed(f"drivers have grown {max(grown):.2f} times")


if __name__ == "__main__":
    main()
