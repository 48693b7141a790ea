"""The page of architecture and its picture are the code's."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import fields
from inspect import signature
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import PlannerEntry
from planners import (
    GMRES,
    Anderson,
    BestFirst,
    Broyden,
    ForwardIteration,
    GaussSeidel,
    Planner,
    PlannerSpec,
    Route,
    RoutePlanner,
    Solution,
    TrainingSpec,
    evaluate,
)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return importlib.import_module("rooms")


@pytest.fixture(scope="module")
def graph(drawing):
    return drawing.import_graph()


def test_the_picture_is_of_these_imports(drawing, graph):
    drawn = drawing.picture(graph)
    assert drawing.PICTURE.read_text() == drawn, "python docs/rooms.py draws it again"
    names = [text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    folders = {path.parent.name for package in drawing.PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    assert folders <= set(names)


@pytest.mark.parametrize(
    "package",
    ["orchestrator", "planners", "datagen"],
)
def test_no_room_imports_one_above_it(drawing, graph, package):
    assert drawing.house(graph, package).climbs == frozenset()


def test_the_page_has_every_room(drawing, graph):
    rooms = {room for package in drawing.PACKAGES for room in drawing.house(graph, package).captions if " " not in room}
    told = {name.replace("/", ".") for name in re.findall(r"`((?:orchestrator|planners|datagen)/\w+)`", PAGE)}
    assert rooms <= told


def test_the_names_of_k_are_the_code_s():
    table = PAGE.partition("## The names of K")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    told: dict[str, str] = {}
    for names, where in rows:
        told |= {name: told.get(name, "") + where for name in re.findall(r"`([^`]+)`", names)}
    solve, plan, judged = (signature(one).parameters for one in (RoutePlanner.solve, Planner.plan, evaluate))
    assert {"k=", "k_fwd="} <= told.keys() and "k" in solve and "k_fwd" in plan and "k_fwd" in judged
    specs = (PlannerSpec, PlannerEntry, TrainingSpec, TrialResult)
    of_specs = {name for spec in specs for name in spec.model_fields if re.match(r"k_|.*steps(_|$)", name)}
    solvers = (ForwardIteration, Anderson, Broyden, GMRES, GaussSeidel, BestFirst)
    of_solvers = {one.name for solver in solvers for one in fields(solver) if "steps" in one.name}
    assert of_specs | of_solvers <= told.keys() | {"forward_steps"} and of_solvers == {"max_steps"}
    for owner in (Solution, Route):
        assert owner.__name__ in told["steps"] and "steps" in {one.name for one in fields(owner)}


def test_arrows_that_climb_are_told(drawing):
    counts = {("a", "b"): 3, ("b", "c"): 2, ("c", "a"): 1, ("a", "c"): 1}
    assert drawing._climbs(counts) == {("c", "a")}
    assert drawing.told(frozenset(counts) - {("c", "a")}) == [("a", "b"), ("b", "c")]


def test_a_room_of_many_files_says_where_to_begin():
    """Its docstring names each of its files, with the name in it to begin with."""
    told = set()
    for package in ("orchestrator", "planners", "datagen"):
        for room in (ROOT / package).glob("*/__init__.py"):
            files = {path.stem for path in room.parent.glob("[a-z]*.py")}
            text = ast.get_docstring(ast.parse(room.read_text())) or ""
            if "\nBegin with `" in text:
                told.add(f"{package}/{room.parent.name}")
                listed = text.partition("\nBegin with")[2]
                names = [name.split(".") for name in re.findall(r"`([\w.]+)`", listed)]
                assert {file for file, *_ in names} == files, f"{room}: its list is not of its files"
                for file, *name in names:
                    tree = ast.parse(room.with_name(f"{file}.py").read_text())
                    assert {*name} <= {getattr(node, "name", "") for node in tree.body}, f"{room}: {file}.{name}"
            elif len(files) > 10:
                pytest.fail(f"{room}: {len(files)} files, and no word where to begin")
    assert {"orchestrator/storage", "orchestrator/trial", "datagen/storage"} <= told
