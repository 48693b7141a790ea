"""A trial, fully determined: what its directory in the storage is named after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from datagen.plugins import require
from datagen.spec import Spec, digest
from datagen.tasks.registry import TASKS, DatasetSpec
from datagen.tasks.samples import Samples
from orchestrator.sweep.limits import ExecutionSpec
from orchestrator.sweep.systems import SYSTEMS, SystemSpec
from planners.specs import PlannerSpec, TrainingSpec


class TrialSpec(Spec):
    """One trial, fully determined.

    Attributes:
        data: What it trains, validates and tests on.
        planner: What it trains.
        training: How.
        execution: Where, as far as that changes numbers.
        seed: Seed of the initial weights and of the order of the training data.
        plugins: The plug-ins that its parts come from, which a reader must have loaded; none for this project's own.
        system: What it trains instead of a planner; None for a planner.
    """

    plugins: tuple[str, ...] = ()
    data: DatasetSpec = DatasetSpec()
    planner: PlannerSpec = PlannerSpec()
    training: TrainingSpec = TrainingSpec()
    execution: ExecutionSpec = ExecutionSpec()
    seed: int = Field(0, ge=0, lt=2**32)
    system: SystemSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _plugins_first(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "plugins" in data:
            require(data["plugins"])
        return data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.system is not None:
            return self._possible_system(self.system)
        if isinstance(TASKS[self.data.task], Samples):
            raise ValueError(f"task {self.data.task!r} has no maps to plan on, but samples for a system: name one")
        if self.training.epochs > 0:
            self._has_a_batch()
        if self.data.test == 0:
            raise ValueError("data.test is 0: a trial is judged by its test maps")
        if self.training.tested_checkpoint == "best" and self.data.valid == 0:
            raise ValueError("training.tested_checkpoint 'best' needs validation maps, but data.valid is 0")
        if solver := self.planner.compiled_solver:
            for field, value in (("device", "cuda"), ("kernel", "reference")):
                if getattr(self.execution, field) == value:
                    raise ValueError(f"execution.{field} is {value!r}, but solver {solver!r} is compiled, for CPUs")
            if self.training.precision != "float32":
                raise ValueError(f"training.precision is {self.training.precision!r}; solver {solver!r} takes float32")
            if smoothed := getattr(self.planner.options, "temperature", 0.0):
                raise ValueError(f"solver {solver!r} takes the maximum as it is; got temperature {smoothed}")
        self.planner.check_moves(TASKS[self.data.task].moves)
        self._check_task()
        least = self.training.discount_from
        if least is not None and least > (discount := getattr(self.planner.options, "discount", 0.0)):
            expected = (
                f"at most the planner's, {discount}"
                if discount
                else f"none: core {self.planner.core!r} has no discount"
            )
            raise ValueError(f"training.discount_from is {least}, expected {expected}")
        return self

    def _check_task(self) -> None:
        task = TASKS[self.data.task]
        if self.training.labels == "path" and (task.moves.links or not task.starts(self.data)):
            raise ValueError(
                f"training.labels is 'path', but the problems of task {self.data.task!r} name no start on a grid"
            )
        if task.cell_costs and self.planner.mapper != "identity":
            for field in ("mapper_pretrain_epochs", "mapper_weight"):
                if getattr(self.training, field):
                    raise ValueError(
                        f"training.{field} is {getattr(self.training, field):g}, expected 0: the maps of task "
                        f"{self.data.task!r} say where one can go, and teach its mapper nothing of costs"
                    )

    def _has_a_batch(self) -> None:
        if self.data.train < (size := self.training.batch_size):
            raise ValueError(f"data.train is {self.data.train}, less than one batch (training.batch_size {size})")

    def _possible_system(self, system: SystemSpec) -> Self:
        if self.planner != PlannerSpec():
            raise ValueError("planner: a trial of a system has none; leave it out")
        if self.execution.memory_limit_gib is not None:
            raise ValueError("execution.memory_limit_gib: means nothing to a system, whose memory is not metered")
        if self.data.test == 0:
            raise ValueError("data.test is 0: a trial is judged by its test samples")
        if self.training.epochs > 0 and "batch_size" in SYSTEMS[system.name].training:
            self._has_a_batch()
        system.check(self.data, self.training)
        return self


def trial_id(spec: TrialSpec) -> str:
    """Return the trial's identity: sixteen hexadecimal digits of the sha256 of its canonical JSON.

    How a GPU launches its steps (`execution.graphs`) is no part of it, as the model of the device is not: numbers are
    the same to rounding, and what has ended stands for both.
    """
    return digest(spec.model_copy(update={"execution": however_launched(spec.execution)}), 16)


def however_launched(execution: ExecutionSpec) -> ExecutionSpec:
    """Return what of an execution is part of what a trial is."""
    return execution.model_copy(update={"graphs": None})
