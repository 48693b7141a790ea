"""What the orchestration costs per trial: the slope of `idp run` over sweeps of trials that do next to nothing.

python -m benchmarks.orchestration [--trials 16 64 256] [--json]
python -m benchmarks.orchestration --many 2000        # one large sweep; memory of the driver while it runs
python -m benchmarks.orchestration --stored 2000 20000        # what the verbs take beside so many finished trials
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from orchestrator.storage.layout import Storage

SWEEP = """
name: noop
planners: {{vin: {{core: vin, adjoint: unrolled, hidden_channels: 2, q_channels: 2}}}}
data: {{train: 0, valid: 0, test: 4}}
tasks: [{{map_size: 5}}]
grid: {{k: [1], seed: {seeds}}}
training: {{epochs: 0, batch_size: 1}}
"""


def run_sweep(trials: int, folder: Path) -> tuple[float, float, list[tuple[int, int]]]:
    """Return wall and processor seconds of a sweep, and (trials done, bytes) of its driver's memory as it went."""
    sweep = folder / f"noop{trials}.yaml"
    sweep.write_text(SWEEP.format(seeds=list(range(trials))))
    command = [sys.executable, "-m", "orchestrator", "run", str(sweep), "--storage", str(folder / f"storage{trials}")]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        memory: list[tuple[int, int]] = []
        processor: dict[int, float] = {}
        said: list[str] = []
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(process.stderr or []))
        reader.start()
        done = lines = 0
        while process.poll() is None:
            new = said[lines:]
            lines += len(new)
            done = max([done, *(int(found[1]) for line in new if (found := re.search(rf"\[(\d+)/{trials}\]", line)))])
            memory.append((done, resident_bytes(process.pid)))
            processor |= processor_seconds(process.pid)
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        reader.join()
    if process.returncode:
        raise SystemExit("".join(said[-20:]))
    return seconds, sum(processor.values()), memory


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def processor_seconds(pid: int) -> dict[int, float]:
    """Return the processor time of `pid` and of all processes below it: what other work on the machine can't change."""
    ticks: dict[int, float] = {}
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents.setdefault(int(fields[1]), []).append(int(path.name))
        ticks[int(path.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, ahead = {}, [pid]
    while ahead:
        process = ahead.pop()
        found[process] = ticks.get(process, 0.0)
        ahead += parents.get(process, [])
    return found


def own_seconds(folder: Path, trials: int = 40) -> tuple[float, float]:
    """Return the median wall and processor seconds of a no-op trial in a warm process, without any scheduling."""
    from orchestrator.sweep.files import load_sweep
    from orchestrator.sweep.specs import expand
    from orchestrator.trial.train import run_trial

    storage = folder / f"storage{trials}"
    sweep = folder / f"own{trials}.yaml"
    sweep.write_text(SWEEP.format(seeds=list(range(trials))))
    subprocess.run(
        [sys.executable, "-m", "orchestrator", "data", str(sweep), "--storage", str(storage)],
        check=True,
        capture_output=True,
    )
    wall, processor = [], []
    for trial in expand(load_sweep(sweep)):
        started, busy = time.perf_counter(), time.process_time()
        run_trial(trial.spec, Storage(storage))
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
    return statistics.median(wall[5:]), statistics.fmean(processor[5:])


STORED = """
name: stored
tasks: [{{task: navigation, map_size: 15}}, {{task: navigation, map_size: 27}}]
planners: {{vin: {{core: vin, adjoint: unrolled}}, id-vin: {{core: vin, adjoint: implicit}}}}
data: {{train: 1000, valid: 100, test: 200}}
grid: {{k: [10, 20, 30, 50, 80], seed: {seeds}}}
training: {{epochs: 12}}
test_on: [{{map_size: 49}}]
"""
READERS = ("plan", "table", "report", "figures", "sync", "run")
"""The last two have MLflow's runs made, and find them."""


def made_up(trials: int, folder: Path) -> tuple[Path, Path]:
    """Make a storage in which all trials of a sweep have ended, with made-up numbers; return both, the sweep first."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from samples import add_evaluation, sample_run  # type: ignore[import-not-found]

    from orchestrator.storage.curves import curves_file
    from orchestrator.storage.evaluations import planned_evaluations
    from orchestrator.storage.files import sealed
    from orchestrator.sweep.files import load_sweep
    from orchestrator.sweep.specs import expand

    sweep, storage = folder / f"stored{trials}.yaml", Storage(folder / f"stored{trials}")
    sweep.write_text(STORED.format(seeds=list(range(trials // 20))))
    spec = load_sweep(sweep)
    for planned in planned_evaluations(spec, expand(spec)):
        record = sample_run(planned.trial)
        add_evaluation(record, planned)
        directory = storage.trial(planned.trial.trial_id)
        path = planned.path(storage)
        path.parent.mkdir(parents=True)
        for file, content in (
            (directory.spec_file, planned.trial.spec),
            (directory.result_file, record.result),
            *((path, test) for test in record.evaluations),
        ):
            fields = content.model_dump(mode="json")
            file.write_text(json.dumps(fields if file == directory.spec_file else sealed(fields), indent=2) + "\n")
        directory.checkpoint.write_bytes(b"")
        directory.curves_file.write_bytes(curves_file(record.curves))
    return sweep, storage.path


def processor_and_memory(*words: str | Path) -> tuple[float, int]:
    """Return the processor seconds that `idp` takes with those words, and the most MiB it holds."""
    measure = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'orchestrator', *sys.argv[1:]], stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss // 1024)\n"
        "sys.exit(done.returncode)"
    )
    command = [sys.executable, "-c", measure, *map(str, words)]
    seconds, size = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return round(float(seconds), 2), int(size)


def beside_stored(trials: int, folder: Path) -> dict[str, tuple[float, int]]:
    """Return what each verb takes, in seconds and MiB, beside so many finished trials."""
    sweep, storage = made_up(trials, folder)
    found = {verb: processor_and_memory(verb, sweep, "--storage", storage) for verb in READERS}
    few = [sweep, "--only", "seed=0", "--storage", storage]
    return found | {f"{verb} of 20": processor_and_memory(verb, *few) for verb in ("plan", "table")}


def slope(counts: list[int], seconds: list[float]) -> float:
    """Return the least-squares seconds per trial."""
    x, y = statistics.fmean(counts), statistics.fmean(seconds)
    rise = sum((n - x) * (s - y) for n, s in zip(counts, seconds, strict=True))
    return rise / sum((n - x) ** 2 for n in counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--many", type=int, help="one sweep of so many trials instead")
    parser.add_argument("--stored", type=int, nargs="+", help="processor seconds and MiB of each verb instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idp-bench-") as name:
        folder = Path(name)
        if options.stored:
            found: dict[str, object] = {
                f"{verb}, {trials} trials": f"{seconds} s, {size} MiB"
                for trials in options.stored
                for verb, (seconds, size) in beside_stored(trials, folder).items()
            }
        elif options.many:
            seconds, processor, memory = run_sweep(options.many, folder)
            # Before the first trial Ray starts, after the last one report and figures are drawn.
            tenths = [
                statistics.median(
                    size for done, size in memory if size and tenth < 10 * done / options.many <= tenth + 1
                )
                for tenth in range(10)
            ]
            found = {
                "trials": options.many,
                "seconds": seconds,
                "seconds_per_trial": seconds / options.many,
                "processor_seconds_per_trial": processor / options.many,
                "driver_mib_in_each_tenth": [round(size / 2**20) for size in tenths],
                "driver_mib_at_most": round(max(size for _, size in memory) / 2**20),
            }
        else:
            own_wall, own_processor = own_seconds(folder)
            runs = [run_sweep(trials, folder)[:2] for trials in options.trials]
            wall, processor_each = [run[0] for run in runs], [run[1] for run in runs]
            found = {
                "trials": options.trials,
                "seconds": wall,
                "processor_seconds": processor_each,
                "slope_seconds_per_trial": slope(options.trials, wall),
                "slope_processor_seconds_per_trial": slope(options.trials, processor_each),
                "own_seconds_per_trial": own_wall,
                "own_processor_seconds_per_trial": own_processor,
            }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        print(f"{key:28s} {value}")


if __name__ == "__main__":
    main()
