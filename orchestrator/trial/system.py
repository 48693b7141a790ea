"""A system's trial: epochs of whatever it is that a plug-in trains, kept, resumed and tested as a planner is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from datagen.storage.dataset import read_samples
from datagen.tasks.registry import SPLITS, Split
from datagen.tasks.samples import SampleColumns
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.systems import FORWARD_DIVERGED, METRIC, SYSTEMS, SystemSpec
from orchestrator.sweep.trial import TrialSpec
from orchestrator.trial.attempt import DOES_NOT_FIT, Attempt
from orchestrator.trial.device import limit_device, peak_bytes, use_processor
from orchestrator.trial.watchdog import Watchdog
from planners.specs import TrainingSpec


@dataclass(frozen=True)
class Setting:
    """What a system's trial is given.

    Attributes:
        options: The system's own choices.
        data_options: Those of its task.
        training: How to train: the fields that the system's line says it heeds.
        train: The training samples [n, ...] by the names of their columns.
        valid: The samples to judge an epoch by.
        test: The samples to judge the trial by.
        seed: Of whatever is drawn. Torch's global generator is seeded with it, and goes on where an interrupted trial
            stood; for NumPy take `default_rng([seed, epoch])`.
        device: Where to compute, "cpu" or "cuda".
        advance: To be called now and then, each step or so: a trial that is silent for long is taken for dead.
    """

    options: Any
    data_options: Any
    training: TrainingSpec
    train: SampleColumns
    valid: SampleColumns
    test: SampleColumns
    seed: int
    device: str
    advance: Callable[..., None]

    def batches(self, epoch: int) -> Iterator[SampleColumns]:
        """Yield the training samples in batches of `training.batch_size`, in an order of the epoch's own.

        Args:
            epoch: Number of the epoch.
        """
        size, count = self.training.batch_size, len(next(iter(self.train.values())))
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        for start in range(0, count - size + 1, size):
            yield {name: values[order[start : start + size]] for name, values in self.train.items()}


class SystemTrial(Protocol):
    """What a system's class is: made from a `Setting`, trained epoch by epoch, put down and taken up, and tested.

    Numbers are reported by the names of the system's metrics; those of an epoch and of the test may be different ones.
    Beside them an epoch may report `forward_diverged`, whether a solve inside it has not converged. A number of an
    epoch that is not finite ends training: the trial counts as diverged.
    """

    def __init__(self, setting: Setting) -> None: ...

    def run_epoch(self, epoch: int) -> Mapping[str, float]:
        """Train for one epoch, counted from 1, and return its numbers."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the epochs so far have changed: tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state; what follows is then what would have followed without a break."""

    def test(self) -> Mapping[str, float]:
        """Return the numbers on the test samples."""


class BrokenSystem(RuntimeError):
    """A system that does not keep its side of the contract; the message names it and says how."""


def system_numbers(
    attempt: Attempt, state: dict[str, Any] | None, dataset: Path, device: str, watchdog: Watchdog
) -> dict[str, Any]:
    """Train and test the trial's system, and return the numbers of its result.

    Args:
        attempt: What this process does.
        state: The checkpoint to go on from, None to begin.
        dataset: Where its samples are.
        device: Where to compute.
        watchdog: Is told of progress.
    """
    spec, trial, alone = attempt.spec, attempt.trial, attempt.alone(state)
    limit_device(device, None)
    samples: dict[Split, SampleColumns] = {split: read_samples(dataset, split) for split in SPLITS}
    system = made(spec, samples, device, watchdog.advance)
    records = [] if state is None else _resumed(system, attempt, state)
    attempt.check(len(records), finished=len(records) >= spec.training.epochs)
    if records:
        trial.write_curves(attempt.lease, records)
    while len(records) < spec.training.epochs and not _diverged(records):
        records.append(trained_epoch(system, spec, len(records) + 1))
        watchdog.advance()
        trial.write_curves(attempt.lease, records)
        if not _diverged(records):
            _keep(system, attempt, records, alone)
        _note(trial, records[-1])
        if attempt.report is not None:
            attempt.report(records[-1])
        if len(records) < spec.training.epochs and not _diverged(records):
            attempt.check(len(records))
    if not records:
        _keep(system, attempt, records, alone)
    assert spec.system is not None
    lost = dict.fromkeys(SYSTEMS[spec.system.name].metrics, math.nan)
    return {
        "metrics": lost if _diverged(records) else tested(system, spec.system),
        "epochs": len(records),
        "train_seconds": sum(record["train_seconds"] for record in records),
        "forward_diverged": any(record[FORWARD_DIVERGED] for record in records),
        "not_finite": _diverged(records),
        "trial_diverged": _diverged(records),
        "peak_bytes": peak_bytes(device),
        "kernel": "",
    }


def made(
    spec: TrialSpec, samples: Mapping[Split, SampleColumns], device: str, advance: Callable[..., None]
) -> SystemTrial:
    """Return a new trial of the spec's system.

    Args:
        spec: The trial.
        samples: Its splits.
        device: Where to compute.
        advance: Is told of progress.
    """
    assert spec.system is not None
    use_processor(spec.execution.threads)
    torch.manual_seed(spec.seed)
    setting = Setting(
        options=spec.system.options,
        data_options=spec.data.options,
        training=spec.training,
        train=samples["train"],
        valid=samples["valid"],
        test=samples["test"],
        seed=spec.seed,
        device=device,
        advance=advance,
    )
    begun: SystemTrial = SYSTEMS[spec.system.name].trial_class()(setting)
    return begun


def _resumed(system: SystemTrial, attempt: Attempt, state: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        records: list[dict[str, Any]] = list(state["records"])
        system.load_state_dict(state["system"])
        torch.set_rng_state(state["random_state"]["torch"])
    except DOES_NOT_FIT as error:
        raise attempt.does_not_fit(error) from error
    attempt.trial.note(f"goes on after epoch {len(records)}")
    return records


def _keep(system: SystemTrial, attempt: Attempt, records: list[dict[str, Any]], alone: bool) -> None:
    attempt.keep(records, alone, {"system": trained_state(system), "random_state": {"torch": torch.get_rng_state()}})


def trained_state(system: SystemTrial) -> dict[str, Any]:
    """Return what the epochs of a trial have changed, checked."""
    state = system.state_dict()
    _check_plain(state, "state_dict()")
    return state


def _check_plain(value: Any, where: str) -> None:
    """Refuse what no checkpoint can be read with: it holds tensors and plain data, and no code."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_plain(part, f"{where}[{key!r:.40}]")
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_plain(part, where)
    elif not isinstance(value, torch.Tensor) and type(value) not in (int, float, bool, str, type(None)):
        raise BrokenSystem(f"{where}: expected tensors and plain data, got a {type(value).__name__}")


def trained_epoch(system: SystemTrial, spec: TrialSpec, number: int) -> dict[str, Any]:
    """Train for an epoch and return its record, as it stands in the curves."""
    assert spec.system is not None
    begun = time.perf_counter()
    said = dict(system.run_epoch(number))
    seconds = time.perf_counter() - begun
    forward_diverged = bool(said.pop(FORWARD_DIVERGED, False))
    found = _numbers(spec.system, "run_epoch", said)
    return {
        "epoch": number,
        "train_seconds": seconds,
        FORWARD_DIVERGED: forward_diverged,
        "not_finite": not all(map(math.isfinite, found.values())),
        **{f"{METRIC}{name}": value for name, value in found.items()},
    }


def tested(trained: SystemTrial, system: SystemSpec) -> dict[str, float]:
    """Return the numbers of a trial on its test samples."""
    return _numbers(system, "test", trained.test())


def _numbers(system: SystemSpec, method: str, said: Mapping[str, Any]) -> dict[str, float]:
    """Return what a system reports as numbers, in the order of its metrics; refuse what it has not declared."""
    known = SYSTEMS[system.name].metrics
    for name in said:
        if name not in known:
            raise BrokenSystem(f"system {system.name!r}: {method} reports {name!r:.80}, which is none of its metrics")
    return {name: float(said[name]) for name in known if name in said}


def _diverged(records: list[dict[str, Any]]) -> bool:
    return bool(records) and bool(records[-1]["not_finite"])


def _note(trial: TrialDirectory, record: Mapping[str, Any]) -> None:
    said = [f"{name.removeprefix(METRIC)} {value:.4g}" for name, value in record.items() if name.startswith(METRIC)]
    trial.note(f"epoch {record['epoch']}: {', '.join(said)}, {record['train_seconds']:.1f} s")
