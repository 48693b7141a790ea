"""Compiled functions, kept on disk for as long as no compiled function of the package changes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba


@cache
def _folder() -> str:
    """Return where compiled functions are kept: named by the sources of all of them.

    Numba alone compares a cached function with its own file only. One that calls a function of another file, of which
    there are many here, would go on with the old version of that: maps that belong to no spec, without a word.
    """
    package = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        if b"\n@kernel\n" in (content := path.read_bytes()):
            total.update(path.name.encode() + b"\0" + content)
    name = f"kernels-{total.hexdigest()[:16]}"
    given = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(given)] if given else [package / "__pycache__", Path.home() / ".cache" / "idp"]
    for place in places:
        try:
            (place / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # a read-only installation: the next place will do
        if os.access(place / name, os.W_OK):
            return str(place / name)
    return tempfile.mkdtemp(prefix="idp-kernels-")


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function with numba when it is first called; it runs without Python's lock.

    Args:
        function: Numeric code that numba understands.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _folder()
    try:
        return numba.njit(cache=True, nogil=True)(function)
    finally:
        numba.config.CACHE_DIR = before
