"""How fast problems are made, beside a plain implementation and the published rates of the authors' code.

    python benchmarks/datagen.py [--json] [--quick]

Rates are maps per second of one core's processor time, labels included, best of several runs (other work on the machine
slows wall time, not this). The 10K/2K/2K set is wall time on two processes, written to disk, synced and checksummed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script: this file must not hide the package of its name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import datagen.sampling.unique_maps
from benchmarks import datagen_reference as reference
from datagen.storage.dataset import finish_dataset, missing_shards, read_split, write_shard
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split, dataset_id

PUBLISHED = {
    ("navigation", 15): (367.0, 200),
    ("navigation", 27): (103.0, None),
    ("navigation", 49): (29.3, 300),
    ("navigation", 75): (11.8, None),
    ("manipulation", 18): (54.7, 300),
    ("manipulation", 36): (15.0, 300),
    ("workspace_manipulation", 18): (22.3, None),
}
"""Maps per second of the authors' public generator on one core of a like machine; how many times that we promise."""


def best_rate(work: Callable[[], None], problems: int, runs: int) -> float:
    """Return problems per processor second, best of several runs."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return problems / min(seconds)


def our_rate(task: str, size: int, split: Split, problems: int, runs: int) -> float:
    """Return the rate of drawing a split's first problems, nothing remembered from before."""
    spec, draw = DatasetSpec(task=task, map_size=size), TASKS[task].draw()
    draw(spec, split, 0, 2)  # compiles

    def work() -> None:
        datagen.sampling.unique_maps._claims.clear()
        draw(spec, split, 0, problems)

    return best_rate(work, problems, runs)


def plain_rate(task: str, size: int, problems: int) -> float:
    """Return the rate of the plain implementation (without the workspace image)."""
    rng = random.Random(0)

    def work() -> None:
        for _ in range(problems):
            if task == "navigation":
                reference.labels(*reference.maze(size, rng), False, rng)
            else:
                reference.labels(*reference.arm_problem(size, rng), True, rng)

    return best_rate(work, problems, 1)


def _write(job: tuple[DatasetSpec, object, Path]) -> None:
    write_shard(*job)  # type: ignore[arg-type]


def _processor_seconds() -> float:
    """Return the processor time of this process and of those it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def whole_set(spec: DatasetSpec, processes: int) -> dict[str, float]:
    """Make a set on several fresh processes; return the seconds to make, and to read and check it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        before = _processor_seconds()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            pool.map(_write, [(spec, shard, root) for shard in missing_shards(spec, root)], chunksize=1)
            pool.close()
            pool.join()
        manifest = finish_dataset(spec, root)
        made, used = time.perf_counter(), _processor_seconds() - before
        problems = sum(len(read_split(root / dataset_id(spec), split)) for split in SPLITS)
        read = time.perf_counter()
        assert problems == sum(record.rows for record in manifest.shards)
        size = sum(record.bytes for record in manifest.shards)
    seconds = {"make_seconds": made - start, "make_processor_seconds": used, "read_seconds": read - made}
    return {"problems": problems, "bytes": size, **seconds}


def loading(size: int, steps: int) -> dict[str, float]:
    """Return milliseconds per batch of 32 to load, and to train the fastest of the paper's planners on it."""
    import torch

    from planners import PlannerSpec, build_planner
    from planners.training.evaluation import Inputs

    problems = TASKS["navigation"].draw()(DatasetSpec(map_size=size), "train", 0, 32 * (steps + 1))
    load, train = [], []
    batches = problems.batches(32, 0, 0)
    planner = build_planner(PlannerSpec(core="vin", adjoint="implicit", k_fwd=30, k_bwd=15))
    optimizer = torch.optim.RMSprop(planner.parameters(), lr=1e-3)
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        inputs = Inputs.of(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(planner(inputs.map, inputs.goal), inputs.label).backward()
        optimizer.step()
        load.append(loaded - start)
        train.append(time.perf_counter() - loaded)
    load_ms, train_ms = 1e3 * statistics.median(load[1:]), 1e3 * statistics.median(train[1:])
    return {"map_size": size, "load_ms": load_ms, "train_ms": train_ms, "load_share": load_ms / (load_ms + train_ms)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer problems and runs")
    arguments = parser.parse_args()
    scale, runs = (0.2, 2) if arguments.quick else (1.0, 5)
    rows = []
    for (task, size), (published, promised) in PUBLISHED.items():
        ours = our_rate(task, size, "train", int(scale * min(10_000, 4_000_000 // size**2)), runs)
        ours_test = our_rate(task, size, "test", int(scale * 1000), runs)
        plain = plain_rate(task, size, max(2, int(scale * 10_000 // size**2)))
        rows.append(
            {
                "task": task,
                "map_size": size,
                "maps_per_second": ours,
                "maps_per_second_of_a_small_split": ours_test,
                "plain_python_maps_per_second": plain,
                "times_plain_python": ours / plain,
                "authors_published_maps_per_second": published,
                "times_authors_published": ours / published,
                "promised_times": promised,
            }
        )
    sets = []
    for size in (15, 49):
        spec = DatasetSpec(map_size=size)
        sets.append({"task": spec.task, "map_size": size, "processes": 2, **whole_set(spec, 2)})
    loads = [loading(size, 4 if arguments.quick else 12) for size in (15, 49)]
    if arguments.json:
        print(json.dumps({"rates": rows, "sets": sets, "loading": loads}, indent=1))
        return
    print(
        f"{'task':<24}{'size':>5}{'maps/s':>10}{'test split':>12}{'plain':>9}{'ratio':>8}{'authors*':>10}{'ratio':>8}"
    )
    for row in rows:
        promise = f" (>= {row['promised_times']})" if row["promised_times"] else ""
        print(
            f"{row['task']:<24}{row['map_size']:>5}{row['maps_per_second']:>10,.0f}"
            f"{row['maps_per_second_of_a_small_split']:>12,.0f}{row['plain_python_maps_per_second']:>9,.1f}"
            f"{row['times_plain_python']:>8,.0f}{row['authors_published_maps_per_second']:>10,.1f}"
            f"{row['times_authors_published']:>8,.0f}{promise}"
        )
    print("* published: measured by others on a like machine, labels included; the other columns are measured here")
    for row in sets:
        print(
            f"{row['task']} {row['map_size']}: {row['problems']:,} problems on {row['processes']} processes, start-up "
            f"included: made in {row['make_seconds']:.1f} s ({row['make_processor_seconds']:.1f} s of processor time), "
            f"read and checked in {row['read_seconds']:.2f} s, "
            f"{row['bytes'] / 1e6:.0f} MB"
        )
    for load in loads:
        print(
            f"a batch of 32 at {load['map_size']}: loaded in {load['load_ms']:.2f} ms, an ID-VIN step (K 30) takes "
            f"{load['train_ms']:.0f} ms: loading is {100 * load['load_share']:.2f} % of it"
        )


if __name__ == "__main__":
    main()
