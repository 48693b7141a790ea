"""What of the code counts for a trial: what its numbers come from, and nothing beside it."""

from __future__ import annotations

import shutil

import pytest

import datagen
import planners
from datagen.tasks.registry import DatasetSpec
from orchestrator.storage import code
from orchestrator.storage.code import code_hash, part_hash, parts_of
from orchestrator.storage.provenance import Provenance
from planners.specs import PlannerSpec

MAZES = DatasetSpec(task="navigation", map_size=9, train=8, valid=4, test=4)
VIN = PlannerSpec(core="vin", k_fwd=4)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Return a function that appends to a file of a copy of the packages, and tells the parts of a trial there."""
    folders = {}
    for package in (datagen, planners):
        folders[package.__name__] = tmp_path / package.__name__
        skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(package.__path__[0], folders[package.__name__], ignore=skip)
    monkeypatch.setattr(code, "_roots", lambda: folders)
    # What was found is kept beside the module under a name that all sources decide.
    monkeypatch.setattr(code, "kept", lambda key, find: find())

    def changed(path: str = "", text: str = "") -> dict[str, str]:
        if path:
            with (tmp_path / path).open("a") as file:
                file.write(text)
        part_hash.cache_clear()
        return parts_of(MAZES, VIN)

    yield changed
    part_hash.cache_clear()


@pytest.mark.parametrize(
    "path", ["planners/search.py", "planners/options.py", "planners/cores/symvin.py", "datagen/tasks/arm.py"]
)
def test_what_a_trial_does_not_use_leaves_its_parts_as_they_are(copied, path):
    before = copied()
    assert len(before) > 4 and copied(path, "\nLATER = 1\n") == before


@pytest.mark.parametrize(
    "path, part",
    [
        ("planners/cores/vin.py", "planners.cores.vin"),
        ("planners/compiled/linalg.py", "planners.planner"),
        ("planners/training/losses.py", "planners.training.trainer"),
        ("datagen/expert/grid.py", "datagen.tasks.navigation"),
    ],
)
def test_what_a_trial_uses_changes_the_parts_that_reach_it(copied, path, part):
    before = copied()
    after = copied(path, "\nLATER = 1\n")
    assert after.keys() == before.keys() and after[part] != before[part]


def test_a_result_of_other_code_is_present_where_its_parts_are():
    parts = parts_of(MAZES, VIN)
    assert Provenance(code="0" * 12, parts=parts).made_by(code_hash())
    assert not Provenance(code="0" * 12, parts=parts).made_by("1" * 12), "asked of another code, parts say nothing"
    assert not Provenance(code="0" * 12, parts=parts | {"planners.cores.vin": "0" * 12}).made_by(code_hash())
    assert not Provenance(code="0" * 12, parts=parts | {"planners.cores.gone": ""}).made_by(code_hash())
    assert not Provenance(code="0" * 12).made_by(code_hash()), "of before parts were recorded"


def test_measures_count_where_something_is_measured_and_a_plug_ins_imports_do(monkeypatch, tmp_path):
    assert "planners.training.measures" not in parts_of(MAZES, VIN)
    assert "planners.training.measures" in parts_of(MAZES, VIN, measures=["lengths"])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "importing_part.py").write_text("from planners.cores.symvin import SymVIN\nimport os\n")
    added = parts_of(MAZES, VIN, ["importing_part"]).keys() - parts_of(MAZES, VIN).keys()
    assert added == {"planners.cores.symvin"}
