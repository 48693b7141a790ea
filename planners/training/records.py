"""What a training step and an epoch did, as numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from planners.training.budget import Spent
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
        kernel: "compiled", or "reference" and why.
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
