"""The numbers of docs/gpu.md are those of docs/results/gpu-h100.json and gpu-h200.json, and of the archived trials."""

from __future__ import annotations

import json
import statistics
from collections import Counter

import pytest
from published import ROOT, archive, epochs_on_a_gpu, made, script, trials

PAGE = (ROOT / "docs" / "gpu.md").read_text()
TEXT = PAGE.replace("\n", " ")


@pytest.fixture(scope="module")
def tables():
    return script("gpu_tables")


def _between(values, digits=2):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def test_the_tables_are_what_the_gpu_said(tables):
    assert archive.with_tables(PAGE, tables.TABLES, "gpu_tables") == PAGE, "python docs/gpu_tables.py writes them again"


def test_so_are_the_sentences(tables):
    found, (first, second) = tables.times(), (run["sections"] for run in (tables.FIRST, tables.SECOND))

    def ratios(over, under):
        return [
            ms / found[core, size, under]
            for (core, size, method), ms in found.items()
            if method == over and (core, size, under) in found
        ]

    assert f"{_between(ratios('implicit, auto', 'torchdeq'), 1)} times as long as torchdeq's" in PAGE
    assert f"with them {_between(ratios('implicit, graphs', 'torchdeq'))} times" in PAGE
    xla = ratios("unrolled, jax", "unrolled, graphs") + ratios("implicit, jax", "implicit, graphs")
    assert f"take {_between(xla)} times as long as ours with graphs" in TEXT
    rows = [(core, size) for core, size, method in found if method == "implicit, auto"]
    small = [
        found[core, size, "implicit, graphs"] / found[core, size, "implicit, auto"]
        for core, size in rows
        if size == 15 and core != "reachability"
    ]
    assert (
        round(1 / min(small)) in (12, 13)
        and round(max(small), 1) == 0.4
        and "a twelfth to two fifths of the time" in PAGE
    )
    solves = [row["reference_ms"] / row["chip_ms"] for row in first["kernels"]["rows"]]
    assert f"{_between(solves, 0)} times as fast" in PAGE
    worst = max(row["float32"] for row in first["agreement"]["rows"])
    assert f"to {worst:.1e} of the largest".replace("e-06", "e-6") in PAGE
    assert f"all {first['conformance']['checks']} conformance checks hold" in PAGE and not first["conformance"]["rows"]
    half = [100 * row["bfloat16_logits"] for row in first["agreement"]["rows"] if row["core"] != "shortest_path"]
    assert f"within {_between(half, 1)} %" in PAGE
    ended = first["figure6"]["trials"] - first["figure6"]["completed"]
    assert f"{ended} of its {first['figure6']['trials']} trials" in PAGE and f"share ended {ended} trials" in PAGE
    trained = second["trained"]
    assert f"{trained['trials']} trials of `table1_ours` trained, {trained['processes']} at a time" in PAGE
    assert f"for {tables.FIRST['seconds']} and {tables.SECOND['seconds']} seconds" in TEXT


def test_so_is_what_was_trained_twice(tables):
    for row in tables.SECOND["sections"]["trained"]["rows"]:
        name = f" {'ID-' if row['adjoint'] == 'implicit' else ''}{tables._NAMES[row['core']]}"
        assert f"{name} {100 * row['gpu']:.1f} and {100 * row['cpu']:.1f}" in TEXT
        assert f"{name} {row['gpu_mib']:,.0f} and {row['cpu_mib']:,.0f}" in TEXT


def test_so_is_what_a_gpu_trained_of_table_1():
    there = [trial for trial in trials("table1_ours") if trial.result["provenance"]["accelerator"] != "cpu"]
    (first, _), (second, later) = Counter(trial.result["provenance"]["git_commit"][:7] for trial in there).items()
    symvins = [
        trial for trial in there if "symvin" in trial.planner and trial.result["provenance"]["git_commit"][:7] == second
    ]
    assert first == "0adf3f5" and f"a day later {later} more" in TEXT
    assert (
        f"trained {later - len(symvins)} trials of `table1_ours`" in TEXT and f"trained {len(symvins)} SymVINs" in TEXT
    )


def test_so_is_what_an_h200_trained():
    there = [
        trial for trial in made.at_the_papers_scale() if trial.result["provenance"]["accelerator"] == "NVIDIA H200"
    ]
    symvin, layers = sorted(there, key=lambda trial: trial.result["train_seconds"])
    steps, seconds = symvin.result["steps"], [trial.result["train_seconds"] for trial in (symvin, layers)]
    assert [trial.planner for trial in (symvin, layers)] == ["symvin", "convgppn"]
    assert f"whole, {steps:,} steps in {seconds[0]:.0f} and {seconds[1]:.0f} seconds" in TEXT
    mixed = {
        trial.planner: trial for trial in made.at_the_papers_scale() if trial not in there and epochs_on_a_gpu(trial)
    }
    began = [len(epochs_on_a_gpu(mixed[planner])) for planner in ("id-symvin", "id-convgppn")]
    whole, on_a_gpu = mixed["id-convgppn"], epochs_on_a_gpu(mixed["id-convgppn"])
    later = whole.curves[len(on_a_gpu) :]
    seconds_of = [statistics.median(epoch["train_seconds"] for epoch in epochs) for epochs in (later, on_a_gpu)]
    assert "after {} and {} of 60 epochs".format(*began) in TEXT
    assert f"takes {seconds_of[0]:.0f} s of a core for {seconds_of[1]:.0f} there" in TEXT
    rows = json.loads((ROOT / "docs" / "results" / "gpu-h200.json").read_text())["steps"]["rows"]
    by = {how: [row[how] for row in rows] for how in ("heuristics", "benchmark")}
    assert f"took {1e3 * seconds[0] / steps:.0f} ms so, for {by['heuristics'][0]:.1f} with the GPU" in TEXT
    told = "{:.1f}, {:.1f} and {:.1f} ms without it, {:.1f}, {:.1f} and {:.1f} with it"
    assert told.format(*by["heuristics"], *by["benchmark"]) in TEXT
