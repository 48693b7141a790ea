"""What trials ask of the cluster, and what they may spend on training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from datagen.spec import Spec
from orchestrator.sweep.grid import expecting

LEAST_STALL_SECONDS = 2.0
"""A step, or a batch of a test, may take a second: with less, trials that are well would be ended, and FAILED."""

MOST = 1e9
"""Processors, GPUs, or GiB: more than any cluster has, and few enough to count with."""
_Gpus = Annotated[
    Annotated[float, Field(ge=0.0, le=MOST)] | Literal["auto"], expecting(f"a number from 0 to {MOST:g}, or 'auto'")
]


class AtMost(Spec):
    """What all trials of a sweep together may take of a cluster.

    Attributes:
        cpus: Processors; None for any number.
        gpus: GPUs; None for any number.
    """

    cpus: float | None = Field(None, gt=0.0, le=MOST)
    gpus: float | None = Field(None, gt=0.0, le=MOST)


class Resources(Spec):
    """What one trial asks of the cluster; no part of a trial's identity.

    Attributes:
        cpus: CPUs per trial; None for as many as `execution.threads`.
        gpus: GPUs per trial, a fraction to share one; "auto" for one where the cluster has any.
        accelerator: Ray's name of the GPU model that the trials must run on, e.g. "H100" or "A100-80G".
        min_memory_gib: Least memory of the GPU; the smallest model of the cluster that has it is taken.
        exclusive: True gives each trial its device to itself, a GPU or all processors of its machine, so that its times
            can be reported.
        stall_seconds: Time without a training step or a tested batch (loading and compiling apart) after which a
            trial's process is ended and its trial taken up again, as if it had died; None to wait for ever.
        at_most: What its trials together may take of a cluster.
        priority: Runs of a higher one get what they want of a cluster first; those of the same share it by user.
    """

    cpus: float | None = Field(None, gt=0.0, le=MOST)
    gpus: _Gpus = "auto"
    accelerator: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$")
    min_memory_gib: float | None = Field(None, gt=0.0, le=MOST)
    exclusive: bool = False
    stall_seconds: float | None = Field(1800.0, ge=LEAST_STALL_SECONDS, le=30 * 86400.0)
    at_most: AtMost | None = None
    priority: int = Field(0, ge=-1000, le=1000)

    @field_validator("gpus")
    @classmethod
    def _above_one_they_are_whole(cls, gpus: float | str) -> float | str:
        if isinstance(gpus, float) and gpus > 1 and not gpus.is_integer():
            raise ValueError(f"expected a part of one, or a whole number, got {gpus:g}")  # Ray lends no others
        return gpus

    def of_one_trial(self, threads: int) -> dict[str, float]:
        """Return what a trial of so many threads needs at least; a cluster may give it more.

        Args:
            threads: `execution.threads`.
        """
        pinned = self.accelerator is not None or self.min_memory_gib is not None
        gpus = float(pinned) if self.gpus == "auto" else self.gpus
        return {"cpus": float(threads) if self.cpus is None else self.cpus, "gpus": gpus}


class Budget(Spec):
    """What every planner of a sweep may spend on training; the first limit that is reached ends it.

    Attributes:
        epochs: `training.epochs`; where it is left out, that of the sweep's training stays a limit too.
        steps: `training.most_steps`.
        seconds: `training.most_seconds`: wall time of training steps.
        applications: `training.most_applications`: applications of f per sample, forward and backward.
    """

    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0.0)
    applications: float | None = Field(None, gt=0.0)

    def training(self) -> dict[str, int | float]:
        """Return the fields of `TrainingSpec` that it sets."""
        limits = {
            "epochs": self.epochs,
            "most_steps": self.steps,
            "most_seconds": self.seconds,
            "most_applications": self.applications,
        }
        return {name: most for name, most in limits.items() if most is not None}


class ExecutionSpec(Spec):
    """Where and how a trial computes, as far as it changes numbers or their meaning.

    Attributes:
        threads: Threads of the trial's process.
        device: "cpu", "cuda", or "auto" for a GPU where Ray lends one and the planner's solvers work on it; the result
            says which it was.
        memory_limit_gib: Tensor memory at which a trial is OUT_OF_MEMORY (the paper's cards have 11); None for none. On
            a GPU libraries' own memory counts too, and the limit is at least 0.25.
        kernel: "reference" is the generic PyTorch path, "auto" a compiled one where the core has it.
        graphs: Whether a trial on a GPU replays its training steps as CUDA graphs. Steps that draw random numbers or
            wait for the host never are; by default those of trials with a plug-in's part are not either.
    """

    threads: int = Field(1, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_limit_gib: float | None = Field(None, gt=0.0, le=MOST)
    kernel: Literal["auto", "reference"] = "auto"
    graphs: bool | None = None
