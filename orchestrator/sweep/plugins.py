"""Plug-ins in a campaign: found beside the sweep, loaded before it is checked, and shipped to every worker."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import site
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from datagen.plugins import LOADED, OWNERS, PluginError, failed, import_plugin, named_in_environment
from datagen.tasks.registry import DatasetSpec, load_tasks
from orchestrator.signals import Interrupted
from orchestrator.sweep.systems import SystemSpec, load_systems
from planners.registry import load_parts
from planners.specs import PlannerSpec

ENTRY_POINTS = "idp.plugins"
"""Group of entry points by which an installed package offers itself to every sweep; the value is its module."""

_HIDDEN = "IDP_HIDDEN_FOLDER"
_UNSHIPPED = ["**/.git/**", "**/__pycache__/**", "**/.venv/**", "**/idp-storage/**"]


def load_plugins(names: Any, beside: Iterable[Path] = ()) -> None:
    """Import plug-ins and add what they hold to the registries; loading one again changes nothing.

    Args:
        names: A list of modules, as a sweep's `plugins:` has it.
        beside: Folders to look in before the rest of Python's path. The current folder is looked in too.

    Raises:
        PluginError: A plug-in can't be used; the message names it and says why.
    """
    if not isinstance(names, (list, tuple)):
        raise PluginError(f"plugins: expected a list of modules, got {names!r:.80}")
    for name in names:
        _put_on_path(str(name), [*beside, Path.cwd()])
        try:
            import_plugin(name)
        except (PluginError, Interrupted):
            raise
        except BaseException as error:  # a KeyboardInterrupt of the plug-in's own, above all
            raise PluginError(failed(name, error)) from error
        load_tasks([name])
        load_parts([name])
        load_systems([name])


def load_plugins_at_hand() -> None:
    """Load the plug-ins that need no mention: installed packages' (entry point `idp.plugins`), and IDP_PLUGINS'."""
    load_plugins([entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)])
    load_plugins(named_in_environment())


def add_plugin_option(verb: argparse.ArgumentParser) -> None:
    """Add the option that names the plug-ins which a trial, a dataset or an archive may need."""
    verb.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="MODULE",
        help="a plug-in that what is read may need (also: IDP_PLUGINS); it is code, so name only what you trust",
    )


def _put_on_path(name: str, folders: list[Path]) -> None:
    # Only a folder that has the plug-in goes on the path, so that nothing else in it hides another module.
    package = name.partition(".")[0]
    if package in sys.modules:
        return
    for folder in folders:
        found = PathFinder.find_spec(package, [str(folder.resolve())])
        if found is not None and found.loader is not None:
            sys.path.insert(0, str(folder.resolve()))
            importlib.invalidate_caches()
            return


def used_by(data: DatasetSpec, planner: PlannerSpec, system: SystemSpec | None = None) -> tuple[str, ...]:
    """Return the plug-ins that a trial needs, sorted; empty where it is made of this project's own parts."""
    names = [
        ("TASKS", data.task),
        ("CORES", planner.core),
        ("MAPPERS", planner.mapper),
        ("SOLVERS", planner.solver),
        ("SOLVERS", planner.solver_bwd),
        ("ADJOINTS", planner.adjoint),
    ]
    if system is not None:
        names = [("TASKS", data.task), ("SYSTEMS", system.name)]
    return tuple(sorted({OWNERS[name] for name in names if name in OWNERS}))


def loaded() -> list[str]:
    """Return the modules of the loaded plug-ins."""
    return list(LOADED)


def packages() -> list[Path]:
    """Return the folders and files that the loaded plug-ins are in: what another machine needs to have them too."""
    found: dict[Path, None] = {}
    for name in LOADED:
        spec = sys.modules[name.partition(".")[0]].__spec__
        assert spec is not None, name
        places = list(spec.submodule_search_locations or [])
        found[Path(places[0] if places else str(spec.origin))] = None
    return list(found)


def runtime_env() -> dict[str, Any]:
    """Return what makes a cluster's workers import what this process has imported.

    That is this project, from where it was imported here as far as the other machine has it there, and the loaded
    plug-ins, which Ray copies, so that a run goes on with what it started with. Ray puts the current folder first on a
    worker's path; where this process does not look there, workers must not either: a `planners.py`, a `random.py` or
    another checkout in it would hide what is meant.
    """
    here, path = os.getcwd(), [os.path.abspath(folder) for folder in sys.path]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, [*_own_folders(), os.environ.get("PYTHONPATH", "")])),
        _HIDDEN: "" if here in path else here,
        "IDP_PLUGINS": ",".join(LOADED),
    }
    environment: dict[str, Any] = {
        "env_vars": {name: value for name, value in variables.items() if value},
        "worker_process_setup_hook": "orchestrator.sweep.plugins.load_in_worker",
    }
    if LOADED:
        environment |= {"py_modules": [str(path) for path in packages()], "excludes": _UNSHIPPED}
    return environment


def _own_folders() -> list[str]:
    """Return the folders that this project was imported from, where they are not those of installed packages."""
    installed = {os.path.realpath(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())}
    found: dict[str, None] = {}
    for name in ("datagen", "planners", "orchestrator"):
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None:
            found[os.path.dirname(os.path.dirname(os.path.realpath(origin)))] = None
    # Ahead of Python's own library, the folder of installed packages would hide parts of it.
    return [folder for folder in found if folder not in installed]


class _Empty:
    """A finder that finds nothing."""

    def find_spec(self, name: str, target: Any = None) -> None:
        """Find nothing."""


def load_in_worker() -> None:
    """Have, in a process of the cluster, this project and the plug-ins that were shipped to it.

    It runs before Ray puts the driver's folder on the path, so that what is imported by now stays what it is.
    """
    hidden = os.environ.get(_HIDDEN)
    if hidden:
        sys.path_importer_cache[hidden] = _Empty()
    for name in named_in_environment():
        import_plugin(name)  # the copy that was shipped, not the folder's present state
    load_plugins(named_in_environment())
