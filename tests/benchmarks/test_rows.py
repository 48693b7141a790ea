"""Rows that benchmarks keep by trial, and what two of them measure in a trial that is trained here."""

from __future__ import annotations

import json
import sys

from benchmarks import adjoint_solves, gradients
from benchmarks.rows import keep

SWEEP = """
name: small
description: How do two solves differ?
figures: [success]
tasks: [{task: navigation, map_size: 7}]
data: {train: 32, valid: 4, test: 4}
planners: {averaged: {core: vin, adjoint: implicit, solver_bwd: moving_average}}
grid: {k: [8], seed: [0]}
training: {epochs: 2, batch_size: 8, gradient_clip: 0.01}
"""


def test_rows_of_the_same_trial_are_replaced_and_others_kept(tmp_path):
    file = tmp_path / "rows.json"
    keep([{"trial_id": "a", "x": 1.23456, "n": 32}, {"trial_id": "b", "x": [2.0]}], file)
    keep([{"trial_id": "b", "x": [0.98765, 3]}], file)
    assert json.loads(file.read_text()) == [
        {"trial_id": "a", "x": 1.23, "n": 32},
        {"trial_id": "b", "x": [0.988, 3]},
    ]
    keep([{"trial_id": "c"}], None)
    assert len(json.loads(file.read_text())) == 2


def test_what_they_measure_in_a_trained_trial(tmp_path, idp, monkeypatch, capsys):
    sweep, storage, file = tmp_path / "small.yaml", tmp_path / "storage", tmp_path / "rows.json"
    sweep.write_text(SWEEP)
    done = idp("run", sweep, "--in-process", "--storage", storage, "--tracking-uri", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    def measured(benchmark, *more):
        monkeypatch.setattr(sys, "argv", ["benchmark", str(storage), str(sweep), "--out", str(file), *more])
        benchmark.main()
        (row,) = json.loads(file.read_text())
        file.unlink()
        return row

    row = measured(adjoint_solves)
    assert row["samples"] == 8 and 0 < row["gradient"] < 0.1
    assert row["apart"] <= row["worst"] < 1e-2 and row["next"] <= row["worst"]
    row = measured(gradients, "--epochs", "2")
    (median,), (largest,) = row["median"], row["largest"]
    assert 0 < median <= largest <= 0.0101  # the clip
    assert "averaged" in capsys.readouterr().out
