"""The planner core beside what the literature uses, in one run: training steps, memory, and the machine's limits.

    python -m benchmarks.planner_core [--json] [--quick] [--clock cpu] [--cores vin,symvin] [--sizes 15,27]

Batch 32, sizes of D.2 (100 Q channels or fields, 40 state channels), 15 vector-Jacobian products, two threads. Weights
are random and fixed, scaled so that the spectral radius of df/dv at the fixed point is 0.9; cores other than the
paper's three stay as they start. "fixed" rows run exactly K steps (tolerance 0); "1e-4" rows stop at that relative
residual, at K steps at the latest, and say how many they took. All methods of a case run in turn, round after round;
times are medians over the rounds. A method gets 3 s for its rounds of a case: fewer rounds where they are long, and
fewer maps where one is longer than that; its row then says how many, its times and bytes scaled up to a batch. Peak
memory is that of all tensors of one training step, parameters and batch left out; "saved" is what is alive between the
two passes. JAX's rows (`benchmarks.planner_xla`) are there where it is installed; their backward pass is what the
compiled step takes beyond the compiled forward pass, their peak what XLA says it needs.

With `--clock cpu` everything runs on one thread and the processor time is counted: for a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

if not __package__:  # run as a script: this file must not hide the package of its name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import planner_baselines as others
from benchmarks.planner_steps import (
    BATCH,
    K_BWD,
    Row,
    inputs_of,
    machine,
    medians,
    problems_of,
    rows_of,
    scaling,
    settled_core,
)
from datagen.problem import FOUR
from planners import PlannerSpec, build_planner
from planners.registry import CORES as REGISTERED
from planners.training.rollout import evaluate_policy

AUTHORS_SECONDS = 1 / 315
"""A map's evaluation by the authors' public code on a like machine; our own Dijkstra, map by map, is printed beside."""
CORES = ("vin", "symvin", "conv_gppn")


@dataclass(frozen=True)
class Target:
    what: str
    value: float
    target: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        return "PASS" if (self.value <= self.target if self.at_most else self.value >= self.target) else "short"


def evaluation(clock: Callable[[], float], maps: int, plain_maps: int) -> tuple[float, float]:
    """Return seconds per map of our metric and of the one that goes map by map, on the same logits."""
    problems = problems_of(15, maps)
    logits = torch.randn(maps, 4, 15, 15, generator=torch.Generator().manual_seed(0))
    best = torch.from_numpy(np.unpackbits(problems.optimal_actions[:, None], axis=1, bitorder="little")[:, :4].copy())
    logits = logits + 3.0 * best  # a policy that is mostly right, as a trained one
    free, goal, distance, optimal = (
        torch.from_numpy(part) for part in (problems.map, problems.goal, problems.distance, problems.optimal_actions)
    )

    def ours() -> None:
        evaluate_policy(logits.max(1).indices, free, goal, distance, optimal, FOUR)

    array = logits.numpy()

    def plain() -> list[tuple[float, float]]:
        return [
            others.evaluate_map(array[i], problems.map[i], (int(problems.goal[i, 0]), int(problems.goal[i, 1])))
            for i in range(plain_maps)
        ]

    expected = np.mean(plain(), axis=0)
    part = slice(0, plain_maps)
    same = evaluate_policy(logits[part].argmax(1), free[part], goal[part], distance[part], optimal[part], FOUR)
    if not np.allclose(expected, (same.success_rate, same.optimality), atol=1e-6):
        raise AssertionError(f"the two metrics disagree: {expected} and {same}")
    ours()
    our_seconds, plain_seconds = medians([ours, plain], 5, clock)
    return our_seconds / maps, plain_seconds / plain_maps


def targets_of(rows: list[Row], scales: dict[str, dict[str, float]], evaluated: tuple[float, float]) -> list[Target]:
    """Return each target whose rows were measured."""
    table = {(row.core, row.size, row.steps, row.mode, row.method): row for row in rows}
    found: list[Target] = []

    def ratio(what: str, slow: tuple, fast: tuple, target: float) -> None:
        if slow in table and fast in table:
            found.append(Target(what, table[slow].total_ms / table[fast].total_ms, target))

    vin, small = ("vin", 49, 80, "fixed"), ("vin", 15, 80, "fixed")
    for method, target in (("plain loop", 25), ("torchdeq", 15), ("authors' ID layer", 10)):
        ratio(f"ID-VIN 49x49, K 80, fixed: {method} / ours", (*vin, method), (*vin, "ours"), target)
    ratio("ID-VIN 15x15, K 80, fixed: plain loop / ours", (*small, "plain loop"), (*small, "ours"), 8)
    authors = ("symvin", 15, 80, "fixed", "authors' unrolled")
    ratio("ID-SymVIN 15x15, K 80, fixed: authors' unrolled / ours", authors, (*authors[:4], "ours"), 3.5)
    gppn, reached = ("conv_gppn", 49, 80, "fixed"), ("conv_gppn", 49, 80, "1e-4")
    ratio("ID-ConvGPPN 49x49, K 80, fixed: torchdeq / ours", (*gppn, "torchdeq"), (*gppn, "ours"), 1.4)
    ratio("ID-ConvGPPN 49x49, K 80, fixed: plain loop / ours", (*gppn, "plain loop"), (*gppn, "ours"), 2.2)

    def fastest(case: tuple) -> tuple:
        ours = [row for row in rows if (row.core, row.size, row.steps, row.mode) == case and row.method[:4] == "ours"]
        return (*case, min(ours, key=lambda row: row.total_ms).method) if ours else case

    best = fastest(("symvin", 15, 80, "1e-4"))
    ratio(f"ID-SymVIN 15x15, to 1e-4: authors' unrolled / {best[-1]}", authors, best, 10)
    best = fastest(reached)
    ratio(f"ID-ConvGPPN 49x49, to 1e-4: torchdeq to 1e-4 / {best[-1]}", (*reached, "torchdeq"), best, 3)
    ratio(f"ID-ConvGPPN 49x49, to 1e-4: plain loop K 80 / {best[-1]}", (*gppn, "plain loop"), best, 5)
    for name, scale in scales.items():
        found.append(Target(f"{name} implicit: backward at K 120 / K 30", scale["backward"], 1.05, True))
        found.append(Target(f"{name} implicit: saved at K 120 / K 10", scale["saved"], 1.02, True))
        found.append(Target(f"{name}: saved implicit / plain loop K 80", scale["saved_of_unrolled"], 0.1, True))
    authors = AUTHORS_SECONDS / evaluated[0]
    found.append(Target("evaluation, 15x15: the authors' published time a map / ours", authors, 300))
    if (*vin, "ours") in table:
        found.append(Target("VIN 49x49 forward / matrix product rate", table[(*vin, "ours")].of_matmul, 0.5))
    for name, target in (("vin", 5.0), ("symvin", 5.0), ("conv_gppn", 1.3)):
        for size in (15, 27, 49):
            case = (name, size, 80, "fixed")
            what = f"unrolled {name} {size}x{size}, K 80: plain loop / ours"
            ratio(what, (*case, "plain loop"), (*case, "ours, unrolled"), target)
    for core, size, steps, mode, method in table:
        if method in ("JAX", "JAX, unrolled"):
            ours = method.replace("JAX", "ours")
            case = (core, size, steps, mode)
            ratio(f"{core} {size}x{size}, K {steps}, {mode}: {method} / {ours}", (*case, method), (*case, ours), 1)
    return found


def print_row(row: Row) -> None:
    print(
        f"{row.core:9} {row.size:4} {row.steps:4} {row.mode:5}  {row.method:19} {row.steps_taken:6.1f} "
        f"{row.forward_ms:9.1f} {row.backward_ms:9.1f} {row.peak_mib:8.1f} {row.saved_mib:8.1f} {row.gflops:7.1f} "
        f"{row.of_matmul:7.0%} {row.of_copy:6.0%}" + (f"  {row.maps} of {BATCH} maps" if row.maps < BATCH else ""),
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="15x15 alone: under two minutes")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cores", default=",".join(CORES))
    parser.add_argument("--sizes", default="")
    parser.add_argument("--steps", default="30,80")
    options = parser.parse_args(arguments)
    names = options.cores.split(",")
    for name in names:
        if name not in REGISTERED:
            parser.error(f"--cores: unknown name {name!r}; known: {', '.join(REGISTERED)}")
    warnings.filterwarnings("ignore", "indexing with dtype torch.uint8", UserWarning)  # e2cnn's
    torch.set_num_threads(2 if options.clock == "wall" else 1)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    if options.clock == "cpu":  # XLA's threads, before they start
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    say = (lambda *_: None) if options.json else partial(print, flush=True)
    sizes = [int(size) for size in (options.sizes or ("15" if options.quick else "15,27,49")).split(",")]

    limits = machine(clock)
    say(f"{torch.get_num_threads()} threads, {options.clock} time, batch {BATCH}, {K_BWD} backward steps")
    say(f"matrix product {limits['matmul_gflops']:.0f} GFLOP/s, copy {limits['copy_gbytes']:.1f} GB/s")
    say(
        f"{'core':9} {'size':>4} {'K':>4} {'mode':5}  {'method':19} {'steps':>6} {'forward':>9} {'backward':>9} "
        f"{'peak':>8} {'saved':>8} {'GFLOP/s':>7} {'matmul':>7} {'copy':>6}"
    )
    say(f"{'':50} {'':2} {'ms':>9} {'ms':>9} {'MiB':>8} {'MiB':>8}")
    rows: list[Row] = []
    scales: dict[str, dict[str, float]] = {}
    radii: dict[str, float] = {}
    first_calls: dict[str, float] = {}
    for name in names:
        start = time.perf_counter()
        map, goal, label = inputs_of(problems_of(15, 2))
        first = build_planner(PlannerSpec(core=name, k_fwd=2, k_bwd=2))
        F.cross_entropy(first(map, goal), label).backward()
        first_calls[name] = time.perf_counter() - start
        core, radii[name] = settled_core(name)
        say(f"{name}: spectral radius {radii[name]:.3f} at the fixed point; first call {first_calls[name]:.1f} s")
        for size in sizes:
            for steps in (int(k) for k in options.steps.split(",")):
                for mode in ("fixed", "1e-4") if steps == 80 else ("fixed",):
                    rounds = 3 if size == 49 or options.quick else 5
                    new = rows_of(name, core, size, steps, mode, limits, rounds, clock)
                    rows += new
                    if not options.json:
                        for row in new:
                            print_row(row)
        scales[name] = scaling(name, core, min(sizes), 5, clock)
    evaluated = evaluation(clock, 2000, 100)
    targets = targets_of(rows, scales, evaluated)
    if options.json:
        report = {
            "threads": torch.get_num_threads(),
            "clock": options.clock,
            "machine": limits,
            "spectral_radius": radii,
            "first_call_seconds": first_calls,
            "rows": [asdict(row) for row in rows],
            "evaluation_seconds_per_map": {"ours": evaluated[0], "map by map": evaluated[1]},
            "targets": [{**asdict(target), "verdict": target.verdict} for target in targets],
        }
        print(json.dumps(report))
        return
    print(f"\nevaluation: {evaluated[0] * 1e6:.1f} us a map; map by map {evaluated[1] * 1e6:.0f} us\n")
    for target in targets:
        sign = "<=" if target.at_most else ">="
        print(f"{target.verdict:5}  {target.what:70} {target.value:8.3g} {sign} {target.target:g}")


if __name__ == "__main__":
    main()
