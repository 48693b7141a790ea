"""The sweep file as a JSON schema: editors complete from it, `idp fields` shows it, docs/sweep-file.md lists it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from datagen.options import MazeOptions
from datagen.spec import Spec
from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.sweep.examples import example
from orchestrator.sweep.figure_names import FIGURE_NAMES
from orchestrator.sweep.limits import AtMost, Budget, ExecutionSpec, Resources
from orchestrator.sweep.meanings import meanings, summary
from orchestrator.sweep.search_space import SearchAxis, SearchSpec
from orchestrator.sweep.specs import PlannerEntry, SweepSpec
from planners.registry import OPTIONS
from planners.specs import PlannerSpec, TrainingSpec

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"
SCALARS = ["string", "integer", "number", "boolean", "null"]

_YAML = {"None": "null", "True": "true", "False": "false"}
_ALONE: dict[type[Spec], tuple[str, ...]] = {MazeOptions: ("kinds", "thinning", "percolation", "noise")}
"""Lists of which one part may stand without the list."""


def sweep_schema() -> Schema:
    """Return the schema of a sweep file, with the parts of the plug-ins that are loaded."""
    properties = _sweep_properties()
    profile = {name: part for name, part in properties.items() if name not in ("extends", "profiles")}
    sweep = _closed(properties) | {"anyOf": [{"required": ["extends"]}, {"required": ["name", "planners"]}]}
    return {
        "$schema": DRAFT,
        "title": "A sweep of idp",
        "description": "A sweep file, or a Ray cluster file that holds one under metadata.sweep.",
        "if": {"required": ["metadata"]},
        "then": {
            "type": "object",
            "properties": {"metadata": {"type": "object", "properties": {"sweep": {"$ref": "#/definitions/sweep"}}}},
        },
        "else": {"$ref": "#/definitions/sweep"},
        "definitions": {
            "sweep": sweep,
            "profile": _closed(profile),
            "data": _data(),
            "task": _data(_task_grid()),
            "test": _data(_test_grid()),
            "planner": _planner(),
            "training": _closed(_fields(TrainingSpec)),
            "grid": _grid(),
            "search": _search(),
            "search axis": _closed(_fields(SearchAxis)),
            **{f"options of {what}": part for what, part in _every_options()},
        },
    }


def _sweep_properties() -> dict[str, Schema]:
    fields = _fields(SweepSpec)
    inside: dict[str, Schema] = {
        "tasks": {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/task"}},
        "data": {"$ref": "#/definitions/data"},
        "planners": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [{"$ref": "#/definitions/planner"}, {"type": "null"}]},
        },
        "grid": {"$ref": "#/definitions/grid"},
        "training": {"$ref": "#/definitions/training"},
        "budget": _closed(_fields(Budget)),
        "execution": _closed(_fields(ExecutionSpec)),
        "resources": _resources(),
        "test_on": {"type": "array", "items": {"$ref": "#/definitions/test"}},
        "search": {"anyOf": [{"$ref": "#/definitions/search"}, {"type": "null"}]},
    }
    for name, part in inside.items():
        kept = {key: value for key, value in fields[name].items() if key in ("description", "examples", "default")}
        if isinstance(kept.get("default"), dict) and name != "grid":
            del kept["default"]  # those of its fields
        # Draft 7 reads nothing beside a $ref.
        fields[name] = {"allOf": [part], **kept} if "$ref" in part else {**part, **kept}
    fields["figures"]["items"] = {"type": "string", "enum": list(FIGURE_NAMES)}
    extends = {
        "type": "string",
        "description": "A sweep file beside this one, else the name of one that comes along, that this one is laid "
        "over: mappings are merged, everything else is replaced.",
        "examples": ["table1.yaml"],
    }
    profiles = {
        "type": "object",
        "additionalProperties": {"$ref": "#/definitions/profile"},
        "description": "Sweeps to be laid over this one by name, with `--profile NAME`: fewer maps, seeds, epochs.",
        "examples": [{"smoke": {"data": {"train": 64, "valid": 8, "test": 8}, "training": {"epochs": 1}}}],
    }
    return {"extends": extends, **fields, "profiles": profiles}


def _resources() -> Schema:
    fields = _fields(Resources)
    fields["at_most"]["anyOf"][0] = _closed(_fields(AtMost))  # pydantic names it in a place of its own
    return _closed(fields)


def _fields(model: type[Spec]) -> dict[str, Schema]:
    """Return the schema of each field of a specification, with its meaning, default and an example."""
    every = model.model_json_schema()["properties"]
    return {name: _field(model, name, every[name]) for name in model.model_fields}


def _field(model: type[Spec], name: str, of_pydantic: Mapping[str, Any]) -> Schema:
    part = _draft_7(of_pydantic)
    if "$ref" in part:  # options, whose fields depend on another field
        part = {"type": "object", **({"default": {}} if "default" in part else {})}
    if name in _ALONE.get(model, ()):
        kept = {key: part.pop(key) for key in ("default",)}
        part = {"anyOf": [part["items"], part], **kept}
    if meaning := meanings(model).get(name):
        part["description"] = re.sub(r"\b(None|True|False)\b", lambda word: _YAML[word[0]], meaning)
    choices = [False, True] if part.get("type") == "boolean" else part.get("enum", [])
    part["examples"] = [example(model, name, part.get("default"), choices)]
    return part


def _draft_7(part: Any) -> Any:
    """Return a schema without pydantic's titles, and with draft 7's word for the parts of a tuple."""
    if isinstance(part, list):
        return [_draft_7(one) for one in part]
    if not isinstance(part, Mapping):
        return part
    found = {key: _draft_7(value) for key, value in part.items() if key != "title"}
    if (parts := found.pop("prefixItems", None)) is not None:
        found["items"] = parts[0]
    return found


def _about(part: Mapping[str, Any]) -> Schema:
    """Return what a schema says to people."""
    return {key: part[key] for key in ("description", "examples") if key in part}


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _named(part: Schema, names: Iterable[str]) -> Schema:
    """Return the schema of a field that names a part: those of this project are offered, and plug-ins have others."""
    known = list(names)
    kept = {key: value for key, value in part.items() if key != "type"}
    other = next((name for name in known if name != part.get("default")), None)
    examples = kept["examples"] if kept.get("examples") not in ([None], [part.get("default")]) else [other]
    return {"anyOf": [{"type": "string", "enum": known}, {"type": "string"}], **kept, "examples": examples}


def _when(field: str, name: str, then: Schema) -> Schema:
    return {"if": {"required": [field], "properties": {field: {"const": name}}}, "then": then}


def _options(what: str) -> Schema:
    return {"$ref": f"#/definitions/options of {what}"}


def _every_options() -> Iterable[tuple[str, Schema]]:
    """Yield the options of each part that can be named, by "core vin" and the like."""
    of_parts = {field: {name: entry.options_type for name, entry in reg.items()} for field, (reg, _) in OPTIONS.items()}
    of_parts["task"] = {name: task.options for name, task in TASKS.items()}
    for field, models in of_parts.items():
        for name, model in models.items():
            yield f"{field} {name}", _closed(_fields(model)) | {"description": summary(model)}


def _data(grid: Schema | None = None) -> Schema:
    """Return the schema of a dataset's fields, and a `grid` where one may stand beside them."""
    fields = _fields(DatasetSpec)
    fields["task"] = _named(fields["task"], TASKS)
    fields |= {} if grid is None else {"grid": grid}
    of_tasks = [_when("task", task, {"properties": {"options": _options(f"task {task}")}}) for task in TASKS]
    return _closed(fields) | {"allOf": of_tasks}


def _task_grid() -> Schema:
    about = {"description": "Axes that differ for this task.", "examples": [{"k": [80]}]}
    return {"allOf": [{"$ref": "#/definitions/grid"}], **about}


def _test_grid() -> Schema:
    about = "Axes, fields or options.NAME: a set of maps for each place."
    return _axes(_fields(DatasetSpec), "options.") | {
        "description": about,
        "examples": [{"map_size": [27, 49], "options.percolation": [0, 0.1]}],
    }


def _core_fields() -> dict[str, Schema]:
    """Return the options of all cores, which may stand beside a planner's other fields."""
    found: dict[str, Schema] = {}
    registry, _ = OPTIONS["core"]
    for entry in registry.values():
        for name, part in _fields(entry.options_type).items():
            found.setdefault(name, part)
            if found[name] != part:  # what all cores take that have one of that name
                found[name] = {key: value for key, value in found[name].items() if key in ("type", "description")}
    return found


def _planner() -> Schema:
    fields = _fields(PlannerSpec)
    conditions = []
    for field, (registry, options) in OPTIONS.items():
        fields[field] = _named(fields[field], registry)
        for name in registry:
            conditions.append(_when(field, name, {"properties": {options: _options(f"{field} {name}")}}))
    own = _fields(PlannerEntry)
    for name in ("training", "grid"):
        fields[name] = {"allOf": [{"$ref": f"#/definitions/{name}"}], **_about(own[name])}
    fields["test_steps_per_row"] = own["test_steps_per_row"]
    registry, _ = OPTIONS["core"]
    for name, entry in registry.items():
        mine = _fields(entry.options_type)
        conditions.append(_when("core", name, {"properties": mine, "propertyNames": {"enum": [*fields, *mine]}}))
    fields["system"] = {
        "type": "string",
        "description": "A plug-in's system, which takes the place of a planner; its options stand beside it.",
        "examples": ["projected_gradient"],
    }
    every = {**_core_fields(), **fields}
    # Of a core that is not known here nothing is; one that is not named may be named by the file that is extended.
    unnamed = {
        "if": {"not": {"anyOf": [{"required": ["core"]}, {"required": ["system"]}]}},
        "then": {"propertyNames": {"enum": list(every)}},
    }
    return {"type": "object", "properties": every, "allOf": [*conditions, unnamed]}


def _axes(parts: Mapping[str, Schema], more: str = "") -> Schema:
    """Return the schema of a grid's axes: a list of what each field may be.

    Args:
        parts: The fields that may be axes.
        more: What the names of further axes start with.
    """
    lists = {
        axis: {
            "type": "array",
            "minItems": 1,
            "items": {key: value for key, value in part.items() if key not in ("description", "default", "examples")},
            "description": part.get("description", ""),
        }
        for axis, part in parts.items()
        if part.get("type") not in ("object", "array")
    }
    scalars = {"type": "array", "minItems": 1, "items": {"type": SCALARS}}
    patterns = {"patternProperties": {f"^{more.replace('.', '[.]')}[^.]+$": scalars}} if more else {}
    return _closed(lists) | patterns


def axes() -> dict[str, Schema]:
    """Return the axes of a grid or a search with what each stands for."""
    planner, training = _planner()["properties"], _fields(TrainingSpec)
    apart = ("training", "grid", "test_steps_per_row", "system")
    found = {"k": {**planner["k_fwd"], "description": "`k_fwd` of every planner: the axis K of the tables."}}
    found["seed"] = {
        "type": "integer",
        "minimum": 0,
        "description": "Seed of the initial weights and of the order of the training data.",
    }
    found |= {f"planner.{name}": part for name, part in planner.items() if name not in (*apart, "k_fwd")}
    found["planner.k_fwd"] = planner["k_fwd"]
    return found | {f"training.{name}": part for name, part in training.items()}


def _grid() -> Schema:
    found = _axes(axes(), "planner.")
    return found | {
        "patternProperties": {"^(planner|system)[.][^.]+$": next(iter(found["patternProperties"].values()))}
    }


def _search() -> Schema:
    fields = _fields(SearchSpec)
    axis = {"$ref": "#/definitions/search axis"}
    fields["space"] = {
        "type": "object",
        "minProperties": 1,
        "properties": {name: axis for name in _axes(axes())["properties"]},
        "patternProperties": {"^planner[.][^.]+$": axis},
        "additionalProperties": False,
        **_about(fields["space"]),
    }
    return _closed(fields) | {"required": ["space"]}
