"""The outcome of a trial: the truth behind every table."""

from __future__ import annotations

import errno
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.storage.curves import FILE
from orchestrator.storage.files import Line, unsealed
from orchestrator.storage.files import ResultError as ResultError
from orchestrator.storage.files import write_bytes as write_bytes
from orchestrator.storage.files import write_json as write_json
from orchestrator.storage.provenance import Provenance

Status = Literal["COMPLETED", "OUT_OF_MEMORY", "FAILED", "CANCELLED"]
FINAL: tuple[Status, ...] = ("COMPLETED", "OUT_OF_MEMORY")
"""Outcomes that running the sweep again does not try again."""

SOLVED = 0.05
"""A relative residual of the adjoint system below which nothing grows by more than that a product."""

STANDS_STILL = 0.9
"""What of a residual must be left after as many products again for it to stand still."""

_TRIAL_ID = re.compile(r"[0-9a-f]{8,64}")

# What can't be is refused wherever it comes from; sums of shares may be a rounding error above 1.
Fraction = Annotated[float, Field(ge=0.0, le=1.0 + 1e-6)]
Seconds = Annotated[float, Field(ge=0.0, le=1e10)]
Amount = Annotated[float, Field(ge=0.0, le=1e300)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class TrialResult(BaseModel):
    """The outcome of one trial; fields written by a later version are kept when read.

    A number that is missing or not finite is None, so that `result.json` is JSON everywhere; flags say why.

    Attributes:
        trial_id: Digest of the trial's spec.
        status: COMPLETED, OUT_OF_MEMORY (both final), FAILED (tried again on the next run) or CANCELLED.
        reason: One line saying why, where the status is not COMPLETED.
        traceback: The exception's traceback of a FAILED trial.
        out_of_memory_phase: Where memory ran out, e.g. "forward", "backward".
        test_success_rate: Share of reachable starts that arrive, averaged over test maps, 0..1.
        test_optimality: Share that arrive in the fewest steps, 0..1.
        test_spl: Mean of success x optimal / taken, 0..1.
        valid_success_rate: The same on the validation maps after the last epoch, 0..1.
        train_loss: Mean cross-entropy of the last epoch, nats.
        trial_diverged: The paper's italics in Table 1: test success rate under 20 %. Of a system: a number of an epoch
            was not finite, which ended training.
        forward_diverged: The forward iteration left its fixed point at some step (App. B.2).
        forward_seconds: Median seconds of the forward pass of a training step.
        backward_seconds: Median seconds of the backward pass of a training step.
        forward_steps: Mean forward steps of the last epoch.
        forward_residual: Mean relative residual of the forward solve in the last epoch.
        backward_residual: Mean relative residual of the adjoint solve in the last epoch.
        forward_trace: Median over some test problems of the relative residual after each forward step, after training;
            None where it is not finite.
        backward_trace: The same for the adjoint system; empty where there is none.
        residual_floor: Relative residual, in float32, of what a forward solve in the half precision of training ends
            with, after training, in the median over some test problems; None for training in float32.
        peak_bytes: Largest memory held by a training step.
        train_seconds: Wall time of all epochs, validation excluded.
        epochs: Epochs trained.
        steps: Training steps.
        ended_by_budget: Whether `most_steps`, `most_seconds` or `most_applications` ended training.
        not_finite: Loss or gradient stopped being finite, which ended training.
        kernel: "compiled", "triton", or "reference" and why.
        test_accuracy: Share of test cells whose action is one of the optimal ones, 0..1.
        test_exact: Share of maps whose whole way from the problem's start, or else from the farthest cell, is a
            shortest one.
        test_success_deviation: Sample standard deviation of the success rates of the test maps.
        test_searched: Success of a graph search in the planner's place, on the maps that its mapper drew, 0..1.
        test_cells_by_distance: Test cells per bin of `planners.training.rollout.DISTANCE_BINS`.
        test_arrivals_by_distance: How many of them arrive.
        metrics: Of a system, the numbers of its test by name; None for one that is not finite.
        curves: Per-epoch records, relative to the trial directory.
        provenance: What produced these numbers.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    trial_id: str
    status: Status
    reason: Line = ""
    traceback: str = ""
    out_of_memory_phase: Line = ""
    test_success_rate: Fraction | None = None
    test_optimality: Fraction | None = None
    test_spl: Fraction | None = None
    valid_success_rate: Fraction | None = None
    train_loss: Amount | None = None
    trial_diverged: bool = False
    forward_diverged: bool = False
    forward_seconds: Seconds | None = None
    backward_seconds: Seconds | None = None
    forward_steps: Amount | None = None
    forward_residual: Amount | None = None
    backward_residual: Amount | None = None
    forward_trace: list[Amount | None] = []
    backward_trace: list[Amount | None] = []
    residual_floor: Amount | None = None
    peak_bytes: Count | None = None
    train_seconds: Seconds | None = None
    epochs: Count = 0
    steps: Count = 0
    ended_by_budget: bool = False
    not_finite: bool = False
    kernel: Line = ""
    test_accuracy: Fraction | None = None
    test_exact: Fraction | None = None
    test_searched: Fraction | None = None
    test_success_deviation: Amount | None = None
    test_cells_by_distance: list[Count] = Field([], max_length=64)
    test_arrivals_by_distance: list[Count] = Field([], max_length=64)
    metrics: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], Number | None] = Field({}, max_length=32)
    curves: str = Field(FILE, pattern=r"^[A-Za-z0-9._-]{1,100}$")
    provenance: Provenance = Provenance()

    @model_validator(mode="before")
    @classmethod
    def _finite_or_none(cls, data: Any) -> Any:
        data = unsealed(data)
        if not isinstance(data, Mapping):
            return data
        return {
            name: {key: _finite(part) for key, part in value.items()}
            if name == "metrics" and isinstance(value, Mapping)
            else _finite(value)
            for name, value in data.items()
        }

    @model_validator(mode="after")
    def _arrivals_are_of_the_cells(self) -> Self:
        check_arrivals(self.test_cells_by_distance, self.test_arrivals_by_distance)
        return self

    @property
    def final(self) -> bool:
        """True where running the sweep again leaves this trial alone."""
        return self.status in FINAL

    @property
    def backward_stalled(self) -> bool:
        """Whether the adjoint iteration, after training, got nowhere in the second half of its products (App. B.2).

        The residual is relative: one product of a linear iteration that grows by a factor of g leaves it near
        (g - 1) / g, however far w is by then, so that divergence shows as a residual that stands still. Where the
        iteration converges, however slowly, the second half of its products halves it.
        """
        trace = self.backward_trace
        if len(trace) < 3:
            return False
        last, half = trace[-1], trace[(len(trace) - 1) // 2]
        return last is None or (half is not None and last > max(SOLVED, STANDS_STILL * half))

    def stands(self, code: str, alone: bool) -> bool:
        """Return True where a process that finds this result has nothing to do for the trial.

        Args:
            code: The project's code in that process, its `code_hash`.
            alone: Whether times are asked for that a device's only trial took.
        """
        timed = self.provenance.exclusive or not alone
        return self.final and self.provenance.made_by(code) and timed


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_arrivals(cells: Sequence[int], arrivals: Sequence[int]) -> None:
    """Raise ValueError where more cells arrive than there are, in any bin."""
    if len(cells) != len(arrivals) or any(a > c for c, a in zip(cells, arrivals, strict=True)):
        raise ValueError(f"expected arrivals of {list(cells)!r:.80} cells, bin by bin, got {list(arrivals)!r:.80}")


class StorageFull(ResultError):
    """The disk is full, or a quota is used up: what is finished is kept, and running again goes on."""


def no_room(error: BaseException, place: Path) -> StorageFull | None:
    """Return what to say where `error` means a full disk or an exceeded quota, else None.

    Args:
        error: What was raised; its causes count too.
        place: Where something was to be written.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, StorageFull):
            return found
        if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(
                f"{found.filename or place}: {found.strerror}; what is finished is kept: make room, then run the same "
                "command again"
            )
        found = found.__cause__ or found.__context__
    return None


def is_trial_id(name: str) -> bool:
    """Return whether a name is a trial's id, and so the name of its directory."""
    return _TRIAL_ID.fullmatch(name) is not None


_ELSEWHERE = {"read_results": "orchestrator.api", "trial_directory": "orchestrator.storage.layout"}
"""What was here in version 0.1, and is now above this module."""


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
