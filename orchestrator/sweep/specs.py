"""From a YAML sweep to the trials it stands for; needs no torch and no Ray, so planning is instant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from pydantic import Field, PrivateAttr, SerializeAsAny, ValidationError, field_validator, model_validator

from datagen.spec import Spec, first_problem
from datagen.tasks.registry import TASKS, DatasetSpec, input_channels
from datagen.tasks.samples import Samples
from orchestrator.errors import SweepError as SweepError
from orchestrator.sweep import grid
from orchestrator.sweep.grid import MOST_TRIALS, GridError, Value
from orchestrator.sweep.grid import Scalar as Scalar
from orchestrator.sweep.limits import Budget as Budget
from orchestrator.sweep.limits import ExecutionSpec as ExecutionSpec
from orchestrator.sweep.limits import Resources as Resources
from orchestrator.sweep.plugins import used_by
from orchestrator.sweep.search_space import SearchSpec, Suggestions
from orchestrator.sweep.trial import TrialSpec as TrialSpec
from orchestrator.sweep.trial import trial_id as trial_id
from planners.registry import Measure
from planners.trial_files import MOST_STEPS_PER_ROW

S = TypeVar("S", bound=Spec)
ROW_FIELDS = ("training", "grid", "test_steps_per_row")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class PlannerEntry(Spec):
    """A row of the sweep's table: a planner (without K), and what it does differently from the rest of the sweep.

    Attributes:
        planner: Fields of `PlannerSpec`; in the YAML they stand directly in the entry. Where one of them is `system`,
            the row is a system, and they are its name and its options.
        training: Fields of `TrainingSpec` that differ for this planner.
        grid: Axes that differ for this planner.
        test_steps_per_row: Forward steps per row of the map where the planner is tested on the sweep's `test_on` maps,
            so that they grow with the map; None keeps those of its training.
    """

    planner: dict[str, Any] = {}
    training: dict[str, Any] = {}
    grid: dict[str, list[Value]] = {}
    test_steps_per_row: float | None = Field(None, gt=0.0, le=MOST_STEPS_PER_ROW)

    @model_validator(mode="before")
    @classmethod
    def _planner_fields_stand_in_the_entry(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = {key: data[key] for key in ROW_FIELDS if key in data}
        return {"planner": {key: data[key] for key in data if key not in ROW_FIELDS}, **own}

    @property
    def is_system(self) -> bool:
        """Whether the row is a system, which has no K and is tested on no further maps."""
        return "system" in self.planner


class SweepSpec(Spec):
    """A sweep: tasks x planners x grid, and how each trial is trained.

    Attributes:
        name: Name of the sweep and of its MLflow experiment.
        description: The question that the sweep answers, in a sentence or two.
        next: The sweep to suggest when this one is done.
        figures: The pictures that show its results, names in `orchestrator.figures.registry.FIGURES`.
        tasks: Fields of `DatasetSpec` per task, over those in `data`; and a `grid` of the axes that differ for the task
            (a planner's own go before them).
        data: Fields of `DatasetSpec` shared by all tasks; `distinct` is "up_to_symmetry" unless given.
        planners: Rows of the table by name; null leaves out one of the sweep that this one extends.
        grid: Axes: `k` (steps), `seed`, or the path of a field of the trial, such as `planner.k_bwd`. They go before
            `training`; a planner's entry may not set a field that an axis of its sets too, nor an axis a value twice.
        training: How the planners are trained.
        budget: One budget for all planners, over what `training` says; no planner may have another.
        execution: Where the trials compute, as far as it changes numbers.
        resources: What a trial asks of the cluster.
        test_on: Further test maps for every trained planner: fields of `DatasetSpec` over those of the trial's task,
            with `test` maps and no others. They are no part of a trial's identity. Their seed, unless given, is another
            than the trial's: a sample of their own (where `data.distinct` is "maps", as in sweeps of version 0.1.0, the
            first of the same test maps). A `grid` of fields and `options.NAME` stands for a set of maps for each place.
        measure: What those tests measure beside success, names in `planners.registry.MEASURES`.
        plugins: Modules that bring cores, mappers, solvers, adjoints and tasks of their own; looked for beside the
            sweep, in the current folder and on Python's path. A trial's identity names those that it uses.
        search: Axes whose best values are looked for, beside those of the grids: none is an axis of both.
    """

    name: str
    description: str = ""
    next: str | None = None
    figures: list[str] = []
    tasks: list[dict[str, Any]] = Field([{"task": "navigation"}], min_length=1)
    data: dict[str, Any] = {}
    planners: dict[str, PlannerEntry] = Field(min_length=1)
    grid: dict[str, list[Value]] = {"k": [30], "seed": [0]}
    training: dict[str, Any] = {}
    budget: Budget = Budget()
    execution: SerializeAsAny[ExecutionSpec] = ExecutionSpec()
    resources: Resources = Resources()
    test_on: list[dict[str, Any]] = []
    measure: list[Measure] = []
    plugins: list[str] = []
    search: SearchSpec | None = None
    _label: str = PrivateAttr("")

    @property
    def label(self) -> str:
        """What of the file was asked for, "smoke, training.epochs=3", empty for the file as it is: words alone."""
        return self._label

    def labelled(self, label: str) -> Self:
        """Return the sweep with these words for what was asked for."""
        sweep = self.model_copy()
        sweep._label = label
        return sweep

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

    @field_validator("test_on")
    @classmethod
    def _a_set_for_each_place(cls, test_on: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sets: list[dict[str, Any]] = []
        for number, entry in enumerate(test_on):
            sets += grid.spread(entry, number, MOST_TRIALS - len(sets))
        return sets

    @model_validator(mode="after")
    def _set_in_one_place(self) -> Self:
        space = {} if self.search is None else self.search.space
        grids = {f"planners.{name}.grid": entry.grid for name, entry in self.planners.items()}
        grids |= {f"tasks.{number}.grid": task["grid"] for number, task in enumerate(self.tasks) if "grid" in task}
        if "grid" in self.model_fields_set:  # else a search replaces an axis of the default one
            grids["grid"] = self.grid
        for field in self.budget.training():
            for name, entry in self.planners.items():
                if field in entry.training:
                    raise ValueError(f"planners.{name}.training.{field}: the sweep's budget fixes it for all planners")
            if any(isinstance(axes, dict) and f"training.{field}" in axes for axes in grids.values()):
                raise ValueError(f"grid.training.{field}: the sweep's budget fixes it for all planners")
            if f"training.{field}" in space:
                raise ValueError(f"search.space.training.{field}: the sweep's budget fixes it for all planners")
        grid.check_searched(space, grids)
        systems = [name for name, entry in self.planners.items() if entry.is_system]
        for field in ("test_on", "measure", "search"):
            if systems and getattr(self, field):
                raise ValueError(f"{field}: is for planners, and planners.{systems[0]} is a system")
        for name in systems:
            if self.planners[name].test_steps_per_row is not None:
                raise ValueError(f"planners.{name}.test_steps_per_row: a system takes no steps per row of a map")
        return self

    @model_validator(mode="after")
    def _a_trial_may_begin(self) -> Self:
        for name, needed in self.resources.of_one_trial(self.execution.threads).items():
            most = getattr(self.resources.at_most, name, None)
            if most is not None and needed > most:
                raise ValueError(
                    f"resources.at_most.{name}: expected {needed:g} or more, as one trial has, got {most:g}"
                )
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

    @property
    def cell(self) -> dict[str, Scalar]:
        """Where it stands but for the seed: what one row of a table averages."""
        return {axis: value for axis, value in self.axes.items() if axis != "seed"}


def studies(sweep: SweepSpec) -> list[str]:
    """Return the studies of a search: one for each planner on each task."""
    return [f"{number}/{name}" for number in range(len(sweep.tasks)) for name in sweep.planners]


def expand(sweep: SweepSpec, suggestions: Suggestions | None = None) -> list[PlannedTrial]:
    """Return the sweep's trials, as `Expansion.trials` does."""
    return Expansion(sweep).trials(suggestions)


class Expansion:
    """Makes the trials that a sweep stands for, each once however often it is asked for: a search asks many times."""

    def __init__(self, sweep: SweepSpec) -> None:
        self.sweep = sweep
        self._made: dict[str, PlannedTrial] = {}
        self._parts: dict[str, Spec] = {}
        if len(sweep.tasks) * len(sweep.test_on) > MOST_TRIALS:
            raise SweepError(f"test_on: the sweep's tasks have more than {MOST_TRIALS} {grid.TESTS} together")
        self._datasets = [
            _checked(DatasetSpec, _ruled({**sweep.data, **fields}, "grid"), f"tasks.{number}")
            for number, fields in enumerate(sweep.tasks)
        ]
        self._apart = _told_apart(self._datasets)
        self._grids = []
        for number, data in enumerate(self._datasets):
            with _at(f"tasks.{number}.grid"):
                self._grids.append(grid.task_grid(sweep.tasks[number].get("grid", {})))
            tests: dict[str, int] = {}
            for further in range(len(sweep.test_on)):
                maps = further_tests(sweep, data, further).model_dump_json()
                if (other := tests.setdefault(maps, further)) != further:
                    raise SweepError(f"test_on.{further}: the maps of test_on.{other} again, for tasks.{number}")

    def trials(self, suggestions: Suggestions | None = None) -> list[PlannedTrial]:
        """Return the sweep's trials: tasks x planners x the product of the grid's axes, in that order.

        Those of a planner's entry are distinct. Two entries that differ in their tests alone share their trials.

        Args:
            suggestions: Of a search, what has been suggested so far: each is a place of its own.

        Raises:
            SweepError: When a trial is impossible; the message names its place in the sweep.
        """
        trials: list[PlannedTrial] = []
        known: dict[tuple[str, str], tuple[int, int, str]] = {}
        for number, task_grid in enumerate(self._grids):
            for name, entry in self.sweep.planners.items():
                suggested: list[dict[str, Scalar]] = [{}]
                if self.sweep.search is not None:
                    suggested = (suggestions or {}).get(f"{number}/{name}", [])
                for suggestion, chosen in enumerate(suggested):
                    with _at(f"planners.{name}"):
                        for axes in _places(self.sweep, task_grid, entry, chosen, MOST_TRIALS - len(trials)):
                            trial = self._trial(number, name, axes)
                            said = f"tasks.{number} with {', '.join(f'{axis}={value}' for axis, value in axes.items())}"
                            place = number, suggestion, said
                            other = known.setdefault((name, trial.trial_id), place)
                            if other is place:
                                trials.append(trial)
                            elif other[0] != number or other[1] == suggestion:
                                raise GridError(f"{other[2]} and {said} are one trial, which would count as two")
                            # Else a search suggests the same again, and one result answers both.
        return trials

    def _trial(self, number: int, name: str, axes: dict[str, Scalar]) -> PlannedTrial:
        place = f"{number} {name} {axes}"  # spelled out: 1, 1.0 and true would be one key
        if place not in self._made:
            spec = self._spec(self._datasets[number], self.sweep.planners[name], axes)
            self._made[place] = PlannedTrial(trial_id(spec), spec, _place(spec, name, axes, self._apart[number]))
        return self._made[place]

    def _spec(self, data: DatasetSpec, entry: PlannerEntry, axes: dict[str, Scalar]) -> TrialSpec:
        task = TASKS[data.task]
        if entry.is_system:
            part = {"system": {**entry.planner, "name": entry.planner["system"]}}
            del part["system"]["system"]
        else:
            surroundings = {"wrap": task.moves.wrap, "mapper": task.mapper, "channels": input_channels(data)}
            part = {"planner": {**surroundings, **entry.planner}}
        fields: dict[str, Any] = {
            "data": data,
            **part,
            "training": {**self.sweep.training, **entry.training, **self.sweep.budget.training()},
            "execution": self.sweep.execution,
        }
        for axis, value in axes.items():
            grid.set_field(fields, axis, value)
        # Many trials share a planner or a training: what has been checked once stands for the same words.
        said = {section: f"{section} {fields[section]!r}" for section in (*part, "training")}
        spec = TrialSpec.model_validate(fields | {s: self._parts[said[s]] for s in said if said[s] in self._parts})
        self._parts |= {words: getattr(spec, section) for section, words in said.items()}
        return spec.model_copy(update={"plugins": used_by(spec.data, spec.planner, spec.system)})


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Name the place in the sweep where something is impossible."""
    try:
        yield
    except ValidationError as error:
        raise SweepError(f"{where}: {first_problem(error)}") from None
    except GridError as error:
        raise SweepError(f"{where}: {error}") from None


def _places(
    sweep: SweepSpec, task_grid: dict[str, list[Scalar]], entry: PlannerEntry, chosen: dict[str, Scalar], most: int
) -> Iterable[dict[str, Scalar]]:
    shared = sweep.grid
    if entry.is_system and "grid" not in sweep.model_fields_set:
        shared = {axis: values for axis, values in shared.items() if axis != "k"}
    axes = {**shared, **task_grid, **entry.grid}
    grid.check_values(axes)
    searched = {grid.field_of(axis) for axis in chosen}
    axes = {axis: values for axis, values in axes.items() if grid.field_of(axis) not in searched}
    axes |= {axis: [value] for axis, value in chosen.items()}
    options = entry.planner.get("options")
    section = "system" if entry.is_system else "planner"
    own = [(f"{section}.{name}", name) for name in (*entry.planner, *(options if isinstance(options, Mapping) else ()))]
    own += [(f"training.{name}", f"training.{name}") for name in entry.training]
    grid.check_places(axes, own, chosen)
    return grid.product(axes, most)


def _place(spec: TrialSpec, name: str, axes: dict[str, Scalar], apart: dict[str, Scalar]) -> dict[str, Scalar]:
    place: dict[str, Scalar] = {"planner": name, "task": spec.data.task}
    if spec.system is None:
        place |= {"map_size": spec.data.map_size, "k": spec.planner.k_fwd}
    place |= {"seed": spec.seed, **apart}
    for axis, value in axes.items():
        if axis not in ("k", "seed"):
            section, _, field = axis.partition(".")
            part = getattr(spec, section)
            checked = getattr(part, field, getattr(getattr(part, "options", None), field, value))
            # A truth value may be spelled no, "false" or 0; it stands in one place all the same.
            place[axis] = checked if isinstance(checked, bool) else value
    return place


def _told_apart(datasets: Sequence[DatasetSpec]) -> list[dict[str, Scalar]]:
    """Return, of each dataset, the fields in which those of its task and size differ, which would share its cells."""

    def scalars(spec: DatasetSpec) -> dict[str, Scalar]:
        fields = {**spec.model_dump(exclude={"options"}), **spec.options.model_dump(mode="json")}
        words = {name: ", ".join(map(str, said)) if isinstance(said, list) else said for name, said in fields.items()}
        return {f"data.{name}": value for name, value in words.items() if isinstance(value, Scalar)}

    every = [scalars(spec) for spec in datasets]
    alike: dict[tuple[str, int], list[dict[str, Scalar]]] = {}
    for spec, own in zip(datasets, every, strict=True):
        alike.setdefault((spec.task, spec.map_size), []).append(own)
    apart = {
        place: {name for one in group for name in {*one, *group[0]} if one.get(name) != group[0].get(name)}
        for place, group in alike.items()
    }
    return [
        {name: value for name, value in own.items() if name in apart[spec.task, spec.map_size]}
        for spec, own in zip(datasets, every, strict=True)
    ]


def further_tests(sweep: SweepSpec, trained_on: DatasetSpec, number: int) -> DatasetSpec:
    """Return the sweep's `test_on` maps `number` for a planner that was trained on `trained_on`.

    Raises:
        SweepError: When they are impossible.
    """
    where, fields = f"test_on.{number}", sweep.test_on[number]
    own: dict[str, Any] = {"task": trained_on.task, "map_size": trained_on.map_size}
    if "imported" in fields:
        pass
    elif trained_on.distinct != "maps":
        # By another seed: with the trial's own, maps of the same size would be the first of its test maps again.
        own["seed"] = (trained_on.seed + 1) % 2**32
    elif trained_on.imported is None:
        own["distinct"] = trained_on.distinct
    if fields.get("task", trained_on.task) == trained_on.task:
        own["options"] = trained_on.options
    spec = _checked(DatasetSpec, _ruled({**own, "train": 0, "valid": 0, "test": 1000, **fields}), where)
    if spec.train or spec.valid or not spec.test:
        raise SweepError(f"{where}: expected test maps and no others, got {spec.train}/{spec.valid}/{spec.test}")
    if TASKS[spec.task].moves.wrap != TASKS[trained_on.task].moves.wrap:
        raise SweepError(f"{where}: a planner of {trained_on.task} can't be tested on {spec.task}: one is a torus")
    return spec


def _ruled(fields: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    """Return the fields of a dataset but one, by the newer rule of what is distinct unless they say which."""
    given = {key: value for key, value in fields.items() if key != but}
    samples = isinstance(TASKS.get(str(given.get("task"))), Samples)
    if "distinct" in given or given.get("imported") is not None or samples:
        return given
    return {**given, "distinct": "up_to_symmetry"}


def _checked(kind: type[S], fields: Mapping[str, Any], where: str) -> S:
    with _at(where):
        return kind.model_validate(fields)
