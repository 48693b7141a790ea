"""The registry of systems: what a trial may be of that is no grid planner; plug-ins add its lines, `SYSTEMS`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import SerializeAsAny, ValidationError, model_validator

from datagen.options import NoOptions
from datagen.plugins import PluginError, extend
from datagen.spec import Spec, first_problem, nearest
from datagen.tasks.registry import TASKS, DatasetSpec
from datagen.tasks.samples import Samples
from planners.specs import TrainingSpec

METRIC = "metric."
"""Stands before the name of a system's metric in curves, CSV and MLflow, whose other names are the service's own."""

FORWARD_DIVERGED = "forward_diverged"
"""What an epoch may report beside its metrics: whether a solve inside it has not converged."""

MOST_METRICS = 32
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Metric:
    """A number by which a system's trials are judged: what tables, figures, reports and MLflow say of it.

    Attributes:
        meaning: In words; the label of its axis in figures.
        unit: Of the number as it is shown, empty for none.
        better: Which of two is better, "higher" or "lower"; None where neither is.
        scale: The shown unit in the number's: 100 shows a share in percent.
        form: How it is written in tables.
        measured: Whether it is of the machine, a time say, and so another one each time; `idp check` lets it differ.
    """

    meaning: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    scale: float = 1.0
    form: str = ".3g"
    measured: bool = False

    def label(self, name: str) -> str:
        """Return what stands above its column: its name, its unit, and an arrow to where it is better."""
        arrow = {"higher": "↑", "lower": "↓", None: ""}[self.better]
        return " ".join(word for word in (name.replace("_", " "), self.unit, arrow) if word)


@dataclass(frozen=True)
class System:
    """One line of the registry.

    Attributes:
        target: Where its class is, "module:Class", a `SystemTrial` (orchestrator.trial.system); imported when used.
        tasks: The tasks that it works on, lines of `TASKS` that are `Samples`.
        metrics: What its epochs and its test may report, by name, in the order of the table.
        options: What it can be told: its choices and their defaults.
        training: The fields of `TrainingSpec` that it heeds beside `epochs`; others must be left alone.
        gpu: Whether it computes on a GPU where there is one.
        small: Options of its tasks with which `idp check` makes samples, where those of the default ones take long.
    """

    target: str
    tasks: tuple[str, ...]
    metrics: Mapping[str, Metric]
    options: type[Spec] = NoOptions
    training: tuple[str, ...] = ()
    gpu: bool = False
    small: Mapping[str, Any] = field(default_factory=dict)

    def trial_class(self) -> Any:
        """Return its class, importing its module."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


SYSTEMS: dict[str, System] = {}
"""All of them are plug-ins' (`examples/`)."""


def load_systems(plugins: Iterable[str]) -> None:
    """Add the systems of plug-ins to `SYSTEMS`; their tasks must have been added.

    Raises:
        PluginError: A plug-in can't be used.
    """
    for plugin in plugins:
        before = set(SYSTEMS)
        extend(SYSTEMS, "SYSTEMS", System, [plugin])
        for name in set(SYSTEMS) - before:
            if problem := _problem(SYSTEMS[name]):
                del SYSTEMS[name]
                raise PluginError(f"plugins: {plugin}.SYSTEMS[{name!r}]: {problem}")


def _problem(system: System) -> str:
    """Return what is wrong with a line, empty for nothing."""
    if not isinstance(system.tasks, (tuple, list)):
        return f"tasks: expected a tuple, got {system.tasks!r:.80}"
    for name in ("metrics", "small"):
        if not isinstance(value := getattr(system, name), Mapping):
            return f"{name}: expected a mapping, got {value!r:.80}"
    for task in system.tasks:
        if not isinstance(task, str) or not isinstance(TASKS.get(task), Samples):
            return f"tasks: {task!r:.80} is no task of samples"
    if not system.tasks or not 0 < len(system.metrics) <= MOST_METRICS:
        return f"expected a task, and 1 to {MOST_METRICS} metrics"
    for name, metric in system.metrics.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == FORWARD_DIVERGED:
            return f"metrics: {name!r:.80}: expected small letters, digits and '_', and not {FORWARD_DIVERGED!r}"
        if problem := _unwritable(metric):
            return f"metrics: {name!r}: {problem}, got {metric!r:.200}"
    for heeded in system.training:
        if heeded not in TrainingSpec.model_fields:
            return f"training: unknown field {heeded!r}; {nearest(heeded, TrainingSpec.model_fields)}"
    for task in system.tasks:
        try:
            DatasetSpec(task=task, options=dict(system.small))
        except ValidationError as error:
            return f"small: {first_problem(error)}"
    return ""


def _unwritable(metric: Any) -> str:
    """Return why a table could not show a metric, empty where it can."""
    if not isinstance(metric, Metric):
        return "expected a Metric"
    try:
        metric.label(format(0.5 * metric.scale, metric.form))
    except (KeyError, TypeError, ValueError) as error:
        return f"expected one that can be written ({type(error).__name__}: {error})"
    return ""


def small_options(task: str) -> dict[str, Any]:
    """Return the options of a task with which its samples are checked, as its systems say."""
    return {name: value for one in SYSTEMS.values() if task in one.tasks for name, value in one.small.items()}


class SystemSpec(Spec):
    """A system and what it is told; the options may stand beside the name.

    Attributes:
        name: A name in `SYSTEMS`.
        options: The system's own choices.
    """

    name: str
    options: SerializeAsAny[Spec] = NoOptions()

    @model_validator(mode="before")
    @classmethod
    def _resolve_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        name = data.get("name")
        if not isinstance(name, str) or name not in SYSTEMS:
            known = nearest(str(name), SYSTEMS) if SYSTEMS else "no plug-in of the sweep brings one"
            raise ValueError(f"system: unknown name {name!r:.80}; {known}")
        kind, given = SYSTEMS[name].options, data.get("options", {})
        beside = {key: value for key, value in data.items() if key not in cls.model_fields}
        if beside:
            given = {**(given.model_dump() if isinstance(given, Spec) else given), **beside}
        try:
            options = given if isinstance(given, kind) else kind.model_validate(given)
        except ValidationError as error:
            raise ValueError(f"system {name!r}: {first_problem(error)}") from None
        return {"name": name, "options": options}

    def check(self, data: DatasetSpec, training: TrainingSpec) -> Self:
        """Return this system where it can be trained so on that; else raise ValueError."""
        system, plain = SYSTEMS[self.name], TrainingSpec()
        if data.task not in system.tasks:
            raise ValueError(f"system {self.name!r} works on {', '.join(system.tasks)}; got task {data.task!r}")
        for name in TrainingSpec.model_fields:
            if name not in ("epochs", *system.training) and getattr(training, name) != getattr(plain, name):
                heeded = ", ".join(["epochs", *system.training])
                raise ValueError(f"training.{name} means nothing to system {self.name!r}, which heeds {heeded}")
        return self
