"""Plug-ins: packages of other people's whose dictionaries add lines to the registries.

A plug-in is a module that holds any of `TASKS`, `CORES`, `MAPPERS`, `SOLVERS`, `ADJOINTS` and `SYSTEMS`, written as
those of this project are: names to `Task` (datagen.tasks.registry), `Entry` (planners.specs) or `System`
(orchestrator.sweep.systems). Importing it has no further effect.

A plug-in is code, so only a user brings one in: by the sweep in use, `--plugin`, or IDP_PLUGINS. A file that is read
from a storage or got from somebody else (a spec, a manifest, an archive) may say that it needs one, never import it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from datagen.errors import UserError

T = TypeVar("T")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

OWNERS: dict[tuple[str, str], str] = {}
"""Which plug-in a line of a registry comes from: (registry, name) to plug-in; what is not here is the project's own."""

LOADED: dict[str, None] = {}
"""The plug-ins that this process has been told to use."""


class PluginError(UserError):
    """A plug-in that can't be used; the message names it and says why."""


class PluginNotLoaded(PluginError):
    """A file needs a plug-in that nobody has named."""


def named_in_environment() -> list[str]:
    """Return the plug-ins that IDP_PLUGINS names, with commas between them."""
    return [name for name in os.environ.get("IDP_PLUGINS", "").split(",") if name]


def require(names: Any) -> None:
    """Refuse what a file needs where the user has not named it; nothing is imported.

    Args:
        names: The file's list of plug-ins, whatever it holds.

    Raises:
        PluginNotLoaded: A plug-in of them is not loaded.
        PluginError: They are no list of modules.
    """
    if not isinstance(names, (list, tuple)):
        raise PluginError(f"plugins: expected a list of modules, got {names!r:.80}")
    for name in names:
        if not isinstance(name, str) or not _MODULE.fullmatch(name):
            raise PluginError(f"plugins: expected names of Python modules such as my_package, got {name!r:.80}")
        if name not in LOADED:
            raise PluginNotLoaded(
                f"plugins: needs {name!r:.80}, which is not loaded, for a file never brings code along; if you trust "
                f"that module, name it: --plugin {name:.80}, or IDP_PLUGINS={name:.80}"
            )


def import_plugin(name: object) -> ModuleType:
    """Return the module of a plug-in that the user has named.

    Raises:
        PluginError: It can't be found, or its import fails; the message has the line of its own that failed.
    """
    if not isinstance(name, str) or not _MODULE.fullmatch(name):
        raise PluginError(f"plugins: expected names of Python modules such as my_package, got {name!r:.80}")
    try:
        with _kept_in_check():
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PluginError(
                f"plugins: there is no module {name!r} beside the sweep, in the current folder or on Python's path; "
                "install it, or put its folder on PYTHONPATH"
            ) from None
        raise PluginError(failed(name, error)) from error
    except (Exception, SystemExit, GeneratorExit) as error:
        raise PluginError(failed(name, error)) from error
    LOADED[name] = None
    return module


@contextmanager
def _kept_in_check() -> Iterator[None]:
    """Let an import neither end the process in silence nor write into what a verb prints."""

    def refused(status: int) -> NoReturn:
        if os.getpid() != process:
            ends(status)  # a child that was forked meanwhile ends as it must
        raise SystemExit(f"os._exit({status})")

    process, ends, os._exit = os.getpid(), os._exit, refused
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os._exit = ends


def failed(name: str, error: BaseException) -> str:
    """Return what to say where the import of a plug-in failed: the reason, and the plug-in's own line."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((frame for frame in reversed(frames) if frame.filename != __file__), frames[-1])
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
