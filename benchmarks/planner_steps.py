"""What the bench of the planner core measures: cores, methods, one row each, and what of it a slow method is spared."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import planner_baselines as others
from datagen.problem import Problems
from datagen.tasks.navigation import draw
from datagen.tasks.registry import DatasetSpec
from planners import Anderson, ForwardIteration, Implicit, PlannerSpec, Unrolled, build_planner, spectral_radius
from planners.compiled.solvers import BestFirst, GaussSeidel
from planners.mappers import Identity
from planners.options import NoOptions
from planners.planner import Planner
from planners.training.evaluation import Inputs
from planners.training.memory import TensorMemory, state_tensors

BATCH, K_BWD, TOLERANCE, RADIUS = 32, 15, 1e-4, 0.9
SWEPT = ("vin", "symvin", "contractive", "conv_gppn")
MOST_SECONDS, PROBE = 3.0, 2
"""A method may take so long on a case, all rounds together; what takes longer once gets fewer maps, at least PROBE."""
SCALED = {
    "vin": lambda core: [core.w_v],
    "symvin": lambda core: [core.action_filter.coefficients[:, 1]],
    "conv_gppn": lambda core: [core.gates, core.candidate],
}
"""The parameters that decide how strongly a step depends on the value; of other cores they stay as they start."""
FLOPS_PER_CELL = {"vin": 18 * 100, "symvin": 18 * 8 * 800, "conv_gppn": 18 * 40 * 120}
"""Floating-point operations of one step in its convolutions over v; of other cores they are not counted."""
BYTES_PER_CELL = {"vin": 4 * 301, "symvin": 4 * 2416, "conv_gppn": 4 * 440}
"""Bytes a step moves when operations read and write whole tensors: Q (gates, candidate) in and out, r's part, v."""


@dataclass(frozen=True)
class Row:
    """One method on one case; times and bytes are those of a whole batch, scaled up where it saw fewer maps."""

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
    maps: int = BATCH

    @property
    def total_ms(self) -> float:
        return self.forward_ms + self.backward_ms


@dataclass(frozen=True)
class Work:
    """One way to make logits from x: () -> (logits, steps, kernel); or, of a peer of its own, its whole step."""

    name: str
    run: Callable[[], tuple[Tensor, float, str]]
    peer: Any = None


def medians(works: list[Callable[[], None]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Return the median seconds of each work, run in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, taken in zip(works, times, strict=True):
            start = clock()
            work()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def machine(clock: Callable[[], float]) -> dict[str, float]:
    """Return what the machine reaches on this many threads: a matrix product (GFLOP/s) and a copy (GB/s moved)."""
    size = 2048
    a, b = torch.randn(2, size, size)
    source, target = torch.randn(2, 1 << 25)
    (product, copy) = medians([lambda: torch.mm(a, b), lambda: target.copy_(source)], 7, clock)
    return {"matmul_gflops": 2 * size**3 / product / 1e9, "copy_gbytes": 2 * source.nbytes / copy / 1e9}


def problems_of(size: int, count: int) -> Problems:
    return draw(DatasetSpec(task="navigation", map_size=size), "test", 0, count)


def inputs_of(problems: Problems) -> tuple[Tensor, Tensor, Tensor]:
    """Return map and goal [B, 1, h, w], and labels [B, h, w]."""
    inputs = Inputs.of(problems)
    return inputs.map, inputs.goal, inputs.label


def planner_of(core: torch.nn.Module, solver: object, adjoint: object) -> Planner:
    return Planner(core, Identity(NoOptions(), wrap=False), solver, adjoint)


@torch.no_grad()
def settled_core(name: str) -> tuple[torch.nn.Module, float]:
    """Return a core with random weights whose step has a spectral radius near 0.9 at its fixed point; the radius.

    Cores whose strength is no matter of one scale stay as they start, with the radius that they have.
    """
    torch.manual_seed(0)
    core = build_planner(PlannerSpec(core=name)).core
    if name == "vin":
        core.w_v.normal_(std=0.05)
    scaled = SCALED[name](core) if name in SCALED else []
    original = [parameter.clone() for parameter in scaled]
    map, goal, _ = inputs_of(problems_of(15, 4))
    planner = planner_of(core, ForwardIteration(200, 1e-5, rule="residual"), Implicit())

    def radius_at(scale: float) -> float:
        for parameter, value in zip(scaled, original, strict=True):
            parameter.copy_(scale * value)
        plan = planner.plan(map, goal)
        if not torch.isfinite(plan.solution.residual).all() or float(plan.solution.residual.max()) > 1e-2:
            return float("inf")
        return float(spectral_radius(plan.step, plan.solution.value, 30, torch.Generator().manual_seed(0)).mean())

    if not scaled:
        return core, radius_at(1.0)
    low, high = 0.02, 16.0
    for _ in range(9):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if radius_at(middle) < RADIUS else (low, middle)
    return core, radius_at(low)


@cache
def xla() -> Any:
    """Return the peer in JAX, or None where that is not installed."""
    if find_spec("jax") is None:
        return None
    from benchmarks import planner_xla

    return planner_xla


def works_of(
    name: str, core: torch.nn.Module, map: Tensor, goal: Tensor, steps: int, mode: str, label: Tensor | None = None
) -> list[Work]:
    """Return the methods of a case, ours first; JAX's where there are labels, since its step includes the loss."""
    tolerance = 0.0 if mode == "fixed" else TOLERANCE
    x = torch.cat([map, goal], dim=1)
    implicit = Implicit(Anderson(K_BWD, tolerance, rule="residual"), inexact=True)

    def ours(solver: object, adjoint: object) -> tuple[Tensor, float, str]:
        plan = planner_of(core, solver, adjoint).plan(map, goal)
        return plan.logits, float(plan.solution.steps.double().mean()), plan.kernel

    def other(method: Callable[..., tuple[Tensor, float]], loop_of: Callable[..., others.Loop], *options: float):
        return (*method(loop_of(core, x), *options), "")

    def in_jax(label: Tensor, unrolled: bool) -> Any:
        return xla().steps_of(core, x, label, steps, K_BWD, tolerance, unrolled)

    options = (steps, K_BWD, tolerance)
    forward = ForwardIteration(steps, tolerance, rule="residual")
    works = [Work("ours", partial(ours, forward, implicit))]
    if name == "reachability":
        works.append(
            Work("ours, best first", partial(ours, BestFirst(steps, tolerance), Implicit(BestFirst(), inexact=True)))
        )
    if mode != "fixed":
        works.append(Work("ours, Anderson", partial(ours, Anderson(steps, tolerance, rule="residual"), implicit)))
        if name in SWEPT:
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
    if label is not None and name in SCALED and xla() is not None:
        found = [("JAX", False)] + ([("JAX, unrolled", True)] if mode == "fixed" else [])
        works += [Work(method, _never, partial(in_jax, label, unrolled)) for method, unrolled in found]
    return works


def _never() -> tuple[Tensor, float, str]:
    """Stand in where a work has a step of its own."""
    raise AssertionError("a peer's whole step is run, not its logits")


def metered(work: Work, core: torch.nn.Module, label: Tensor) -> dict:
    """Return steps, kernel and memory of one training step; its first run, which warms up."""
    core.zero_grad()
    with TensorMemory(held=[*state_tensors(core), label]) as memory:
        held = memory.live_bytes
        logits, taken, kernel = work.run()
        loss = F.cross_entropy(logits, label)
        saved = memory.live_bytes - held
        loss.backward()
    used = {"peak_mib": (memory.peak_bytes - held) / 2**20, "saved_mib": saved / 2**20}
    return {"steps_taken": taken, "kernel": kernel, **used}


def timed(work: Work, core: torch.nn.Module, label: Tensor, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of one forward and one backward pass."""
    core.zero_grad()
    start = clock()
    loss = F.cross_entropy(work.run()[0], label)
    middle = clock()
    loss.backward()
    return middle - start, clock() - middle


def measure(
    works: list[Work], core: torch.nn.Module, label: Tensor, rounds: int, clock: Callable[[], float]
) -> list[dict]:
    """Return forward and backward milliseconds, memory and steps of each work, all of them in turn."""
    found = [metered(work, core, label) for work in works]
    times: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(rounds):
        for work, taken in zip(works, times, strict=True):
            taken.append(timed(work, core, label, clock))
    return [entry | _medians(taken) for entry, taken in zip(found, times, strict=True)]


def _medians(times: list[tuple[float, float]]) -> dict[str, float]:
    forward, backward = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
    return {"forward_ms": forward, "backward_ms": backward}


@dataclass
class _Turn:
    """One method in a case: how it runs once, on how many maps, what was found so far."""

    name: str
    once: Callable[[], tuple[float, float]]
    maps: int
    entry: dict
    times: list[tuple[float, float]]

    def wants(self, rounds: int) -> bool:
        spent = sum(map(sum, self.times))
        return not self.times or (len(self.times) < rounds and spent * (1 + 1 / len(self.times)) < MOST_SECONDS)


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
    """Return the rows of a case: its methods in turn, each as often and on as many maps as its time allows."""
    map, goal, label = inputs_of(problems_of(size, BATCH))

    def works(maps: int) -> list[Work]:
        return works_of(name, core, map[:maps], goal[:maps], steps, mode, label[:maps])

    def turn_of(i: int, maps: int) -> _Turn:
        work, part = works(maps)[i], label[:maps]
        if work.peer is not None:
            return _turn_of_peer(work, maps, clock)
        entry = metered(work, core, part)
        return _Turn(work.name, partial(timed, work, core, part, clock), maps, entry, [])

    turns = []
    for i in range(len(works(PROBE))):
        probe = turn_of(i, PROBE)
        seconds = sum(probe.once()) * BATCH / PROBE
        maps = BATCH if seconds < MOST_SECONDS else max(PROBE, int(BATCH * MOST_SECONDS / seconds))
        turns.append(probe if maps == PROBE else turn_of(i, maps))
    while waiting := [turn for turn in turns if turn.wants(rounds)]:
        for turn in waiting:
            turn.times.append(turn.once())
    return [_row(name, size, steps, mode, turn, limits) for turn in turns]


def _turn_of_peer(work: Work, maps: int, clock: Callable[[], float]) -> _Turn:
    peer = work.peer()
    _, taken = xla().logits_of(peer)
    xla().run_both(peer)
    mib = peer.peak_bytes / 2**20

    def once() -> tuple[float, float]:
        start = clock()
        xla().run_forward(peer)
        middle = clock()
        xla().run_both(peer)
        forward = middle - start
        return forward, max(clock() - middle - forward, 0.0)

    entry = {"steps_taken": taken, "kernel": "XLA", "peak_mib": mib, "saved_mib": 0.0}
    return _Turn(work.name, once, maps, entry, [])


def _row(name: str, size: int, steps: int, mode: str, turn: _Turn, limits: dict[str, float]) -> Row:
    entry, whole = turn.entry | _medians(turn.times), BATCH / turn.maps
    for key in ("forward_ms", "backward_ms", "peak_mib", "saved_mib"):
        entry[key] *= whole
    cells, seconds = BATCH * size * size * entry["steps_taken"], entry["forward_ms"] / 1e3
    gflops = cells * FLOPS_PER_CELL.get(name, 0) / seconds / 1e9
    by_tensor = entry["kernel"] not in ("compiled", "XLA")
    through_memory = cells * BYTES_PER_CELL.get(name, 0) / seconds / 1e9 if by_tensor else 0.0
    of_matmul, of_copy = gflops / limits["matmul_gflops"], through_memory / limits["copy_gbytes"]
    return Row(
        name, size, steps, mode, turn.name, gflops=gflops, of_matmul=of_matmul, of_copy=of_copy, maps=turn.maps, **entry
    )


def scaling(name: str, core: torch.nn.Module, size: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the implicit backward pass at K 120 over K 30, and what is saved at 120 over 10 and over unrolled 80."""
    map, goal, label = inputs_of(problems_of(size, BATCH))
    works = [works_of(name, core, map, goal, steps, "fixed")[0] for steps in (30, 120, 10)]
    rounds = rounds if name == "conv_gppn" else 5 * rounds  # passes of a few milliseconds
    part = slice(0, PROBE)
    plain = next(w for w in works_of(name, core, map[part], goal[part], 80, "fixed") if w.name == "plain loop")
    at_30, at_120, at_10 = measure(works, core, label, rounds, clock)
    unrolled = metered(plain, core, label[part])
    return {
        "backward": at_120["backward_ms"] / at_30["backward_ms"],
        "saved": at_120["saved_mib"] / at_10["saved_mib"],
        "saved_of_unrolled": at_120["saved_mib"] / (unrolled["saved_mib"] * BATCH / PROBE),
    }
