"""Which code makes a trial's numbers, as digests: that of all planners and tasks, and that of the parts it uses."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

import datagen
import planners
from datagen.definitions import digest, kept
from datagen.plugins import source_files
from datagen.sources import imports, module_path, sources
from datagen.tasks.registry import TASKS, DatasetSpec
from planners.registry import OPTIONS
from planners.specs import PlannerSpec

CODE_PACKAGES = ("datagen", "planners")
"""The packages whose sources decide a trial's numbers."""

_ALWAYS = ("planners.training.trainer", "planners.training.evaluation", "planners.planner")
_MEASURES = "planners.training.measures"
_LISTS = ("planners.registry", "planners.options", "datagen.tasks.registry", "datagen.options", "datagen.plugins")
"""What names all parts and says what each can be told: a trial's spec says it of those that it uses."""


@functools.cache
def code_hash(*packages: str) -> str:
    """Return twelve digits that change when the code of datagen or planners does, or that of other packages.

    What is defined is hashed, not its text or place (`datagen.definitions`): a comment, a docstring, a reformatted
    line, a module with another name or another minor version of Python leave thousands of results fresh.

    Args:
        packages: Packages to hash instead, such as a plug-in.
    """
    files: dict[str, bytes] = {}
    for package in packages or CODE_PACKAGES:
        for name, path in source_files(package).items():
            if package in CODE_PACKAGES and name.startswith(f"{package}/conformance/"):
                continue  # what examines planners and tasks makes no number of a trial
            files[name.removesuffix(".py").replace("/", ".")] = path.read_bytes()
    return digest(files)[:12]


def whole_code() -> str:
    """Return twelve digits that tell whether another process runs this project's code, the orchestrator's included."""
    return code_hash(*CODE_PACKAGES, "orchestrator")


def parts_of(
    data: DatasetSpec, planner: PlannerSpec | None, plugins: Iterable[str] = (), measures: Collection[str] = ()
) -> dict[str, str]:
    """Return the modules that a trial's numbers begin from, each with the digest of all that it imports.

    So a new task, a new planner or a faster figure leaves results fresh, and a change of what made them does not.

    Args:
        data: What it is trained or tested on.
        planner: Its planner; None where it is a system, which is its plug-in's and what that imports.
        plugins: Plug-ins that it uses; what they import of this project counts.
        measures: What is measured beside success.
    """
    targets, always = [TASKS[data.task].target], () if planner is None else _ALWAYS
    if planner is not None:
        targets += [registry[getattr(planner, field)].target for field, (registry, _) in OPTIONS.items()]
    modules = {*always, *(target.partition(":")[0] for target in targets), *([_MEASURES] if measures else [])}
    for plugin in plugins:
        for name, path in source_files(plugin).items():
            modules |= imports(path.read_bytes(), name.removesuffix(".py").replace("/", ".").rpartition(".")[0])
    return {module: found for module in sorted(modules) if (found := part_hash(module))}


@functools.cache
def part_hash(module: str) -> str:
    """Return twelve digits for a module of the project with all that it imports; empty for what is no such module.

    Args:
        module: Its full name.
    """
    if module_path(module, _roots()) is None:
        return ""
    return kept(f"{module} {_LISTS} {_every_source()}", lambda: digest(_reached(module)))[:12]


def _reached(module: str) -> dict[str, bytes]:
    return sources([module], _roots(), without=lambda name: name in _LISTS or name == _MEASURES != module)


@functools.cache
def _roots() -> dict[str, Path]:
    return {"datagen": Path(datagen.__path__[0]), "planners": Path(planners.__path__[0])}


@functools.cache
def _every_source() -> str:
    """Return what changes when any source file does."""
    every = hashlib.sha256()
    for package in CODE_PACKAGES:
        for name, path in source_files(package).items():
            text = path.read_bytes()
            every.update(f"{name}\0{len(text)}\0".encode() + text)
    return every.hexdigest()
