"""The planner core beside what the literature uses, in one run: training steps, memory, and the machine's limits.

    python -m benchmarks.planner_core [--json] [--quick] [--clock cpu] [--cores vin,symvin] [--sizes 15,27]

Batch 32, sizes of D.2 (100 Q channels or fields, 40 state channels), 15 vector-Jacobian products, two threads. Weights
are random and fixed, scaled so that the spectral radius of df/dv at the fixed point is 0.9. "fixed" rows run exactly K
steps (tolerance 0); "1e-4" rows stop at that relative residual, at K steps at the latest, and say how many they took.
All methods of a case run in turn, round after round; times are medians over the rounds. Peak memory is that of all
tensors of one training step, parameters and batch left out; "saved" is what is alive between the two passes.

With `--clock cpu` everything runs on one thread and its processor time is counted: for a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from torch import Tensor

if not __package__:  # run as a script: this file must not hide the package of its name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import planner_baselines as others
from datagen.problem import FOUR, Problems
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from planners import Anderson, ForwardIteration, Implicit, PlannerSpec, Unrolled, build_planner, spectral_radius
from planners.compiled.solvers import GaussSeidel
from planners.mappers import Identity
from planners.options import NoOptions
from planners.planner import Planner
from planners.training.memory import TensorMemory, state_tensors
from planners.training.rollout import evaluate_policy

BATCH, K_BWD, TOLERANCE, RADIUS = 32, 15, 1e-4, 0.9
AUTHORS_SECONDS = 1 / 315
"""A map's evaluation by the authors' public code on a like machine; our own Dijkstra, map by map, is printed beside."""
CORES = ("vin", "symvin", "conv_gppn")
SCALED = {
    "vin": lambda core: [core.w_v],
    "symvin": lambda core: [core.action_filter.coefficients[:, 1]],
    "conv_gppn": lambda core: [core.gates, core.candidate],
}
"""The parameters that decide how strongly a step depends on the value."""
FLOPS_PER_CELL = {"vin": 18 * 100, "symvin": 18 * 8 * 800, "conv_gppn": 18 * 40 * 120}
"""Floating-point operations of one step in its convolutions over v."""
BYTES_PER_CELL = {"vin": 4 * 301, "symvin": 4 * 2416, "conv_gppn": 4 * 440}
"""Bytes a step moves when operations read and write whole tensors: Q (gates, candidate) in and out, r's part, v."""


@dataclass(frozen=True)
class Row:
    """One method on one case."""

    core: str
    size: int
    steps: int
    mode: str
    method: str
    kernel: str
    steps_taken: float
    forward_ms: float
    backward_ms: float
    peak_mib: float
    saved_mib: float
    gflops: float
    of_matmul: float
    of_copy: float

    @property
    def total_ms(self) -> float:
        return self.forward_ms + self.backward_ms


@dataclass(frozen=True)
class Target:
    what: str
    value: float
    target: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        return "PASS" if (self.value <= self.target if self.at_most else self.value >= self.target) else "short"


@dataclass(frozen=True)
class Work:
    """One way to make logits from x: () -> (logits, steps, kernel)."""

    name: str
    run: Callable[[], tuple[Tensor, float, str]]


def medians(works: list[Callable[[], None]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Return the median seconds of each work, run in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, taken in zip(works, times, strict=True):
            start = clock()
            work()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def machine(clock: Callable[[], float], size: int = 2048) -> dict[str, float]:
    """Return what the machine reaches on this many threads: a matrix product (GFLOP/s) and a copy (GB/s moved)."""
    a, b = torch.randn(2, size, size)
    source, target = torch.randn(2, 1 << 25)
    (product, copy) = medians([lambda: torch.mm(a, b), lambda: target.copy_(source)], 7, clock)
    return {"matmul_gflops": 2 * size**3 / product / 1e9, "copy_gbytes": 2 * source.nbytes / copy / 1e9}


def problems_of(size: int, count: int) -> Problems:
    return draw(DatasetSpec(task="navigation", map_size=size), "test", 0, count)


def inputs_of(problems: Problems) -> tuple[Tensor, Tensor, Tensor]:
    """Return map and goal [B, 1, h, w], and labels [B, h, w]."""
    map = torch.from_numpy(problems.map).float()[:, None]
    goal = torch.zeros_like(map)
    rows = torch.arange(len(map))
    goal[rows, 0, *torch.from_numpy(problems.goal).long().T] = 1.0
    return map, goal, torch.from_numpy(problems.label).long()


def planner_of(core: torch.nn.Module, solver: object, adjoint: object) -> Planner:
    return Planner(core, Identity(NoOptions(), wrap=False), solver, adjoint)


@torch.no_grad()
def settled_core(name: str) -> tuple[torch.nn.Module, float]:
    """Return a core with random weights whose step has a spectral radius near 0.9 at its fixed point; the radius."""
    torch.manual_seed(0)
    core = build_planner(PlannerSpec(core=name)).core
    if name == "vin":
        core.w_v.normal_(std=0.05)
    original = [parameter.clone() for parameter in SCALED[name](core)]
    map, goal, _ = inputs_of(problems_of(15, 4))
    planner = planner_of(core, ForwardIteration(200, 1e-5, rule="residual"), Implicit())

    def radius_at(scale: float) -> float:
        for parameter, value in zip(SCALED[name](core), original, strict=True):
            parameter.copy_(scale * value)
        plan = planner.plan(map, goal)
        if not torch.isfinite(plan.solution.residual).all() or float(plan.solution.residual.max()) > 1e-2:
            return float("inf")
        return float(spectral_radius(plan.step, plan.solution.value, 30, torch.Generator().manual_seed(0)).mean())

    low, high = 0.02, 16.0
    for _ in range(9):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if radius_at(middle) < RADIUS else (low, middle)
    return core, radius_at(low)


def works_of(name: str, core: torch.nn.Module, map: Tensor, goal: Tensor, steps: int, mode: str) -> list[Work]:
    """Return the methods of a case, ours first."""
    tolerance = 0.0 if mode == "fixed" else TOLERANCE
    x = torch.cat([map, goal], dim=1)
    implicit = Implicit(Anderson(K_BWD, tolerance, rule="residual"), inexact=True)

    def ours(solver: object, adjoint: object) -> tuple[Tensor, float, str]:
        plan = planner_of(core, solver, adjoint).plan(map, goal)
        return plan.logits, float(plan.solution.steps.double().mean()), plan.kernel

    def other(method: Callable[..., tuple[Tensor, float]], loop_of: Callable[..., others.Loop], *options: float):
        return (*method(loop_of(core, x), *options), "")

    options = (steps, K_BWD, tolerance)
    forward = ForwardIteration(steps, tolerance, rule="residual")
    works = [Work("ours", partial(ours, forward, implicit))]
    if mode != "fixed":
        works.append(Work("ours, Anderson", partial(ours, Anderson(steps, tolerance, rule="residual"), implicit)))
        # Sweeps solve the adjoint system too, of the ConvGRU alone.
        swept = Implicit(GaussSeidel(K_BWD, tolerance), inexact=True) if name == "conv_gppn" else implicit
        works.append(Work("ours, Gauss-Seidel", partial(ours, GaussSeidel(steps, tolerance), swept)))
    else:
        works.append(Work("ours, unrolled", partial(ours, forward, Unrolled())))
        works.append(Work("plain loop", partial(other, others.unrolled, others.loop_of, steps)))
    works.append(Work("torchdeq", partial(other, others.in_torchdeq, others.loop_of, *options)))
    works.append(Work("authors' ID layer", partial(other, others.in_authors_layer, others.loop_of, *options)))
    if name == "symvin" and mode == "fixed" and map.shape[-1] == 15:
        works.append(Work("authors' unrolled", partial(other, others.unrolled, others.steerable_loop_of, steps)))
    return works


def measure(
    works: list[Work], core: torch.nn.Module, label: Tensor, rounds: int, clock: Callable[[], float]
) -> list[dict]:
    """Return forward and backward milliseconds, memory and steps of each work."""
    found = []
    for work in works:  # the first run warms up and is metered
        core.zero_grad()
        with TensorMemory(held=[*state_tensors(core), label]) as memory:
            held = memory.live_bytes
            logits, taken, kernel = work.run()
            loss = F.cross_entropy(logits, label)
            saved = memory.live_bytes - held
            loss.backward()
        memory_used = {"peak_mib": (memory.peak_bytes - held) / 2**20, "saved_mib": saved / 2**20}
        found.append({"steps_taken": taken, "kernel": kernel, "times": [], **memory_used})
        del logits, loss
    for _ in range(rounds):
        for work, entry in zip(works, found, strict=True):
            core.zero_grad()
            start = clock()
            loss = F.cross_entropy(work.run()[0], label)
            middle = clock()
            loss.backward()
            entry["times"].append((middle - start, clock() - middle))
            del loss
    for entry in found:
        forward, backward = (1e3 * statistics.median(each) for each in zip(*entry.pop("times"), strict=True))
        entry |= {"forward_ms": forward, "backward_ms": backward}
    return found


def rows_of(
    name: str,
    core: torch.nn.Module,
    size: int,
    steps: int,
    mode: str,
    limits: dict[str, float],
    rounds: int,
    clock: Callable[[], float],
) -> list[Row]:
    map, goal, label = inputs_of(problems_of(size, BATCH))
    works = works_of(name, core, map, goal, steps, mode)
    rows = []
    for work, entry in zip(works, measure(works, core, label, rounds, clock), strict=True):
        cells = BATCH * size * size * entry["steps_taken"]
        seconds = entry["forward_ms"] / 1e3
        gflops = cells * FLOPS_PER_CELL[name] / seconds / 1e9
        through_memory = 0.0 if entry["kernel"] == "compiled" else cells * BYTES_PER_CELL[name] / seconds / 1e9
        of_matmul, of_copy = gflops / limits["matmul_gflops"], through_memory / limits["copy_gbytes"]
        rows.append(
            Row(name, size, steps, mode, work.name, gflops=gflops, of_matmul=of_matmul, of_copy=of_copy, **entry)
        )
    return rows


def scaling(name: str, core: torch.nn.Module, size: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the implicit backward pass at K 120 over K 30, and what is saved at 120 over 10 and over unrolled 80."""
    map, goal, label = inputs_of(problems_of(size, BATCH))
    works = [works_of(name, core, map, goal, steps, "fixed")[0] for steps in (30, 120, 10)]
    rounds = rounds if name == "conv_gppn" else 5 * rounds  # passes of a few milliseconds
    plain = next(w for w in works_of(name, core, map, goal, 80, "fixed") if w.name == "plain loop")
    at_30, at_120, at_10 = measure(works, core, label, rounds, clock)
    (unrolled,) = measure([plain], core, label, 1, clock)
    return {
        "backward": at_120["backward_ms"] / at_30["backward_ms"],
        "saved": at_120["saved_mib"] / at_10["saved_mib"],
        "saved_of_unrolled": at_120["saved_mib"] / unrolled["saved_mib"],
    }


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
    return found


def print_row(row: Row) -> None:
    print(
        f"{row.core:9} {row.size:4} {row.steps:4} {row.mode:5}  {row.method:19} {row.steps_taken:6.1f} "
        f"{row.forward_ms:9.1f} {row.backward_ms:9.1f} {row.peak_mib:8.1f} {row.saved_mib:8.1f} {row.gflops:7.1f} "
        f"{row.of_matmul:7.0%} {row.of_copy:6.0%}",
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
    warnings.filterwarnings("ignore", "indexing with dtype torch.uint8", UserWarning)  # e2cnn's
    torch.set_num_threads(2 if options.clock == "wall" else 1)
    clock = time.perf_counter if options.clock == "wall" else time.thread_time
    say = (lambda *_: None) if options.json else partial(print, flush=True)
    names = options.cores.split(",")
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
