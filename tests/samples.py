"""Runs with made-up numbers at the paper's scale, for tests of tables, figures and reports: a function of the sweep."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from datagen.tasks.registry import dataset_id
from orchestrator.storage.code import code_hash
from orchestrator.storage.curves import curves_file
from orchestrator.storage.evaluations import Bins, EvaluationResult, planned_evaluations
from orchestrator.storage.files import sealed, write_bytes, write_json
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from orchestrator.tables.records import TrialRecord

SWEEPS = Path(__file__).parents[1] / "sweeps"
_BEST = {"vin": 0.75, "symvin": 0.96, "conv_gppn": 0.98, "contractive": 0.995, "spt": 0.7, "reachability": 0.999}
_COST = {"vin": 1.0, "symvin": 6.0, "conv_gppn": 8.0, "contractive": 1.2, "spt": 5.0, "reachability": 0.5}


def sample_run(trial, *, code=None, epochs=12):
    """A plausible run: larger maps are harder, unrolled planners run out of memory and some seeds diverge."""
    spec, planner = trial.spec, trial.spec.planner
    chance = np.random.default_rng(zlib.crc32(trial.trial_id.encode()))
    unrolled, size, k = planner.adjoint == "unrolled", spec.data.map_size, planner.k_fwd
    provenance = Provenance(
        code=code or code_hash(), git_commit="0123456789abcdef", versions={"python": "3.11", "torch": "2.13.0"},
        host="node-1", cpu="Some CPU", dataset_id=dataset_id(spec.data),
    )  # fmt: skip
    memory = _COST[planner.core] * size**2 * (k if unrolled else 2) * 32 * 400 * 8
    limit = (spec.execution.memory_limit_gib or 1e9) * 2**30
    if memory > limit:
        reason = "a training step needed more than the limit of 11 GiB in the forward pass"
        return TrialRecord(
            trial,
            TrialResult(
                trial_id=trial.trial_id, status="OUT_OF_MEMORY", reason=reason, peak_bytes=int(limit),
                provenance=provenance,
            ),
            [],
            [],
        )  # fmt: skip
    diverged = unrolled and planner.core != "vin" and chance.random() < k / 400
    rate = 0.08 if diverged else _BEST[planner.core] * min(1.0, (k / size) ** 0.3) - 0.03 * chance.random()
    if planner.core == "vin" and not unrolled:
        rate -= 0.08
    seconds = 1e-5 * size**2 * k * _COST[planner.core] * (1 + 0.05 * chance.random())
    backward = 1.6 * seconds if unrolled else 2e-5 * size**2 * planner.k_bwd * _COST[planner.core]
    curves = []
    for epoch in range(1, epochs + 1):
        now = rate * (1 - math.exp(-epoch / 3)) + 0.02 * chance.standard_normal()
        curves.append(
            {
                "epoch": epoch,
                "train_loss": 1.4 * math.exp(-epoch / 4) + 0.3,
                "valid_success_rate": float(np.clip(now, 0, 1)),
                "forward_residual": 0.1 / epoch,
                "train_seconds": 312 * (seconds + backward),
            }
        )
    cells = [4000, 3000, 2000, 500, 20, 0]
    result = TrialResult(
        trial_id=trial.trial_id,
        status="COMPLETED",
        test_success_rate=float(rate),
        test_optimality=float(rate) - 0.02,
        test_spl=float(rate) - 0.01,
        trial_diverged=bool(rate < 0.2),
        forward_diverged=bool(diverged),
        forward_seconds=seconds,
        backward_seconds=backward,
        forward_steps=float(k),
        forward_residual=0.01,
        peak_bytes=int(memory),
        train_seconds=epochs * 312 * (seconds + backward),
        epochs=epochs,
        forward_trace=[10 ** (-3.5 * step / k) * (1 + 0.1 * chance.random()) for step in range(k)],
        backward_trace=[] if unrolled else [10 ** (-1.5 * step / planner.k_bwd) for step in range(planner.k_bwd)],
        test_exact=float(rate) ** 4,
        test_cells_by_distance=cells,
        test_arrivals_by_distance=[round(rate * n * 0.9**i) for i, n in enumerate(cells)],
        provenance=provenance,
    )
    return TrialRecord(trial, result, curves, [])


def sample_runs(name, profile=None, *, code=None, overrides=()):
    """The sweep `sweeps/NAME.yaml` and a plausible run of each of its trials."""
    sweep = load_sweep(SWEEPS / f"{name}.yaml", profile, overrides)
    trials = expand(sweep)
    runs = {id(trial): sample_run(trial, code=code) for trial in trials}
    for planned in planned_evaluations(sweep, trials):
        add_evaluation(runs[id(planned.trial)], planned)
    return sweep, list(runs.values())


def add_evaluation(run, planned):
    """Add a plausible test on further maps to a run that has completed."""
    if not run.completed:
        return
    rate = run.result.test_success_rate * min(1.0, planned.k / planned.data.map_size) ** 0.5
    starts = [0, 4000, 3000, 2000, 500, 20]
    arrivals = [round(rate * n * 0.9**i) for i, n in enumerate(starts)]
    bins = Bins(starts=starts, arrivals=arrivals, right=arrivals)
    run.maps[dataset_id(planned.data)] = planned.data
    run.evaluations.append(
        EvaluationResult(
            trial_id=planned.trial.trial_id, dataset_id=dataset_id(planned.data), split="test",
            map_size=planned.data.map_size, maps=planned.data.test, k=planned.k, success_rate=rate,
            optimality=rate, spl=rate, accuracy=rate, seconds=1.0, provenance=run.result.provenance, exact=rate**4,
            measured=list(planned.measure),
            **{name: bins for name in ("lengths", "detours") if name in planned.measure},
        )
    )  # fmt: skip


def put_result(directory, result):
    """Put a result into a trial directory, whatever is there and whoever holds it."""
    write_json(TrialDirectory(directory).result_file, sealed(result.model_dump(mode="json")))


def put_curves(directory, records):
    """Put per-epoch records into a trial directory, whatever is there and whoever holds it."""
    write_bytes(TrialDirectory(directory).curves_file, curves_file(records))
