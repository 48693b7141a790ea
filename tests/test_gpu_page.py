"""The numbers of docs/gpu.md are those of docs/results/gpu-h100.json."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from published import ROOT, made  # which loads what gpu_tables imports

PAGE = (ROOT / "docs" / "gpu.md").read_text()


@pytest.fixture(scope="module")
def tables():
    found = importlib.util.spec_from_file_location("gpu_tables", ROOT / "docs" / "gpu_tables.py")
    module = sys.modules["gpu_tables"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _between(values, digits=2):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def test_the_tables_are_what_the_gpu_said(tables):
    assert made.with_tables(PAGE, tables.TABLES, "gpu_tables") == PAGE, "python docs/gpu_tables.py writes them again"


def test_so_are_the_sentences(tables):
    graphs = tables.SECOND["sections"]["graphs"]["rows"]
    steps, jax = (
        {(r["core"], r["size"], r["method"]): r["ms"] for r in tables.SECOND["sections"][name]["rows"]}
        for name in ("steps", "jax")
    )
    deq = [
        (row, steps[key])
        for row in graphs
        if row["adjoint"] == "implicit" and (key := (row["core"], row["size"], "torchdeq")) in steps
    ]
    xla = [(row, jax[key]) for row in graphs if (key := (row["core"], row["size"], f"{row['adjoint']}, jax")) in jax]
    assert f"{_between([row['plain_ms'] / ms for row, ms in deq], 1)} times as long as torchdeq's" in PAGE
    assert f"with them {_between([row['graphs_ms'] / ms for row, ms in deq])} times" in PAGE
    assert f"take {_between([ms / row['graphs_ms'] for row, ms in xla])} times as long as ours with graphs" in PAGE
    small = [row["graphs_ms"] / row["plain_ms"] for row in graphs if row["adjoint"] == "implicit" and row["size"] == 15]
    assert _between(small, 1) == "0.1 to 0.4" and "a tenth to two fifths of the time at 15x15" in PAGE
    ratios = [row["reference_ms"] / row["chip_ms"] for row in tables.FIRST["sections"]["kernels"]["rows"]]
    assert f"{_between(ratios, 0)} times as fast" in PAGE
    first = tables.FIRST["sections"]
    worst = max(row["float32"] for row in first["agreement"]["rows"])
    assert f"to {worst:.1e} of the largest".replace("e-06", "e-6") in PAGE
    assert f"all {first['conformance']['checks']} conformance checks hold" in PAGE and not first["conformance"]["rows"]
    half = [100 * row["bfloat16_logits"] for row in first["agreement"]["rows"] if row["core"] != "shortest_path"]
    assert f"within {min(half):.0f} to {max(half):.1f} %" in PAGE
    small_trials = first["figure6"]
    assert f"({small_trials['trials'] - small_trials['completed']} of its {small_trials['trials']} trials" in PAGE


def test_so_is_what_was_trained_twice(tables):
    text = PAGE.replace("\n", " ")
    for row in tables.SECOND["sections"]["trained"]["rows"]:
        implicit = row["adjoint"] == "implicit" and row["core"] != "contractive"
        name = f" {'ID-' if implicit else ''}{tables._NAMES[row['core']]}"
        assert f"{name} {100 * row['gpu']:.1f} and {100 * row['cpu']:.1f}" in text
        if row["core"] != "contractive":
            assert f"{name} {row['gpu_mib']:,.0f} and {row['cpu_mib']:,.0f}" in text
