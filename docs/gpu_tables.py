"""The tables of docs/gpu.md are made from docs/results/gpu-h100.json: `python docs/gpu_tables.py` writes them again."""

from __future__ import annotations

import json
from typing import Any

from reproduction import NAMES, ROOT, row_of, with_tables

PAGE = ROOT / "docs" / "gpu.md"
FIRST, SECOND = json.loads((ROOT / "docs" / "results" / "gpu-h100.json").read_text(encoding="utf-8"))
_NAMES = {**NAMES, "conv_gppn": "ConvGPPN", "contractive": "contractive", "reachability": "reachability"}
_NAMES |= {"spt": "SPT", "shortest_path": "shortest path"}


def _of(run: dict[str, Any], section: str, **asked: Any) -> dict[str, Any]:
    """Return the one row of a section that has these fields, or none of it."""
    found = [row for row in run["sections"][section]["rows"] if all(row[key] == asked[key] for key in asked)]
    return found[0] if found else {}


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def kernels() -> list[str]:
    """Return the times of forward solves in torch's operations and on the chip."""
    rows = [
        row_of("", "map", "torch's operations, ms", "on the chip, ms", "ratio", "a step, us"),
        "|---|---|---|---|---|---|",
    ]
    for row in FIRST["sections"]["kernels"]["rows"]:
        reference, chip = row["reference_ms"], row["chip_ms"]
        size = f"{row['size']}x{row['size']}"
        numbers = (f"{reference:.1f}", f"{chip:.2f}", f"{reference / chip:.0f}", f"{1e3 * chip / row['k']:.1f}")
        rows.append(row_of(_NAMES[row["core"]], size, *numbers))
    return rows


def steps() -> list[str]:
    """Return the times of a training step, with graphs and without, and of others."""
    rows = [row_of("", "map", "ours", "ours, graphs", "plain loop", "torchdeq", "JAX"), "|---|---|---|---|---|---|---|"]
    for row in SECOND["sections"]["graphs"]["rows"]:
        core, implicit = row["core"], row["adjoint"] == "implicit"

        def other(section: str, method: str, asked: bool = True, row: dict[str, Any] = row) -> float | None:
            return _of(SECOND, section, core=row["core"], size=row["size"], method=method).get("ms") if asked else None

        times = (
            row["plain_ms"],
            row["graphs_ms"],
            other("steps", "plain loop", not implicit),
            other("steps", "torchdeq", implicit),
            other("jax", f"{row['adjoint']}, jax"),
        )
        name = f"ID-{_NAMES[core]}" if implicit else _NAMES[core]
        rows.append(row_of(name, f"{row['size']}x{row['size']}", *map(_ms, times)))
    return rows


TABLES = {"kernels": kernels, "steps": steps}

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES, "gpu_tables"), encoding="utf-8")
