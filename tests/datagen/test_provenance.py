"""The hash of the sources sees what a task's numbers come from, and nothing else."""

import shutil
from pathlib import Path

import pytest

import datagen.storage.provenance as provenance
from datagen.tasks.registry import TASKS


@pytest.fixture
def copy(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    shutil.copytree(Path(provenance.__file__).parents[1], folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "__file__", str(folder / "storage" / "provenance.py"))
    return folder


def hashes(tasks=("navigation", "manipulation", "workspace_manipulation")):
    return {task: provenance.code_hash.__wrapped__(task) for task in tasks}


@pytest.mark.slow
def test_the_hash_does_not_depend_on_the_place(copy, monkeypatch):
    there = hashes(TASKS)
    shutil.copytree(copy, copy.parent / "again")
    monkeypatch.setattr(provenance, "__file__", str(copy.parent / "again" / "storage" / "provenance.py"))
    assert hashes(TASKS) == there and len(set(there.values())) == len(TASKS) - 1  # the two arm tasks share their code


USED_BY = {
    "sampling/splitmix": {"navigation", "manipulation", "workspace_manipulation"},
    "expert/grid": {"navigation", "manipulation", "workspace_manipulation"},
    "storage/schema": {"navigation", "manipulation", "workspace_manipulation"},
    "tasks/arm": {"manipulation", "workspace_manipulation"},
    "storage/npz": set(),
    "statistics": set(),
}


@pytest.mark.slow
def test_a_changed_source_changes_the_hash_of_the_tasks_that_use_it(copy):
    before = hashes()
    for module in USED_BY:
        with (copy / f"{module}.py").open("a") as file:
            file.write("\n# changed\n")
    assert hashes() == before
    for module, changed in USED_BY.items():
        path = copy / f"{module}.py"
        whole = path.read_text()
        path.write_text(f"{whole}\nCHANGED = True\n")
        after = hashes()
        path.write_text(whole)
        assert {task for task in before if before[task] != after[task]} == changed, module


@pytest.mark.slow
def test_a_module_in_a_folder_of_its_own_counts_too(copy):
    (copy / "deep").mkdir()
    (copy / "deep" / "__init__.py").write_text("")
    (copy / "deep" / "constants.py").write_text("SIDES = 4\n")
    with (copy / "tasks" / "arm.py").open("a") as file:
        file.write("\nfrom datagen.deep.constants import SIDES as SIDES\n")
    before = hashes()
    (copy / "deep" / "constants.py").write_text("SIDES = 5\n")
    after = hashes()
    assert {task for task in before if before[task] != after[task]} == {"manipulation", "workspace_manipulation"}


def test_a_module_that_has_moved_away_is_missed(copy):
    (copy / "storage" / "schema.py").rename(copy / "storage" / "columns.py")
    with pytest.raises(LookupError, match=r"no source of datagen\.storage\.schema"):
        provenance.code_hash.__wrapped__("navigation")
