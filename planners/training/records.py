"""What a training step and an epoch did, as numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planners.fixed_points import Result, Solution
from planners.training.budget import Spent, applications
from planners.training.rollout import Evaluation


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training did.

    Attributes:
        epoch: Number of epochs completed, from 1.
        train_loss: Mean cross-entropy over the epoch's steps.
        valid_success_rate: Success rate on the validation maps after the epoch (0..1; nan without validation maps).
        valid_optimality: Share of optimal roll-outs there.
        valid_spl: Success weighted by path length there.
        forward_seconds: Median over the steps; nan where all were warm-up.
        backward_seconds: The same for back-propagation.
        forward_steps: Mean number of applications of f per sample.
        forward_residual: Mean relative residual that the forward solve ended with.
        backward_residual: The same of the adjoint solve; nan where there is none.
        forward_diverged: Whether any sample's forward iteration diverged (B.2).
        not_finite: Whether loss or gradient stopped being finite; training ends there, before the update.
        kernel: "compiled", "triton", or "reference" and why.
        peak_bytes: Most tensor memory a metered step needed; 0 where none was metered.
        train_seconds: Wall time of the epoch's training steps.
        steps: Training steps since the start.
        applications: Applications of f per sample since the start, forward and backward.
    """

    epoch: int
    train_loss: float
    valid_success_rate: float
    valid_optimality: float
    valid_spl: float
    forward_seconds: float
    backward_seconds: float
    forward_steps: float
    forward_residual: float
    backward_residual: float
    forward_diverged: bool
    not_finite: bool
    kernel: str
    peak_bytes: int
    train_seconds: float
    steps: int
    applications: float


@dataclass(frozen=True)
class StepRecord:
    """What one training step did; fields as in `EpochRecord`."""

    loss: float
    forward_seconds: float
    backward_seconds: float
    forward_steps: float
    forward_residual: float
    backward_residual: float
    forward_diverged: bool
    not_finite: bool
    kernel: str
    applications: float


@dataclass(frozen=True, eq=False)
class Step:
    """What a training step has left on its device, to be read once it is done.

    Attributes:
        marks: Before and after the forward pass, before and after the backward pass; see `mark`.
        numbers: float64 [7], those of a `StepRecord` in the order of `_NUMBERS`.
        kernel: See `EpochRecord`.
    """

    marks: tuple[Any, Any, Any, Any]
    numbers: Tensor
    kernel: str


_NUMBERS = (
    "loss",
    "forward_steps",
    "forward_residual",
    "backward_residual",
    "forward_diverged",
    "not_finite",
    "applications",
)


def mark(device: torch.device) -> Any:
    """Return a mark in time, of the device's own time where the host runs ahead of it."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.get_device_module(device).Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else 1e-3 * start.elapsed_time(end)


@torch.no_grad()
def step_numbers(loss: Tensor, solution: Solution, adjoint: str, finite: Tensor) -> Tensor:
    """Return the numbers of a `Step`, after its backward pass.

    Args:
        loss: The step's loss.
        solution: Its forward solution.
        adjoint: Name of the adjoint.
        finite: Whether loss and gradient are.
    """
    record = solution.adjoint
    numbers = (
        loss.detach(),
        solution.steps.float().mean(),
        solution.residual.mean(),
        loss.new_full((), torch.nan) if record is None or record.residual is None else record.residual.mean(),
        (solution.result == Result.DIVERGED).any(),
        ~finite,
        applications(solution, adjoint),
    )
    return torch.stack([number.double() for number in numbers])


class StepLog:
    """The training steps of an epoch, read one by one or all at its end: a read waits until the device is done.

    Attributes:
        at_once: Whether each step is read when it is added.
        applications: Applications of f of the steps that were read.
    """

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self.applications = 0.0
        self._read: list[StepRecord] = []
        self._unread: list[Step] = []

    def __len__(self) -> int:
        return len(self._read) + len(self._unread)

    def add(self, step: Step) -> None:
        """Add the next step."""
        self._unread.append(step)
        if self.at_once:
            self.records()

    @property
    def not_finite(self) -> bool:
        """Whether the last step, as far as it was read, had a loss or gradient that is not finite."""
        return bool(self._read) and self._read[-1].not_finite

    def records(self) -> list[StepRecord]:
        """Return the steps up to the first that was not finite: those after it changed nothing."""
        if self._unread and not self.not_finite:
            rows = torch.stack([step.numbers for step in self._unread]).cpu().tolist()
            for step, row in zip(self._unread, rows, strict=True):
                self._read.append(_read(step, dict(zip(_NUMBERS, row, strict=True))))
                self.applications += self._read[-1].applications
                if self.not_finite:
                    break
        self._unread.clear()
        return self._read


def _read(step: Step, numbers: dict[str, Any]) -> StepRecord:
    flags = {name: bool(numbers.pop(name)) for name in ("forward_diverged", "not_finite")}
    forward, backward = _seconds(*step.marks[:2]), _seconds(*step.marks[2:])
    return StepRecord(**numbers, **flags, forward_seconds=forward, backward_seconds=backward, kernel=step.kernel)


def epoch_record(
    steps: Sequence[StepRecord],
    counted: Sequence[StepRecord],
    valid: Evaluation | None,
    *,
    epoch: int,
    peak_bytes: int,
    train_seconds: float,
    spent: Spent,
) -> EpochRecord:
    """Return an epoch's record.

    Args:
        steps: Its training steps.
        counted: Those of them whose times count.
        valid: How the planner does on the validation maps, if there are any.
        epoch: Number of epochs completed.
        peak_bytes: Most tensor memory a metered step needed.
        train_seconds: Wall time of the steps.
        spent: What all steps have cost since the start.
    """

    def mean(name: str) -> float:
        return statistics.fmean(getattr(step, name) for step in steps)

    def median(name: str) -> float:
        return statistics.median(getattr(step, name) for step in counted) if counted else float("nan")

    return EpochRecord(
        epoch=epoch,
        train_loss=mean("loss"),
        valid_success_rate=valid.success_rate if valid else float("nan"),
        valid_optimality=valid.optimality if valid else float("nan"),
        valid_spl=valid.spl if valid else float("nan"),
        forward_seconds=median("forward_seconds"),
        backward_seconds=median("backward_seconds"),
        forward_steps=mean("forward_steps"),
        forward_residual=mean("forward_residual"),
        backward_residual=mean("backward_residual"),
        forward_diverged=any(step.forward_diverged for step in steps),
        not_finite=any(step.not_finite for step in steps),
        kernel=steps[-1].kernel,
        peak_bytes=peak_bytes,
        train_seconds=train_seconds,
        steps=spent.steps,
        applications=spent.applications,
    )
