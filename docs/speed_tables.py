"""The tables of docs/speed.md are made from docs/results/planner-core.json by `python docs/speed_tables.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from reproduction import NAMES, ROOT, row_of, with_tables

PAGE = ROOT / "docs" / "speed.md"
RUN = json.loads((ROOT / "docs" / "results" / "planner-core.json").read_text(encoding="utf-8"))
_NAMES = {**NAMES, "conv_gppn": "ConvGPPN"}
IMPLICIT = ("ours", "torchdeq", "authors' ID layer", "JAX")
UNROLLED = ("ours, unrolled", "plain loop", "authors' unrolled", "JAX, unrolled")
TO_A_RESIDUAL = ("ours", "ours, Gauss-Seidel", "ours, Anderson", "torchdeq", "authors' ID layer", "JAX")


def cases(mode: str) -> Iterator[tuple[tuple[str, int, int], dict[str, float]]]:
    """Yield each core, rows of the maps and K of a mode, and milliseconds of its training step by method."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in RUN["rows"]:
        if row["mode"] == mode:
            case = found.setdefault((row["core"], row["size"], row["steps"]), {})
            case[row["method"]] = row["forward_ms"] + row["backward_ms"]
    yield from found.items()


def _table(mode: str, methods: Sequence[str], prefix: str) -> list[str]:
    rows = [row_of("", "map", "K", *methods), "|" + "---|" * (3 + len(methods))]
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
    """Return the times of steps that end at a relative residual of 1e-4."""
    return _table("1e-4", TO_A_RESIDUAL, "ID-")


TABLES = {"implicit": implicit, "unrolled": unrolled, "residual": residual}

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES, "speed_tables"), encoding="utf-8")
