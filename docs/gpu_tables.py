"""The tables of docs/gpu.md are made from docs/results/gpu-h100.json: `python docs/gpu_tables.py` writes them again."""

from __future__ import annotations

import json

from archive import NAMES, ROOT, row_of, with_tables

PAGE = ROOT / "docs" / "gpu.md"
FIRST, SECOND = json.loads((ROOT / "docs" / "results" / "gpu-h100.json").read_text(encoding="utf-8"))
_NAMES = {**NAMES, "conv_gppn": "ConvGPPN", "contractive": "contractive", "reachability": "reachability"}
_NAMES |= {"spt": "SPT", "shortest_path": "shortest path"}


def times() -> dict[tuple[str, int, str], float]:
    """Return milliseconds of a training step by core, rows of the maps and method."""
    sections = SECOND["sections"]
    found = {
        (row["core"], row["size"], row["method"]): row["ms"]
        for row in sections["steps"]["rows"] + sections["jax"]["rows"]
    }
    return found | {
        (row["core"], row["size"], f"{row['adjoint']}, graphs"): row["graphs_ms"] for row in sections["graphs"]["rows"]
    }


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
    found = times()
    for core, size, method in found:
        adjoint, _, what = method.partition(", ")
        if what != "graphs" or core == "reachability":  # whose graphs were timed in the epoch that learns no gates
            continue
        others = ("", "torchdeq") if adjoint == "implicit" else ("plain loop", "")
        methods = (f"{adjoint}, auto", method, *others, f"{adjoint}, jax")
        name = f"ID-{_NAMES[core]}" if adjoint == "implicit" else _NAMES[core]
        rows.append(row_of(name, f"{size}x{size}", *(_ms(found.get((core, size, each))) for each in methods)))
    return rows


TABLES = {"kernels": kernels, "steps": steps}

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), TABLES, "gpu_tables"), encoding="utf-8")
