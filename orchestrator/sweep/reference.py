"""The fields of a sweep file by their paths: what each may be, its default, its meaning and an example."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from datagen.spec import Spec
from datagen.tasks.registry import DatasetSpec
from orchestrator.errors import SweepError
from orchestrator.sweep.limits import AtMost, Budget, ExecutionSpec, Resources
from orchestrator.sweep.meanings import summary
from orchestrator.sweep.schema import Schema, axes, sweep_schema
from orchestrator.sweep.search_space import SearchAxis, SearchSpec
from orchestrator.sweep.specs import SweepSpec
from planners.registry import OPTIONS
from planners.specs import PlannerSpec, TrainingSpec

_PLACES = (
    (r"profiles\.[^.]+\.(?=.)", ""),
    (r"^(?:grid\.)?planner\b", "planners.NAME"),
    (r"^grid\.training\b", "training"),
    (r"^planners\.[^.]+", "planners.NAME"),
    (r"^planners\.NAME\.training\b", "training"),
    (r"^(?:planners\.NAME|tasks\.\d+)\.grid\b", "grid"),
    (r"^(tasks|test_on)\.(?:\d+|N)\b", r"\1.N"),
    (r"^search\.space\.(?:k|seed|AXIS|(?:planner|training)\.[^.]+)(?=\.|$)", "search.space.AXIS"),
)
"""How a path of a certain sweep is spelt in general."""


_SAME = (
    ("planners.NAME.options.", "planners.NAME."),
    ("tasks.N.", "data."),
    ("test_on.N.", "data."),
)
"""Places that take the fields of another."""
_OF_EVERY_PLANNER = (*PlannerSpec.model_fields, "training", "grid", "test_steps_per_row", "system")


@dataclass(frozen=True)
class Field:
    """A field of a sweep file.

    Attributes:
        path: Where it stands: `training.labels`, `planners.NAME.core`.
        kind: What it may be, in words.
        default: What it is where nothing is said, as YAML; empty where there is none.
        meaning: What it means.
        example: A value, as YAML.
        of: Where it has a meaning: "core vin"; empty for everywhere.
    """

    path: str
    kind: str
    default: str
    meaning: str
    example: str
    of: str = ""

    @property
    def name(self) -> str:
        """Its last word; of an axis, the whole axis."""
        return self.path.removeprefix("grid.") if self.path.startswith("grid.") else self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Section:
    """Fields that stand together.

    Attributes:
        path: Where they stand; empty for the file itself.
        meaning: What they are of.
        fields: The fields.
        of: Where they have a meaning: "core vin"; empty for everywhere.
    """

    path: str
    meaning: str
    fields: tuple[Field, ...]
    of: str = ""


def sections() -> tuple[Section, ...]:
    """Return the sections of a sweep file, with the parts of the plug-ins that are loaded."""
    parts: Schema = sweep_schema()["definitions"]
    options = {options: field for field, (_, options) in OPTIONS.items()}

    def section(path: str, name: str | Schema, meaning: str, only: Iterable[str] = ()) -> Section:
        part = parts[name] if isinstance(name, str) else name
        names = list(only) or list(part["properties"])
        return Section(
            path, meaning, tuple(_field(f"{path}.{one}".lstrip("."), part["properties"][one]) for one in names)
        )

    def variants(path: str, field: str) -> list[Section]:
        at = "planners.NAME" if field == "core" else path  # a core's options may stand beside a planner's other fields
        found = []
        for name, part in parts.items():
            if name.startswith(f"options of {field} ") and part["properties"]:
                of = name.removeprefix("options of ")
                fields = tuple(_field(f"{at}.{own}", one, of) for own, one in part["properties"].items())
                found.append(Section(path, part["description"], fields, of))
        return found

    sweep = parts["sweep"]["properties"]
    about = _about_models()
    return (
        section("", "sweep", about[""]),
        section("data", "data", about["data"]),
        section("tasks.N", "task", "A task: the fields of `data`, over those that all tasks share, and:", ["grid"]),
        section("test_on.N", "test", "Further test maps: the fields of `data`, and:", ["grid"]),
        *variants("data.options", "task"),
        section("planners.NAME", "planner", about["planners"], _OF_EVERY_PLANNER),
        *(one for options, field in options.items() for one in variants(f"planners.NAME.{options}", field)),
        section("training", "training", about["training"]),
        Section("grid", "Axes, a list of values each: a trial for each place of their product.", _axes()),
        *(section(name, sweep[name], about[name]) for name in ("budget", "execution", "resources")),
        section("resources.at_most", sweep["resources"]["properties"]["at_most"]["anyOf"][0], summary(AtMost)),
        section("search", "search", about["search"]),
        section("search.space.AXIS", "search axis", summary(SearchAxis)),
    )


def _about_models() -> dict[str, str]:
    models: dict[str, type[Spec]] = {
        "": SweepSpec,
        "data": DatasetSpec,
        "planners": PlannerSpec,
        "training": TrainingSpec,
        "budget": Budget,
        "execution": ExecutionSpec,
        "resources": Resources,
        "search": SearchSpec,
    }
    return {name: summary(model) for name, model in models.items()}


def _field(path: str, part: Schema, of: str = "") -> Field:
    default = as_yaml(part["default"]) if "default" in part else ""
    example = as_yaml(part["examples"][0]) if part.get("examples", [None])[0] is not None else ""
    return Field(path, kind(part), default, part.get("description", ""), example, of)


def _axes() -> tuple[Field, ...]:
    every = axes()
    some = {"k": [30, 50, 80], "seed": [0, 1, 2], "planner.k_bwd": [15, 60], "training.learning_rate": [0.01, 0.001]}
    anyone = {"planner.k_bwd": "planner.FIELD", "training.learning_rate": "training.FIELD"}
    meanings = {
        "planner.FIELD": "A field of `planners.NAME`, an option of its core too, that is no list or mapping.",
        "training.FIELD": "A field of `training`.",
    }
    found = []
    for axis, values in some.items():
        name = anyone.get(axis, axis)
        of_one = "list of values" if name != axis else f"list of {kind(every[axis])}"
        meaning = meanings.get(name) or str(every[axis]["description"])
        example = as_yaml(values) if name == axis else f"{{{axis}: {as_yaml(values)}}}"
        found.append(Field(f"grid.{name}", of_one, "", meaning, example))
    return tuple(found)


def as_yaml(value: Any) -> str:
    """Return a value as it stands on one line of a sweep."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def kind(part: Mapping[str, Any]) -> str:
    """Return in words what a schema lets a field be."""
    if "anyOf" in part:
        kinds = [kind(one) for one in part["anyOf"]]
        if kinds[-1] == "text" and "enum" in part["anyOf"][0]:
            kinds[-1] = "a plug-in's"
        return _either(kinds)
    if "enum" in part:
        return _either([as_yaml(choice) for choice in part["enum"]])
    if "$ref" in part:
        return "mapping"
    if "allOf" in part:
        return "list" if part["allOf"][0].get("type") == "array" else "mapping"
    plain = {"boolean": "true or false", "string": "text", "object": "mapping", "null": "null"}
    if (found := plain.get(part.get("type", ""))) is not None:
        return found
    if part["type"] == "array":
        inside = kind(part["items"])
        return "list" if inside == "mapping" else f"list of {inside}"
    return ", ".join(filter(None, ["whole number" if part["type"] == "integer" else "number", _range(part)]))


def _range(part: Mapping[str, Any]) -> str:
    words = {"minimum": "{:g} or more", "exclusiveMinimum": "above {:g}"}
    words |= {"maximum": "at most {:g}", "exclusiveMaximum": "below {:g}"}
    said = [text.format(part[bound]) for bound, text in words.items() if bound in part and part[bound] < 10**8]
    if "multipleOf" in part:
        said.append(f"a multiple of {part['multipleOf']}")
    return ", ".join(said)


def _either(kinds: list[str]) -> str:
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]]) if len(kinds) > 1 else kinds[0]


def find(path: str) -> list[Section | Field]:
    """Return what stands at a path of a sweep: a section, or several that depend on a choice; else a field.

    Args:
        path: Such as `training`, `planners.mine.core`, `training.labels`, `grid.k`; empty for the file.

    Raises:
        SweepError: Nothing stands there; says what may be meant.
    """
    general = path.strip().strip(".")
    for pattern, place in _PLACES:
        general = re.sub(pattern, place, general)
    lists = {"tasks": "tasks.N", "test_on": "test_on.N", "planners": "planners.NAME"}
    places = {lists.get(general, general), *(general.replace(*same) for same in _SAME[1:])}
    every = sections()
    if here := [section for section in every if section.path in places]:
        return [*here]
    fields = [field for section in every for field in section.fields]
    for other, same in _SAME:
        if found := [field for field in fields if field.path in (general, general.replace(other, same, 1))]:
            return [*found]
    raise SweepError(f"fields: a sweep has no {path!r:.80}; {_hint(general, every)}")


def _hint(path: str, every: Iterable[Section]) -> str:
    names: dict[str, list[str]] = {}
    for section in every:
        for known in (section.path, *(field.path for field in section.fields)):
            names.setdefault(known.rpartition(".")[2], []).append(known)
    word = path.rpartition(".")[2]
    close = [word] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close:
        return f"known: {', '.join(section.path for section in every if section.path and not section.of)}"
    # The nearest of the places that have a field of that name.
    place = difflib.get_close_matches(path, names[close[0]], n=1, cutoff=0.0)
    return f"did you mean {place[0]!r}?"
