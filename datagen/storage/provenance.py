"""What made a dataset: a hash of the sources that its numbers come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from datagen.definitions import digest
from datagen.plugins import source_files
from datagen.sources import imports, sources
from datagen.tasks.registry import TASKS

_WRITERS = ("datagen.storage.schema", "datagen.storage.dataset")
_LEAVES = ("datagen.tasks.registry",)
"""Counts, for it holds the defaults; what it imports does not, for it knows every task."""


@cache
def code_hash(task: str) -> str:
    """Return sixteen digits that change when the code that a task's datasets come from does.

    The task's module and the writer, with everything of this package that they import: another task's sources do not
    count. Of a plug-in's task the whole plug-in counts.

    Args:
        task: A name in `TASKS`.
    """
    home = TASKS[task].target.partition(":")[0]
    begin, found = [home, *_WRITERS], {}
    if not home.startswith("datagen."):
        found = {
            name.removesuffix(".py").replace("/", "."): path.read_bytes() for name, path in source_files(home).items()
        }
        begin = [*_WRITERS, *(name for text in found.values() for name in imports(text, home.rpartition(".")[0]))]
    inside = [name for name in begin if name.startswith("datagen.")]
    root = Path(__file__).parents[__name__.count(".") - 1]
    found |= sources(inside, {"datagen": root}, _LEAVES)
    known = {*_WRITERS, *_LEAVES, *([home] if home in inside else [])}
    if missing := known - set(found):
        raise LookupError(f"{root}: no source of {', '.join(sorted(missing))}, so that a change of it would go unseen")
    return digest(found)[:16]
