"""The tables of docs/speed.md are made from docs/results/planner-core.json by `python docs/speed_tables.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from archive import NAMES, ROOT, row_of, with_tables

PAGE = ROOT / "docs" / "speed.md"
RUN = json.loads((ROOT / "docs" / "results" / "planner-core.json").read_text(encoding="utf-8"))
_NAMES = {**NAMES, "conv_gppn": "ConvGPPN"}


def milliseconds(row: dict[str, Any]) -> float:
    """Return the time of a training step."""
    return float(row["forward_ms"] + row["backward_ms"])


IMPLICIT = ("ours", "torchdeq", "authors' ID layer", "JAX")
UNROLLED = ("ours, unrolled", "plain loop", "authors' unrolled", "JAX, unrolled")
TO_A_RESIDUAL = ("ours", "ours, Gauss-Seidel", "ours, Anderson", "torchdeq", "authors' ID layer", "JAX")


Case = tuple[str, int, int]
"""Core, rows of the maps, and K."""


def cases(
    mode: str, number: Callable[[dict[str, Any]], float] = milliseconds
) -> Iterator[tuple[Case, dict[str, float]]]:
    """Yield each case of a mode, and a number of its training step by method."""
    found: dict[Case, dict[str, float]] = {}
    for row in RUN["rows"]:
        if row["mode"] == mode:
            found.setdefault((row["core"], row["size"], row["steps"]), {})[row["method"]] = number(row)
    yield from found.items()


def _named(method: str) -> str:
    """Return what the page calls a method of the bench's."""
    return {"authors' ID layer": "ID layer", "authors' unrolled": "by e2cnn's layer"}.get(method, method)


def _table(mode: str, methods: Sequence[str], prefix: str) -> list[str]:
    rows = [row_of("", "map", "K", *map(_named, methods)), "|" + "---|" * (3 + len(methods))]
    for (core, size, k), ms in cases(mode):
        times: list[Any] = [f"{ms[method]:.0f}" if method in ms else "" for method in methods]
        rows.append(row_of(prefix + _NAMES[core], f"{size}x{size}", k, *times))
    return rows


def implicit() -> list[str]:
    """Return the times of steps by implicit differentiation, K iterations and 15 of the adjoint."""
    return _table("fixed", IMPLICIT, "ID-")


def unrolled() -> list[str]:
    """Return the times of steps that are unrolled."""
    return _table("fixed", UNROLLED, "")


def residual() -> list[str]:
    """Return the times of steps that end at a relative residual of 1e-4, and after how many iterations."""
    taken = dict(cases("1e-4", lambda row: row["steps_taken"]))
    rows = [row_of("", "map", *map(_named, TO_A_RESIDUAL)), "|" + "---|" * (2 + len(TO_A_RESIDUAL))]
    for (core, size, k), ms in cases("1e-4"):
        times = (f"{ms[method]:.0f} ({taken[core, size, k][method]:.0f})" for method in TO_A_RESIDUAL)
        rows.append(row_of(f"ID-{_NAMES[core]}", f"{size}x{size}", *times))
    return rows


TABLES = {"implicit": implicit, "unrolled": unrolled, "residual": residual}

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES, "speed_tables"), encoding="utf-8")
