"""The page of architecture and its picture are the code's."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

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


def test_arrows_that_climb_are_told(drawing):
    counts = {("a", "b"): 3, ("b", "c"): 2, ("c", "a"): 1, ("a", "c"): 1}
    assert drawing._climbs(counts) == {("c", "a")}
    assert drawing.told(frozenset(counts) - {("c", "a")}) == [("a", "b"), ("b", "c")]
