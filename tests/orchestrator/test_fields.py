"""The reference of the sweep file is the models': schema, page, `idp fields`, and every sweep that is shipped."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Annotated

import pytest
from jsonschema import Draft7Validator
from pydantic import TypeAdapter

from datagen.tasks.registry import TASKS, DatasetSpec
from orchestrator.cli.main import main
from orchestrator.sweep.examples import EXAMPLES, example
from orchestrator.sweep.limits import AtMost, Budget, ExecutionSpec, Resources
from orchestrator.sweep.meanings import meanings
from orchestrator.sweep.reference import find, sections
from orchestrator.sweep.schema import sweep_schema
from orchestrator.sweep.search_space import SearchAxis, SearchSpec
from orchestrator.sweep.specs import PlannerEntry, SweepSpec
from orchestrator.sweep.yaml_1_2 import read_yaml
from planners.registry import OPTIONS
from planners.specs import PlannerSpec, TrainingSpec

ROOT = Path(__file__).parents[2]
SWEEPS = sorted([*(ROOT / "sweeps").glob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])
SECTIONS = (
    SweepSpec,
    DatasetSpec,
    PlannerSpec,
    TrainingSpec,
    Budget,
    ExecutionSpec,
    Resources,
    AtMost,
    SearchSpec,
    SearchAxis,
)
CHOICES = [entry.options_type for registry, _ in OPTIONS.values() for entry in registry.values()]
MODELS = [*SECTIONS, PlannerEntry, *dict.fromkeys([*CHOICES, *(task.options for task in TASKS.values())])]
SMALL = {"name": "small", "planners": {"p": {"core": "vin"}}}


@pytest.fixture(scope="module")
def validator():
    schema = sweep_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_page_and_schema_are_made_of_the_models():
    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    assert made["PAGE"].read_text() == made["page"](), "python docs/reference.py writes it again"
    assert made["SCHEMA"].read_text() == made["schema"](), "python docs/reference.py writes it again"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_valid_in_an_editor_too(validator, path):
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize(
    "slip",
    [
        {"trainig": {}},
        {"training": {"epoch": 3}},
        {"training": {"labels": "one-hot"}},
        {"planners": {"p": {"core": "vin", "adjiont": "implicit"}}},
        {"planners": {"p": {"core": "vin", "group": "D4"}}},
        {"planners": {"p": {"adjiont": "implicit"}}},
        {"planners": {"p": {"core": "vin", "training": {"epoch": 3}}}},
        {"grid": {"planner.k_bwd": 3}},
        {"grid": {"planner.k_bwd": ["three"]}},
        {"grid": {"k": [0]}},
        {"tasks": [{"task": "mazes", "options": {"kind": "perfect"}}]},
        {"test_on": [{"map_size": 3}]},
        {"profiles": {"smoke": {"trainig": {}}}},
        {"search": {"space": {"learning_rate": {"low": 1, "high": 2}}}},
        {"figures": ["sucess"]},
        {"resources": {"gpus": "some"}},
        {"resources": {"at_most": {"gpu": 4}}},
    ],
    ids=str,
)
def test_a_slip_is_marked(validator, slip):
    assert list(validator.iter_errors(SMALL)) == []
    assert list(validator.iter_errors({**SMALL, **slip}))


@pytest.mark.parametrize(
    "own",
    [
        {"planners": {"p": {"core": "mine", "width": 1}}, "plugins": ["mine"]},
        {"planners": {"p": {"group": "C4"}}, "extends": "other.yaml"},
        {"tasks": [{"task": "own", "options": {"width": 1}}]},
        {"tasks": [{"task": "mazes", "options": {"kinds": "perfect", "noise": 0.3}}]},
        {"grid": {"planner.width": [1, 2]}},
        {"resources": {"at_most": {"gpus": 4}}},
    ],
    ids=str,
)
def test_what_plug_ins_and_other_files_may_say_is_not(validator, own):
    assert list(validator.iter_errors({**SMALL, **own})) == []


def test_what_the_schema_refers_to_is_in_it():
    schema = sweep_schema()
    places = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(schema)))
    assert places and {place.partition("/")[0] for place in places} == {"definitions"}
    assert {place.partition("/")[2] for place in places} <= schema["definitions"].keys()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_has_a_meaning_and_an_example_that_it_takes(model):
    assert set(EXAMPLES.get(model, {})) <= set(model.model_fields)
    for name, field in model.model_fields.items():
        if (model, name) == (PlannerEntry, "planner"):
            continue  # its fields stand in the entry
        assert meanings(model).get(name), f"{model.__name__}.{name} has no word in the docstring"
        value = example(model, name, None if field.is_required() else field.default, [])
        if not isinstance(value, dict):
            TypeAdapter(Annotated[(field.annotation, None, *field.metadata)]).validate_python(value)


def test_every_field_is_listed_once():
    listed = [(field.path, field.of) for section in sections() for field in section.fields]
    assert len(listed) == len(set(listed))
    paths = {path for path, _ in listed}
    assert paths >= {*SweepSpec.model_fields, "extends", "profiles"}
    assert paths >= {f"training.{name}" for name in TrainingSpec.model_fields}
    assert paths >= {f"planners.NAME.{name}" for name in PlannerSpec.model_fields}
    assert all(field.meaning for section in sections() for field in section.fields)


@pytest.mark.parametrize(
    ("path", "place", "of"),
    [
        ("training.labels", "training.labels", ""),
        ("profiles.smoke.training.labels", "training.labels", ""),
        ("planners.mine.training.labels", "training.labels", ""),
        ("planner.k_bwd", "planners.NAME.k_bwd", ""),
        ("grid.planner.k_bwd", "planners.NAME.k_bwd", ""),
        ("planners.mine.embedding", "planners.NAME.embedding", "core spt"),
        ("tasks.0.map_size", "data.map_size", ""),
        ("test_on.2.options.kinds", "data.options.kinds", "task mazes"),
        ("resources.at_most.gpus", "resources.at_most.gpus", ""),
        ("search.space.training.learning_rate.log", "search.space.AXIS.log", ""),
    ],
)
def test_a_field_is_found_by_the_path_that_a_sweep_has(path, place, of):
    (field,) = find(path)
    assert (field.path, field.of) == (place, of)


def test_the_terminal_says_all_of_a_field_and_lists_a_section(capsys):
    assert main(["fields", "training.labels"]) == 0
    said = capsys.readouterr().out
    assert "one_hot, all_optimal" in said and "default one_hot" in said and "labels: all_optimal" in said
    assert main(["fields", "training"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name}  " in said for name in TrainingSpec.model_fields)
    assert max(map(len, said.splitlines())) <= 80 and "\x1b" not in said
    assert main(["fields", "planners"]) == 0
    assert "adjoint system (Eq. 6), used by" in " ".join(capsys.readouterr().out.split()), "no full stop, and no end"
    assert main(["fields", "planners.mine.q_channels", "--json"]) == 0
    assert {one["of"] for one in json.loads(capsys.readouterr().out)["found"]} >= {"core vin", "core contractive"}
    assert main(["fields", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == sweep_schema()


@pytest.mark.parametrize(
    ("path", "meant"),
    [("labels", "training.labels"), ("traning.epoch", "training.epochs"), ("planners.p.adjiont", "adjoint")],
)
def test_a_path_that_is_none_is_told_the_nearest(capsys, path, meant):
    assert main(["fields", path]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"did you mean '{meant}'?" in err.replace("planners.NAME.", "")


def test_a_plug_in_s_parts_are_known(capsys, monkeypatch):
    monkeypatch.chdir(ROOT / "examples")
    assert main(["fields", "planners.NAME.options", "--plugin", "street_planning"]) == 0
    assert "core residual_vin" in capsys.readouterr().out
