"""Which source files a module is made of: its own, and those of all modules that it imports, directly or not."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path


def sources(
    modules: Iterable[str],
    roots: Mapping[str, Path],
    leaves: Collection[str] = (),
    without: Callable[[str], bool] = lambda module: False,
) -> dict[str, bytes]:
    """Return the sources of modules and of all that they import, by module, in the order of their names.

    Args:
        modules: Full names of the modules to begin with.
        roots: Where each top-level package lies (its folder; of a module by itself, its file). Imports from elsewhere
            are left out.
        leaves: Modules that count, but not what they import.
        without: Whether a module does not count, nor what is reached through it alone.
    """
    found: dict[str, bytes] = {}
    ahead = list(modules)
    while ahead:
        name = ahead.pop()
        path = module_path(name, roots)
        if name in found or path is None or without(name):  # None: an imported name that is no module
            continue
        found[name] = path.read_bytes()
        if name not in leaves:
            ahead += imports(found[name], name if path.name == "__init__.py" else name.rpartition(".")[0])
    return dict(sorted(found.items()))


def module_path(module: str, roots: Mapping[str, Path]) -> Path | None:
    """Return the file of a module at any depth of its package; None where there is none below the roots."""
    top, *inner = module.split(".")
    root = roots.get(top)
    if root is None or root.is_file():
        return None if inner else root
    place = root.joinpath(*inner)
    for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if path.is_file() and (inner or path.name == "__init__.py"):
            return path
    return None


@cache
def imports(source: bytes, package: str) -> frozenset[str]:
    """Return what a module imports anywhere in its text: modules, and names that may be modules.

    Args:
        source: Its text.
        package: The package that it is in, from which relative imports count.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return frozenset(names)
