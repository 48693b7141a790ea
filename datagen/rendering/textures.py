"""MiniWorld's textures by name, found without its import, which needs OpenGL."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path


@cache
def textures() -> frozenset[str]:
    """Return the names of MiniWorld's textures, found without its import, which needs OpenGL; none where it is not."""
    package = importlib.util.find_spec("miniworld")
    folders = (package and package.submodule_search_locations) or []
    paths = (path for folder in folders for path in Path(folder).glob("textures/*_1.png"))
    return frozenset(path.name.removesuffix("_1.png") for path in paths)
