"""A few full-size training steps of every cell of a sweep, to know what it will cost and what will not fit."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from datagen.problem import Problems
from datagen.tasks.registry import TASKS
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.measurements import Measurement, timed_cell, write_measurement
from orchestrator.storage.provenance import provenance
from orchestrator.sweep.specs import PlannedTrial
from orchestrator.trial.device import device_of, limit_bytes, no_graphs, use_processor
from orchestrator.trial.failure import memory_phase
from orchestrator.words import first_line, trial_name
from planners.training.memory import MemoryLimitExceeded
from planners.training.trainer import WARM_UP_STEPS, Trainer

STEPS = 4
"""Steps that are timed, after the warm-up."""


def measure_cells(
    trials: Iterable[PlannedTrial], storage: Storage, say: Callable[[PlannedTrial, Measurement], None]
) -> list[Measurement]:
    """Measure every distinct cell on this machine and keep what was found in the storage.

    Args:
        trials: The sweep's trials; of those that differ in the seed alone, one is measured, and none that is a system.
        storage: The storage directory.
        say: Is told of each measurement.
    """
    planners = [trial for trial in trials if trial.spec.training.epochs and trial.spec.system is None]
    cells = {timed_cell(trial.spec): trial for trial in reversed(planners)}
    found = []
    for cell, trial in reversed(cells.items()):
        measurement = _measure(trial, cell)
        write_measurement(storage, measurement)
        say(trial, measurement)
        found.append(measurement)
    return found


def _measure(trial: PlannedTrial, cell: str) -> Measurement:
    spec = trial.spec
    device = device_of(spec)
    use_processor(spec.execution.threads)
    name = trial_name(replace(trial, axes=trial.cell))
    facts = {
        "cell": cell,
        "device": provenance(device=device, graphs=not no_graphs(spec, device)).device_name,
        "host": socket.gethostname(),
        "code": code_hash(),
        "name": name,
    }
    try:
        problems = _problems(trial)
        trainer = Trainer(
            spec.planner,
            spec.training.model_copy(update={"tested_checkpoint": "last"}),
            problems,
            problems[0:0],
            moves=TASKS[spec.data.task].moves,
            seed=spec.seed,
            device=device,
            kernel=spec.execution.kernel,
            memory_limit_bytes=limit_bytes(device, spec.execution.memory_limit_gib),
            graphs=not no_graphs(spec, device),
        )
        record = trainer.run_epoch()
    except (MemoryLimitExceeded, torch.OutOfMemoryError, MemoryError) as error:
        phase = memory_phase(error)
        peak = error.peak_bytes if isinstance(error, MemoryLimitExceeded) else None
        return Measurement(**facts, status="OUT_OF_MEMORY", reason=f"in {phase}: {error}", peak_bytes=peak)
    except Exception as error:  # whatever breaks a trial is to be known before the sweep starts
        return Measurement(**facts, status="FAILED", reason=first_line(f"{type(error).__name__}: {error}"))
    return Measurement(
        **facts,
        status="COMPLETED",
        step_seconds=record.forward_seconds + record.backward_seconds,
        forward_seconds=record.forward_seconds,
        backward_seconds=record.backward_seconds,
        peak_bytes=record.peak_bytes,
    )


def _problems(trial: PlannedTrial) -> Problems:
    """Return fresh problems of the cell's size, enough for the warm-up and the timed steps."""
    count = trial.spec.training.batch_size * (WARM_UP_STEPS + STEPS)
    data = trial.spec.data.model_copy(update={"train": count})
    return TASKS[data.task].draw()(data, "train", 0, count)
