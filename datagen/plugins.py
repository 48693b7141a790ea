"""Plug-ins: packages of other people's whose dictionaries add lines to the registries.

A plug-in is a module that holds any of `TASKS`, `CORES`, `MAPPERS`, `SOLVERS` and `ADJOINTS`, written as those of this
project are: names to `Task` (datagen.task) or `Entry` (planners.specs). Importing it has no further effect.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

OWNERS: dict[tuple[str, str], str] = {}
"""Which plug-in a line of a registry comes from: (registry, name) to plug-in; what is not here is the project's own."""


class PluginError(ValueError):
    """A plug-in that can't be used; the message names it and says why."""


def import_plugin(name: object) -> ModuleType:
    """Return the module of a plug-in.

    Raises:
        PluginError: It can't be found, or its import fails; the message has the line of its own that failed.
    """
    if not isinstance(name, str) or not _MODULE.fullmatch(name):
        raise PluginError(f"plugins: expected names of Python modules such as my_package, got {name!r:.80}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PluginError(
                f"plugins: there is no module {name!r} beside the sweep, in the current folder or on Python's path; "
                "install it, or put its folder on PYTHONPATH"
            ) from None
        raise PluginError(_failed(name, error)) from error
    except Exception as error:
        raise PluginError(_failed(name, error)) from error


def _failed(name: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}, line {last.lineno}"
    reason = " ".join(str(error).split())
    return f"plugins: importing {name!r} failed with {type(error).__name__}: {reason} ({place})"


def extend(registry: dict[str, T], attribute: str, kind: type[T], plugins: Iterable[str]) -> None:
    """Add to a registry what the plug-ins' dictionaries of the same name hold; doing it twice changes nothing.

    Args:
        registry: The registry.
        attribute: Its name, the same in a plug-in.
        kind: What its lines are.
        plugins: Names of modules.

    Raises:
        PluginError: A plug-in can't be imported, its dictionary is none, or a name is taken.
    """
    for plugin in plugins:
        lines = getattr(import_plugin(plugin), attribute, {})
        if not isinstance(lines, dict):
            raise PluginError(f"plugins: {plugin}.{attribute}: expected a dictionary, got {type(lines).__name__}")
        if lines is registry:
            raise PluginError(f"plugins: {plugin}.{attribute} is the project's own; expected a dictionary of its lines")
        for name, line in lines.items():
            where = f"plugins: {plugin}.{attribute}[{name!r}]"
            if not isinstance(name, str) or not isinstance(line, kind):
                raise PluginError(f"{where}: expected a name and a {kind.__name__}, got a {type(line).__name__}")
            if name in registry and OWNERS.get((attribute, name)) != plugin:
                owner = OWNERS.get((attribute, name), "this project")
                raise PluginError(f"{where}: the name is taken by {owner}; choose another")
            OWNERS[attribute, name] = plugin
            registry[name] = line


def source_files(module: str) -> dict[str, Path]:
    """Return the Python files of the package that a module belongs to, by their names in it.

    Args:
        module: Name of a module; the whole of its top-level package counts, for a file may import any other.
    """
    package = module.partition(".")[0]
    loaded = sys.modules.get(package)
    spec = importlib.util.find_spec(package) if loaded is None else loaded.__spec__
    if spec is None:
        raise PluginError(f"plugins: there is no module {package!r}")
    if not spec.submodule_search_locations:
        assert spec.origin is not None, package
        return {Path(spec.origin).name: Path(spec.origin)}
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    return {f"{package}/{path.relative_to(root).as_posix()}": path for path in paths}
