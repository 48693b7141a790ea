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
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import copy
from dataclasses import MISSING, fields
from functools import partial
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from datagen.errors import UserError

T = TypeVar("T")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

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
    return f"plugins: importing {name!r} failed with {_told(error)}"


def _told(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}{place}"


def extend(registry: dict[str, T], attribute: str, kind: type[T], plugins: Iterable[str]) -> None:
    """Add to a registry what the plug-ins' dictionaries of the same name hold; doing it twice changes nothing.

    What a line's functions answer is looked at each time they are called: a `PluginError` names the line.

    Args:
        registry: The registry.
        attribute: Its name, the same in a plug-in.
        kind: What its lines are.
        plugins: Names of modules.

    Raises:
        PluginError: A plug-in can't be imported, its dictionary is none, a field of a line is not what it should be, or
            a name is taken.
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
            if problem := _problem(line):
                raise PluginError(f"{where}: {problem}")
            OWNERS[attribute, name] = plugin
            registry[name] = _watched(line, where)


def _problem(line: Any) -> str:
    """Return what is wrong with a line, whose fields should be what their defaults are; empty for nothing."""
    for field in fields(line):
        value, usual = getattr(line, field.name), field.default
        fits: object
        if field.name == "target":
            expected, fits = "'module:name'", isinstance(value, str) and _PLACE.fullmatch(value)
        elif field.name == "options":
            try:
                expected, fits = "a datagen.spec.Spec", _is_spec(value, by_name=isinstance(usual, str))
            except Exception as error:
                return f"options: {value!r:.80}: {_told(error)}"
        elif field.name in _ANSWERS:
            expected, fits = "a function", callable(value)
        else:
            kinds = (tuple, list) if isinstance(usual, tuple) else type(usual)
            expected, fits = type(usual).__name__, usual is MISSING or isinstance(value, kinds)
        if not fits:
            return f"{field.name}: expected {expected}, got {value!r:.80}"
    return ""


def _is_spec(options: Any, by_name: bool) -> bool:
    """Return whether options are a `Spec`; `by_name` those that "module:Class" names, where pydantic can tell."""
    if by_name and isinstance(options, str) and _PLACE.fullmatch(options):
        if importlib.util.find_spec("pydantic") is None:
            return True  # a trained planner is loaded without
        module, _, name = options.partition(":")
        options = getattr(importlib.import_module(module), name)
    from datagen.spec import Spec

    return isinstance(options, type) and issubclass(options, Spec)


def _watched(line: T, where: str) -> T:
    """Return a line whose functions, which are somebody else's code, answer as they should or raise a PluginError."""
    watched = copy(line)
    for name, (expected, fits) in _ANSWERS.items():
        if hasattr(line, name):
            function = partial(_answer, getattr(line, name), f"{where}: {name}", expected, fits)
            object.__setattr__(watched, name, function)
    return watched


def _answer(function: Any, where: str, expected: str, fits: Callable[[Any], bool], given: Any) -> Any:
    refusals = (UserError,) if expected else (AssertionError, ValueError)
    try:
        answer = function(given)
        fitting = fits(answer)
    except refusals:
        raise
    except Exception as error:
        raise PluginError(f"{where}: {_told(error)}") from error
    if not fitting:
        raise PluginError(f"{where}: expected {expected}, got {answer!r:.80}")
    return tuple(answer) if isinstance(answer, list) else answer


def _are_sizes(answer: Any) -> bool:
    return isinstance(answer, (tuple, list)) and all(isinstance(part, Integral) and int(part) > 0 for part in answer)


def _are_columns(answer: Any) -> bool:
    from numpy import dtype

    return isinstance(answer, Mapping) and all(
        hasattr(column, "meaning") and dtype(column.dtype).itemsize * math.prod(column.shape) >= 0
        for column in answer.values()
    )


_ANSWERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "map_shape": ("two whole numbers, 1 or more", lambda answer: _are_sizes(answer) and len(answer) == 2),
    "observation_shape": ("whole numbers, 1 or more, or None", lambda answer: answer is None or _are_sizes(answer)),
    "starts": ("True or False", lambda answer: answer in (True, False)),
    "columns": ("a mapping of names to Column", _are_columns),
    "check": ("", lambda answer: True),
}
"""The functions of a line, what they should answer, and whether they do; a check answers nothing, and may refuse."""


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
