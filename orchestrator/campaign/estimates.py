"""How long trials take: from steps that were measured on purpose, else from the times of earlier trials."""

from __future__ import annotations

import heapq
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.storage.layout import Storage
from orchestrator.storage.measurements import cell_of, read_measurements
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import TrialSpec

BESIDE_STEPS = 1.1
"""Time of an epoch over that of its steps: reading, optimiser, validation."""
STARTING_SECONDS = 5.0
"""Start, warm-up and test of a trial."""


def effort(spec: TrialSpec) -> float:
    """Return the work of a trial in map cells x planner steps; says which trial is longer, not how long."""
    forward, backward = _step_effort(spec)
    return max(1.0, _steps(spec) * (forward + backward))


def _steps(spec: TrialSpec) -> int:
    training = spec.training
    steps = training.epochs * (spec.data.train // training.batch_size)
    if training.most_steps is not None:
        steps = min(steps, training.most_steps)
    if training.most_applications is not None:
        forward, backward = _step_effort(spec)
        each = (forward + backward) / (training.batch_size * spec.data.map_size**2)
        steps = min(steps, math.ceil(training.most_applications / each))
    return steps


def _step_effort(spec: TrialSpec) -> tuple[float, float]:
    """Return map cells x planner steps of the forward and the backward pass of a training step."""
    cells = spec.training.batch_size * spec.data.map_size**2
    unrolled = spec.planner.adjoint == "unrolled"
    return float(cells * spec.planner.k_fwd), float(cells * (spec.planner.k_fwd if unrolled else spec.planner.k_bwd))


@dataclass(frozen=True)
class Throughput:
    """Seconds per map cell and planner step of one kind of planner, from the times of earlier training steps."""

    forward: float
    backward: float

    def seconds(self, spec: TrialSpec) -> float:
        """Return the expected seconds of training `spec`."""
        forward, backward = _step_effort(spec)
        return _steps(spec) * (forward * self.forward + backward * self.backward) * BESIDE_STEPS + STARTING_SECONDS


@dataclass(frozen=True)
class Expectation:
    """What predicts a trial's seconds.

    Attributes:
        seconds: From a trial's spec to its seconds; None where nothing is known.
        words: What it has learnt from.
        guessed: Whether, for a trial, nothing like it has ever run, so that it may take much longer.
    """

    seconds: Callable[[TrialSpec], float] | None
    words: str
    guessed: Callable[[TrialSpec], bool]


def expectation(storage: Storage, specs: list[TrialSpec], results: Mapping[str, TrialResult]) -> Expectation:
    """Return what predicts a trial's seconds.

    Args:
        storage: The storage directory, whose measurements and earlier trials count.
        specs: The trials to predict.
        results: Results that are known already.
    """
    exact = {m.cell: m for m in read_measurements(storage) if m.step_seconds is not None}
    earlier, hosts = _earlier(storage, results)
    for spec in specs:
        m = exact.get(cell_of(spec))
        if m is not None and m.forward_seconds and m.backward_seconds:
            forward, backward = _step_effort(spec)
            rate = Throughput(m.forward_seconds / forward, m.backward_seconds / backward)
            for kind in _kinds(spec):
                earlier.setdefault(kind, []).append(rate)
    if not earlier:
        return Expectation(None, "no earlier trial to learn from", lambda spec: True)
    typical = {
        kind: Throughput(
            statistics.median(rate.forward for rate in rates), statistics.median(rate.backward for rate in rates)
        )
        for kind, rates in earlier.items()
    }
    slowest = max(typical.values(), key=lambda rate: rate.forward + rate.backward)

    def expect(spec: TrialSpec) -> float:
        measured = exact.get(cell_of(spec))
        if measured is not None and measured.step_seconds is not None:
            return _steps(spec) * measured.step_seconds * BESIDE_STEPS + STARTING_SECONDS
        return next((typical[kind] for kind in _kinds(spec) if kind in typical), slowest).seconds(spec)

    def guessed(spec: TrialSpec) -> bool:
        return cell_of(spec) not in exact and not any(kind in typical for kind in _kinds(spec))

    said = []
    used = [exact[cell] for cell in dict.fromkeys(map(cell_of, specs)) if cell in exact]
    if used:
        said.append(f"{len(used)} cells measured on {', '.join(sorted({m.device for m in used}))}")
    if hosts:
        said.append(f"{sum(hosts.values())} earlier trials on {', '.join(sorted(hosts))}")
    unknown = {"/".join(_kinds(spec)[-1]) for spec in specs if guessed(spec)}
    guess = f"; never run, taken as the slowest known: {', '.join(sorted(unknown))}" if unknown else ""
    return Expectation(expect, f"from {' and '.join(said)}{guess}", guessed)


def _kinds(spec: TrialSpec) -> list[tuple[str, ...]]:
    """Return the kinds of trial that a trial is of, the narrowest first: a mapper can cost more than any planner."""
    planner = spec.planner
    return [(cell_of(spec),), (planner.core, planner.adjoint, planner.mapper)]


def _earlier(
    storage: Storage, results: Mapping[str, TrialResult]
) -> tuple[dict[tuple[str, ...], list[Throughput]], Counter[str]]:
    measured: dict[tuple[str, ...], list[Throughput]] = {}
    hosts: Counter[str] = Counter()
    for trial_id, result in {**storage.results(), **results}.items():
        if result.forward_seconds is None or result.backward_seconds is None:
            continue
        spec = storage.trial(trial_id).known_spec()
        if spec is None:
            continue
        forward, backward = _step_effort(spec)
        rate = Throughput(result.forward_seconds / forward, result.backward_seconds / backward)
        for kind in _kinds(spec):
            measured.setdefault(kind, []).append(rate)
        hosts[result.provenance.host] += 1
    return measured, hosts


@dataclass(frozen=True)
class Schedule:
    """Trials on devices, the longest first, each on the device that is free first.

    Attributes:
        devices: How many.
        seconds: When the last trial ends.
        busy_seconds: Time of all trials together.
        tail_seconds: How long, at the end, some device has nothing to do.
    """

    devices: int
    seconds: float
    busy_seconds: float
    tail_seconds: float


def schedule(work: Iterable[float], devices: int) -> Schedule:
    """Return how trials of `work` seconds each pass through `devices` devices.

    Args:
        work: Seconds of each trial.
        devices: At least 1.
    """
    free = [0.0] * devices
    longest_first = sorted(work, reverse=True)
    for seconds in longest_first:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return Schedule(devices, max(free), sum(longest_first), max(free) - min(free))


def side_by_side(specs: Iterable[TrialSpec]) -> int:
    """Return how many of the trials this machine runs at once."""
    return max(1, (os.cpu_count() or 1) // max((spec.execution.threads for spec in specs), default=1))
