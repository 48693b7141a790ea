"""What made a dataset: a hash of the sources that its numbers come from."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from datagen.plugins import source_files
from datagen.task import TASKS

_WRITERS = ("datagen.columns", "datagen.parquet")
_LEAVES = ("datagen.task",)
"""Counts, for it holds the defaults; what it imports does not, for it knows every task."""


def _imports(source: str) -> set[str]:
    """Return the modules of this package that a module imports anywhere in its text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("datagen.")}


@cache
def code_hash(task: str) -> str:
    """Return sixteen digits of the sha256 of the sources that a task's datasets come from.

    The task's module and the writer, with everything of this package that they import: another task's sources do not
    count. Of a plug-in's task the whole plug-in counts.

    Args:
        task: A name in `TASKS`.
    """
    folder = Path(__file__).parent
    found: dict[str, bytes] = {}
    home = TASKS[task].target.partition(":")[0]
    ahead = [home, *_WRITERS]
    if not home.startswith("datagen."):
        found = {name: path.read_bytes() for name, path in source_files(home).items()}
        ahead += sorted(set().union(*(_imports(text.decode()) for text in found.values())))
    while ahead:
        module = ahead.pop()
        path = folder / f"{module.removeprefix('datagen.')}.py"
        if module in found or not path.is_file():  # imported names that are no modules
            continue
        found[module] = path.read_bytes()
        if module not in _LEAVES:
            ahead += _imports(found[module].decode())
    total = hashlib.sha256()
    for module in sorted(found):
        total.update(f"{module}\0{len(found[module])}\0".encode() + found[module])
    return total.hexdigest()[:16]
