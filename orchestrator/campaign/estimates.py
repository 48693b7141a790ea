"""How long trials take: from steps that were measured on purpose, else from the times of earlier trials."""

from __future__ import annotations

import heapq
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.storage.layout import Storage
from orchestrator.storage.measurements import read_measurements, timed_cell
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec
from orchestrator.words import counted

BESIDE_STEPS = 1.1
"""Time of an epoch over that of its steps: reading, optimiser, validation."""
STARTING_SECONDS = 5.0
"""Start, warm-up and test of a trial."""
MOST_OTHERS = 1000
"""So many trials of other sweeps tell what a kind of trial takes, however many a storage has."""


def effort(spec: TrialSpec) -> float:
    """Return the work of a trial in map cells x planner steps; says which trial is longer, not how long."""
    forward, backward = _step_effort(spec)
    return max(1.0, _steps(spec) * (forward + backward))


def _steps(spec: TrialSpec) -> int:
    training = spec.training
    if spec.system is not None:
        return training.epochs
    steps = training.epochs * (spec.data.train // training.batch_size)
    if training.most_steps is not None:
        steps = min(steps, training.most_steps)
    if training.most_applications is not None:
        forward, backward = _step_effort(spec)
        each = (forward + backward) / (training.batch_size * spec.data.map_size**2)
        steps = min(steps, math.ceil(training.most_applications / each))
    return steps


def _step_effort(spec: TrialSpec) -> tuple[float, float]:
    """Return map cells x planner steps of the two passes of a training step; of a system, the samples of an epoch."""
    if spec.system is not None:  # whose two passes nobody tells apart: all is said to be forward
        return float(max(1, spec.data.train)), 1.0
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


class _Earlier:
    """What steps of earlier trials took, by kind of trial, and on how many of them each host has worked."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, ...], list[Throughput]] = {}
        self.hosts: Counter[str] = Counter()
        self._cells: dict[tuple[int, ...], tuple[TrialSpec, str]] = {}

    def cell(self, spec: TrialSpec) -> str:
        """Return `timed_cell` a trial, once for those that share their parts, as a sweep's seeds do."""
        parts = id(spec.data), id(spec.planner), id(spec.training), id(spec.execution)
        if parts not in self._cells:
            self._cells[parts] = spec, timed_cell(spec)  # the trial too: its parts must live for as long as their ids
        return self._cells[parts][1]

    def kinds(self, spec: TrialSpec) -> list[tuple[str, ...]]:
        """Return the kinds of trial that a trial is of, the narrowest first: a mapper can cost more than a planner."""
        planner = spec.planner
        if spec.system is not None:
            return [(self.cell(spec),), ("system", spec.system.name)]
        return [(self.cell(spec),), (planner.core, planner.adjoint, planner.mapper)]

    def learn(self, spec: TrialSpec, forward_seconds: float, backward_seconds: float) -> None:
        """Take in what a step of a trial took."""
        forward, backward = _step_effort(spec)
        rate = Throughput(forward_seconds / forward, backward_seconds / backward)
        for kind in self.kinds(spec):
            self.rates.setdefault(kind, []).append(rate)

    def learn_from(self, spec: TrialSpec | None, result: TrialResult | None) -> None:
        """Take in what an earlier trial took, as far as that is known."""
        if spec is not None and result is not None and spec.system is not None and result.epochs:
            self.learn(spec, (result.train_seconds or 0.0) / max(1, _steps(spec)) / BESIDE_STEPS, 0.0)
            self.hosts[result.provenance.host] += 1
        if spec is None or result is None or result.forward_seconds is None or result.backward_seconds is None:
            return
        self.learn(spec, result.forward_seconds, result.backward_seconds)
        self.hosts[result.provenance.host] += 1


def expectation(storage: Storage, specs: Mapping[str, TrialSpec], results: Mapping[str, TrialResult]) -> Expectation:
    """Return what predicts a trial's seconds.

    Args:
        storage: The storage directory, whose measurements and earlier trials count.
        specs: The trials to predict, by trial id.
        results: Those of them that are known.
    """
    exact = {m.cell: m for m in read_measurements(storage) if m.step_seconds is not None}
    earlier = _Earlier()
    for trial_id, result in results.items():
        earlier.learn_from(specs[trial_id], result)
    unknown = (spec for trial_id, spec in specs.items() if trial_id not in results)
    if any(earlier.cell(spec) not in exact and (earlier.cell(spec),) not in earlier.rates for spec in unknown):
        for directory in _others(storage, specs):
            earlier.learn_from(directory.known_spec(), directory.known_result())
    for spec in specs.values():
        m = exact.get(earlier.cell(spec))
        if m is not None and m.forward_seconds and m.backward_seconds:
            earlier.learn(spec, m.forward_seconds, m.backward_seconds)
    if not earlier.rates:
        return Expectation(None, "no earlier trial to learn from", lambda spec: True)
    typical = {
        kind: Throughput(
            statistics.median(rate.forward for rate in rates), statistics.median(rate.backward for rate in rates)
        )
        for kind, rates in earlier.rates.items()
    }
    slowest = max(typical.values(), key=lambda rate: rate.forward + rate.backward)

    def expect(spec: TrialSpec) -> float:
        measured = exact.get(earlier.cell(spec))
        if measured is not None and measured.step_seconds is not None:
            return _steps(spec) * measured.step_seconds * BESIDE_STEPS + STARTING_SECONDS
        return next((typical[kind] for kind in earlier.kinds(spec) if kind in typical), slowest).seconds(spec)

    def guessed(spec: TrialSpec) -> bool:
        return earlier.cell(spec) not in exact and not any(kind in typical for kind in earlier.kinds(spec))

    said = []
    used = [exact[cell] for cell in dict.fromkeys(map(earlier.cell, specs.values())) if cell in exact]
    if used:
        said.append(f"{counted(len(used), 'cell')} measured on {', '.join(sorted({m.device for m in used}))}")
    if earlier.hosts:
        said.append(f"{counted(earlier.hosts.total(), 'earlier trial')} on {', '.join(sorted(earlier.hosts))}")
    guesses = {"/".join(earlier.kinds(spec)[-1]) for spec in specs.values() if guessed(spec)}
    guess = f"; never run, taken as the slowest known: {', '.join(sorted(guesses))}" if guesses else ""
    return Expectation(expect, f"from {' and '.join(said)}{guess}", guessed)


def _others(storage: Storage, known: Container[str]) -> list[TrialDirectory]:
    """Return trials that are not known, evenly of all there are: their names are digests, so that this is by chance."""
    others = [trial_id for trial_id in storage.trial_ids() if trial_id not in known]
    return [storage.trial(trial_id) for trial_id in others[:: -(-len(others) // MOST_OTHERS) or 1]]


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
