"""Compiled functions, kept on disk for as long as no source that they are made of changes: the one way to compile here.

Numba alone compares a cached function with its own file only. One that calls a function of another file, of which
there are many here, would go on with the old version of that: numbers that belong to no source, without a word.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from datagen.sources import sources

_packages: dict[str, Path] = {}
"""Top-level packages and modules that kernels may be made of, and where: what a kernel's module imports is followed
there. Libraries are none of them, Python's own and installed ones: their sources change with their version alone."""
_LIBRARIES = tuple(Path(place).resolve() for place in sysconfig.get_paths().values())


def kernel(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function with numba when it is first called; it runs without Python's lock.

    Args:
        function: Numeric code that numba understands.
        options: Further options of `numba.njit`.
    """
    compiled = numba.njit(nogil=True, **options)(function)
    if Path(function.__code__.co_filename).is_file():  # a cell of a notebook or `python -c` has no source to go by
        compiled._cache = _Cache(function)
    return compiled


class _Folder(_CacheLocator):
    """Where one function's compiled forms are: the same place for the same sources, wherever those lie."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._py_file = function.__code__.co_filename  # for numba's warnings
        self._line = function.__code__.co_firstlineno
        self._path = _folder(function.__module__, self._py_file)

    def get_cache_path(self) -> str:
        return self._path

    def get_source_stamp(self) -> str:
        return ""  # the folder's name is made of the sources already

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Entry(CompileResultCacheImpl):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Folder(function)
        name = f"{function.__module__}.{function.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _Cache(FunctionCache):
    """Numba's cache of one function, in a folder that its sources name; a damaged one is made again."""

    _impl_class = _Entry

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception:  # whatever unpickling half a file raises, say after a power cut
            self.flush()
            return None


def _home(module: Any) -> Path | None:
    """Return the folder of a package, or the file of a module, that is no library; else None."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    if any(path.is_relative_to(place) for place in _LIBRARIES):
        return None
    return path.parent if path.name == "__init__.py" else path


@cache
def _folder(module: str, file: str) -> str:
    """Return where the compiled functions of a module are kept: named by all sources that they come from."""
    top = module.partition(".")[0]
    package = getattr(sys.modules.get(top), "__path__", None)
    _packages[top] = Path(next(iter(package))) if package else Path(file)
    # What a kernel's module imports is imported by now, so that its package is among those known.
    for name, loaded in sys.modules.copy().items():
        if "." not in name and name not in _packages and (home := _home(loaded)) is not None:
            _packages[name] = home
    parts = sources([module], _packages) or {module: Path(file).read_bytes()}
    total = hashlib.sha256()
    for name, content in parts.items():
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    name = f"kernels-{total.hexdigest()[:16]}"
    given = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(given)] if given else [Path(file).parent / "__pycache__", Path.home() / ".cache" / "idp"]
    for place in places:
        try:
            (place / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # a read-only installation: the next place will do
        if os.access(place / name, os.W_OK):
            return str(place / name)
    return tempfile.mkdtemp(prefix="idp-kernels-")
