"""From a YAML sweep to the trials it stands for; needs no torch and no Ray, so planning is instant."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from datagen.plugins import require
from datagen.spec import Spec, digest, first_problem, nearest
from datagen.task import TASKS, DatasetSpec, input_channels
from orchestrator.plugins import used_by
from orchestrator.search_space import SearchSpec, Suggestions
from planners.specs import PlannerSpec, TrainingSpec

Scalar = str | int | float | bool | None
S = TypeVar("S", bound=Spec)
MOST_TRIALS = 100_000
_ROW_FIELDS = ("training", "grid", "test_steps_per_row")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class SweepError(ValueError):
    """A sweep that can't be run; the message, one line, names the file, the field and what was expected."""

    def __init__(self, message: str) -> None:
        # It may quote names from the file, with line breaks and whatever else they are made of.
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message))


class ExecutionSpec(Spec):
    """Where and how a trial computes, as far as it changes numbers or their meaning.

    Attributes:
        threads: Threads of the trial's process.
        device: "cpu", "cuda", or "auto" for a GPU where Ray lends one and the planner's solvers work on it; the result
            says which it was.
        memory_limit_gib: Tensor memory at which a trial is OUT_OF_MEMORY (the paper's cards have 11); None for none.
        kernel: "reference" is the generic PyTorch path, "auto" a compiled one where the core has it.
    """

    threads: int = Field(1, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_limit_gib: float | None = Field(None, gt=0.0)
    kernel: Literal["auto", "reference"] = "auto"


class TrialSpec(Spec):
    """One trial, fully determined.

    Attributes:
        data: What it trains, validates and tests on.
        planner: What it trains.
        training: How.
        execution: Where, as far as that changes numbers.
        seed: Seed of the initial weights and of the order of the training data.
        plugins: The plug-ins that its parts come from, which a reader must have loaded; none for this project's own.
    """

    plugins: tuple[str, ...] = ()
    data: DatasetSpec = DatasetSpec()
    planner: PlannerSpec = PlannerSpec()
    training: TrainingSpec = TrainingSpec()
    execution: ExecutionSpec = ExecutionSpec()
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _plugins_first(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "plugins" in data:
            require(data["plugins"])
        return data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.training.epochs > 0 and self.data.train < self.training.batch_size:
            raise ValueError(
                f"data.train is {self.data.train}, less than one batch (training.batch_size {self.training.batch_size})"
            )
        if self.data.test == 0:
            raise ValueError("data.test is 0: a trial is judged by its test maps")
        if self.training.tested_checkpoint == "best" and self.data.valid == 0:
            raise ValueError("training.tested_checkpoint 'best' needs validation maps, but data.valid is 0")
        for field, value in (("device", "cuda"), ("kernel", "reference")):
            solver = self.planner.compiled_solver
            if solver and getattr(self.execution, field) == value:
                raise ValueError(f"execution.{field} is {value!r}, but solver {solver!r} is compiled for CPUs alone")
        self.planner.check_moves(TASKS[self.data.task].moves)
        least = self.training.discount_from
        if least is not None and least > (discount := getattr(self.planner.options, "discount", 0.0)):
            expected = (
                f"at most the planner's, {discount}"
                if discount
                else f"none: core {self.planner.core!r} has no discount"
            )
            raise ValueError(f"training.discount_from is {least}, expected {expected}")
        return self


def trial_id(spec: TrialSpec) -> str:
    """Return the trial's identity: sixteen hexadecimal digits of the sha256 of its canonical JSON."""
    return digest(spec, 16)


class PlannerEntry(Spec):
    """A row of the sweep's table: a planner (without K), and what it does differently from the rest of the sweep.

    Attributes:
        planner: Fields of `PlannerSpec`; in the YAML they stand directly in the entry.
        training: Fields of `TrainingSpec` that differ for this planner.
        grid: Axes that differ for this planner.
        test_steps_per_row: Forward steps per row of the map where the planner is tested on the sweep's `test_on` maps,
            so that they grow with the map; None keeps those of its training.
    """

    planner: dict[str, Any] = {}
    training: dict[str, Any] = {}
    grid: dict[str, list[Scalar]] = {}
    test_steps_per_row: float | None = Field(None, gt=0.0)

    @model_validator(mode="before")
    @classmethod
    def _planner_fields_stand_in_the_entry(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = {key: data[key] for key in _ROW_FIELDS if key in data}
        return {"planner": {key: data[key] for key in data if key not in _ROW_FIELDS}, **own}


class Resources(Spec):
    """What one trial asks of the cluster; no part of a trial's identity.

    Attributes:
        cpus: CPUs per trial; None for as many as `execution.threads`.
        gpus: GPUs per trial, a fraction to share one; "auto" for one where the cluster has any.
        accelerator: Ray's name of the GPU model that the trials must run on, e.g. "H100" or "A100-80G".
        min_memory_gib: Least memory of the GPU; the smallest model of the cluster that has it is taken.
        exclusive: True gives each trial its device to itself, a GPU or all processors of its machine, so that its times
            can be reported.
    """

    cpus: float | None = Field(None, gt=0.0)
    gpus: Annotated[float, Field(ge=0.0)] | Literal["auto"] = "auto"
    accelerator: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$")
    min_memory_gib: float | None = Field(None, gt=0.0)
    exclusive: bool = False


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


class SweepSpec(Spec):
    """A sweep: tasks x planners x grid, and how each trial is trained.

    Attributes:
        name: Name of the sweep and of its MLflow experiment.
        description: The question that the sweep answers, in a sentence or two.
        next: The sweep to suggest when this one is done.
        figures: The pictures that show its results, names in `orchestrator.figures.FIGURES`.
        tasks: Fields of `DatasetSpec` per task, over those in `data`; and a `grid` of the axes that differ for the task
            (a planner's own go before them).
        data: Fields of `DatasetSpec` shared by all tasks.
        planners: Rows of the table by name.
        grid: Axes: `k` (steps), `seed`, or the path of a field of the trial, such as `planner.k_bwd`.
        training: How the planners are trained.
        budget: One budget for all planners, over what `training` says; no planner may have another.
        execution: Where the trials compute, as far as it changes numbers.
        resources: What a trial asks of the cluster.
        test_on: Further test maps for every trained planner: fields of `DatasetSpec` over those of the trial's task,
            with `test` maps and no others. They are no part of a trial's identity.
        plugins: Modules that bring cores, mappers, solvers, adjoints and tasks of their own; looked for beside the
            sweep, in the current folder and on Python's path. A trial's identity names those that it uses.
        search: Axes whose best values are looked for, beside the grid.
    """

    name: str
    description: str = ""
    next: str | None = None
    figures: list[str] = []
    tasks: list[dict[str, Any]] = Field([{"task": "navigation"}], min_length=1)
    data: dict[str, Any] = {}
    planners: dict[str, PlannerEntry] = Field(min_length=1)
    grid: dict[str, list[Scalar]] = {"k": [30], "seed": [0]}
    training: dict[str, Any] = {}
    budget: Budget = Budget()
    execution: SerializeAsAny[ExecutionSpec] = ExecutionSpec()
    resources: Resources = Resources()
    test_on: list[dict[str, Any]] = []
    plugins: list[str] = []
    search: SearchSpec | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        # Names become folders and experiment names: none may leave the storage.
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r}: expected at most 64 letters, digits, '.', '_', '+' or '-', a letter or digit first"
            )
        return name

    @field_validator("planners")
    @classmethod
    def _planners_have_plain_names(cls, planners: dict[str, PlannerEntry]) -> dict[str, PlannerEntry]:
        for name in planners:
            cls._name_is_a_file_name(name)
        return planners

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        fixed = self.budget.training()
        for name, entry in self.planners.items():
            for field in fixed:
                if field in entry.training:
                    raise ValueError(f"planners.{name}.training.{field}: the sweep's budget fixes it for all planners")
        grids = [self.grid, *(entry.grid for entry in self.planners.values()), *(t.get("grid", {}) for t in self.tasks)]
        for field in fixed:
            if any(isinstance(grid, dict) and f"training.{field}" in grid for grid in grids):
                raise ValueError(f"grid.training.{field}: the sweep's budget fixes it for all planners")
        return self


@dataclass(frozen=True)
class PlannedTrial:
    """A trial of a sweep and its place there.

    Attributes:
        trial_id: The trial's identity.
        spec: The trial.
        axes: Where it stands in the sweep: planner, task, map_size, k, seed, and further axes of the grid.
    """

    trial_id: str
    spec: TrialSpec
    axes: dict[str, Scalar]


def studies(sweep: SweepSpec) -> list[str]:
    """Return the studies of a search: one for each planner on each task."""
    return [f"{number}/{name}" for number in range(len(sweep.tasks)) for name in sweep.planners]


def expand(sweep: SweepSpec, suggestions: Suggestions | None = None) -> list[PlannedTrial]:
    """Return the sweep's trials: tasks x planners x the product of the grid's axes, in that order.

    Args:
        sweep: The sweep.
        suggestions: Of a search, what has been suggested so far: each takes the place of grid axes.

    Raises:
        SweepError: When a trial is impossible; the message names its place in the sweep.
    """
    trials: list[PlannedTrial] = []
    datasets = [
        _checked(DatasetSpec, {**sweep.data, **_without(fields, "grid")}, f"tasks.{number}")
        for number, fields in enumerate(sweep.tasks)
    ]
    for number, (task_fields, data) in enumerate(zip(sweep.tasks, datasets, strict=True)):
        where = f"tasks.{number}"
        task_grid = _task_grid(task_fields.get("grid", {}), where)
        for further in range(len(sweep.test_on)):
            further_tests(sweep, data, further)
        task = TASKS[data.task]
        surroundings = {"wrap": task.moves.wrap, "mapper": task.mapper, "channels": input_channels(data)}
        for name, entry in sweep.planners.items():
            where = f"planners.{name}"
            suggested: Iterable[dict[str, Scalar]] = [{}]
            if sweep.search is not None:
                suggested = (suggestions or {}).get(f"{number}/{name}", [])
            grids = [
                _axes(sweep, task_grid, entry, where) | {axis: [value] for axis, value in suggestion.items()}
                for suggestion in suggested
            ]
            for axes in (axes for grid in grids for axes in _product(grid, where, MOST_TRIALS - len(trials))):
                fields: dict[str, Any] = {
                    "data": data,
                    "planner": {**surroundings, **entry.planner},
                    "training": {**sweep.training, **entry.training, **sweep.budget.training()},
                    "execution": sweep.execution,
                }
                for axis, value in axes.items():
                    _place(fields, axis, value, where)
                spec = _checked(TrialSpec, fields, where)
                spec = spec.model_copy(update={"plugins": used_by(spec.data, spec.planner)})
                place: dict[str, Scalar] = {"planner": name, "task": data.task, "map_size": data.map_size}
                place |= {"k": spec.planner.k_fwd, "seed": spec.seed, **_told_apart(data, datasets)}
                place |= {axis: value for axis, value in axes.items() if axis not in ("k", "seed")}
                trials.append(PlannedTrial(trial_id(spec), spec, place))
    return trials


def _told_apart(data: DatasetSpec, datasets: list[DatasetSpec]) -> dict[str, Scalar]:
    """Return the fields in which a dataset differs from others of its task and size, which would share its cells."""

    def scalars(spec: DatasetSpec) -> dict[str, Scalar]:
        every = {**spec.model_dump(exclude={"options"}), **spec.options.model_dump(mode="json")}
        return {f"data.{name}": value for name, value in every.items() if isinstance(value, Scalar)}

    alike = [scalars(other) for other in datasets if (other.task, other.map_size) == (data.task, data.map_size)]
    return {name: value for name, value in scalars(data).items() if any(other.get(name) != value for other in alike)}


def further_tests(sweep: SweepSpec, trained_on: DatasetSpec, number: int) -> DatasetSpec:
    """Return the sweep's `test_on` maps `number` for a planner that was trained on `trained_on`.

    Raises:
        SweepError: When they are impossible.
    """
    where, fields = f"test_on.{number}", sweep.test_on[number]
    own: dict[str, Any] = {"task": trained_on.task, "map_size": trained_on.map_size}
    if fields.get("task", trained_on.task) == trained_on.task:
        own["options"] = trained_on.options
    spec = _checked(DatasetSpec, {**own, "train": 0, "valid": 0, "test": 1000, **fields}, where)
    if spec.train or spec.valid or not spec.test:
        raise SweepError(f"{where}: expected test maps and no others, got {spec.train}/{spec.valid}/{spec.test}")
    if TASKS[spec.task].moves.wrap != TASKS[trained_on.task].moves.wrap:
        raise SweepError(f"{where}: a planner of {trained_on.task} can't be tested on {spec.task}: one is a torus")
    return spec


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _task_grid(grid: Any, where: str) -> dict[str, list[Scalar]]:
    if not isinstance(grid, dict) or not all(isinstance(values, list) for values in grid.values()):
        raise SweepError(f"{where}.grid: expected a mapping of axes to lists, got {grid!r:.80}")
    return grid


def _axes(
    sweep: SweepSpec, task_grid: dict[str, list[Scalar]], entry: PlannerEntry, where: str
) -> dict[str, list[Scalar]]:
    axes = {**sweep.grid, **task_grid, **entry.grid}
    for axis, values in axes.items():
        if not values:
            raise SweepError(f"{where}: grid.{axis}: expected at least one value, got an empty list")
    return axes


def _product(axes: dict[str, list[Scalar]], where: str, most: int) -> Iterable[dict[str, Scalar]]:
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > most:
        raise SweepError(f"{where}: the sweep has more than {MOST_TRIALS} trials")
    for place in itertools.product(*axes.values()):
        yield dict(zip(axes, place, strict=True))


def _place(fields: dict[str, Any], axis: str, value: Scalar, where: str) -> None:
    """Set the field that a grid axis stands for in a trial's fields."""
    section, _, field = {"k": "planner.k_fwd", "seed": ".seed"}.get(axis, axis).partition(".")
    if section == "" and field == "seed":
        fields["seed"] = value
    elif section in ("planner", "training") and field and "." not in field:
        fields[section] = {**fields[section], field: value}
    else:
        raise SweepError(
            f"{where}: grid.{axis}: expected k, seed, planner.FIELD or training.FIELD; "
            f"{nearest(axis, ['k', 'seed', 'planner.k_bwd', 'planner.solver', 'training.learning_rate'])}"
        )


def _checked(kind: type[S], fields: Mapping[str, Any], where: str) -> S:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise SweepError(f"{where}: {first_problem(error)}") from None
