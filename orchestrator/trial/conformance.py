"""What every system must do, as functions that say so, for plug-ins' authors (`idp check`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any, cast

import torch

from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, Split
from datagen.tasks.samples import SampleColumns
from orchestrator.sweep.systems import METRIC, SYSTEMS, SystemSpec, small_options
from orchestrator.sweep.trial import TrialSpec
from orchestrator.trial.system import made, tested, trained_epoch, trained_state
from planners.specs import TrainingSpec


def check_learns_on(system: str, task: str) -> None:
    """Two epochs and a test report metrics that the system has declared, finite ones."""
    trial, spec = _begun(system, task)
    for epoch in (1, 2):
        record = trained_epoch(trial, spec, epoch)
        assert not record["not_finite"], f"epoch {epoch} reports {record}"
    found = tested(trial, SystemSpec(name=system))
    assert found and all(map(math.isfinite, found.values())), f"the test reports {found}"


def check_goes_on(system: str, task: str) -> None:
    """A trial that is put down after an epoch and taken up by another process ends with the same numbers."""
    straight, spec = _begun(system, task)
    trained_epoch(straight, spec, 1)
    content = BytesIO()
    torch.save({"system": trained_state(straight), "torch": torch.get_rng_state()}, content)
    wanted = trained_epoch(straight, spec, 2), tested(straight, SystemSpec(name=system))
    resumed, _ = _begun(system, task)
    kept = torch.load(BytesIO(content.getvalue()), weights_only=True)
    resumed.load_state_dict(kept["system"])
    torch.set_rng_state(kept["torch"])
    found = trained_epoch(resumed, spec, 2), tested(resumed, SystemSpec(name=system))
    measured = {name for name, metric in SYSTEMS[system].metrics.items() if metric.measured}
    free_to_differ = {"train_seconds", *measured, *(f"{METRIC}{name}" for name in measured)}
    for before, after in zip(wanted, found, strict=True):
        for name in before.keys() - free_to_differ:
            assert before[name] == after[name], f"{name}: {after[name]} after an interruption, {before[name]} without"


EVERY_SYSTEM: tuple[Callable[[str, str], None], ...] = (check_learns_on, check_goes_on)


def _begun(system: str, task: str) -> tuple[Any, TrialSpec]:
    """Return a new trial on a few samples, with the system's default options, and its spec."""
    heeded = {"batch_size": 4, "epochs": 2}
    training = TrainingSpec(**{name: heeded[name] for name in ("epochs", *SYSTEMS[system].training) if name in heeded})
    data = DatasetSpec(task=task, train=5, valid=2, test=2, options=small_options(task))
    spec = TrialSpec(data=data, system=SystemSpec(name=system), training=training)
    own = {split: {name: values.copy() for name, values in of.items()} for split, of in _samples(data).items()}
    return made(spec, own, "cpu", lambda *_: None), spec


@cache
def _samples(data: DatasetSpec) -> dict[Split, SampleColumns]:
    """Return a few samples, which may take seconds each: the same for every check."""
    make = TASKS[data.task].draw()
    return {split: cast(SampleColumns, make(data, split, 0, data.count(split))) for split in SPLITS}
