"""What MLflow is told of a trial in numbers and words; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.storage.code import code_hash
from orchestrator.storage.provenance import Provenance
from orchestrator.sweep.specs import PlannedTrial
from orchestrator.sweep.systems import METRIC, SYSTEMS
from orchestrator.tables.freshness import version
from orchestrator.tables.rows import Row
from orchestrator.words import cell_name

MOST_PER_BATCH = 900
"""Metrics per request; the server takes 1,000."""
_CENTURY = 3.2e9
_TOGETHER = ("test_success_rate", "trials_diverged", "trials_out_of_memory", "train_seconds")


def params_of(trial: PlannedTrial) -> dict[str, str]:
    """Return flat params, so that MLflow's pages can group and compare by them."""
    spec = trial.spec
    if spec.system is not None:
        options = {f"system.{name}": value for name, value in spec.system.options.model_dump(mode="json").items()}
        training = {name: getattr(spec.training, name) for name in ("epochs", *SYSTEMS[spec.system.name].training)}
        said = {**trial.axes, "system": spec.system.name, **options, **training, "train_samples": spec.data.train}
        return {name: str(value)[:500] for name, value in said.items()}
    params = {
        **trial.axes,
        "core": spec.planner.core,
        "adjoint": spec.planner.adjoint,
        "solver": spec.planner.solver,
        "solver_bwd": spec.planner.solver_bwd,
        "k_bwd": spec.planner.k_bwd,
        "epochs": spec.training.epochs,
        "batch_size": spec.training.batch_size,
        "optimizer": spec.training.optimizer,
        "learning_rate": spec.training.learning_rate,
        "labels": spec.training.labels,
        "train_maps": spec.data.train,
        "threads": spec.execution.threads,
    }
    return {name: str(value)[:500] for name, value in params.items()}


def means_of(row: Row) -> dict[str, float | int | None]:
    """Return the metrics of a cell."""
    return {
        "test_success_rate": row.success_rate,
        "test_success_rate_std": row.success_rate_std,
        "test_optimality": row.optimality,
        "test_spl": row.spl,
        "test_exact": row.exact,
        "test_searched": row.searched,
        "forward_seconds": row.forward_seconds,
        "backward_seconds": row.backward_seconds,
        "peak_bytes": row.peak_bytes,
        "train_seconds": row.train_seconds,
        "trials": row.used,
        "trials_expected": row.expected,
        "trials_diverged": row.trial_diverged,
        "trials_out_of_memory": row.outcomes.get("OUT_OF_MEMORY", 0),
        **{f"{METRIC}{name}": found.mean for name, found in row.metrics.items()},
        **{f"{METRIC}{name}_std": found.deviation for name, found in row.metrics.items()},
    }


def means_together(rows: Collection[Row], axes: Collection[str]) -> dict[str, float | int | None]:
    """Return the means of all cells, which `axes` tell apart, as metrics of one run: QUANTITY/CELL."""
    found: dict[str, float | int | None] = {}
    for row in rows:
        # MLflow allows few signs in a metric's name.
        cell = re.sub(r"[^\w. :/-]", " ", cell_name(row.axes, axes), flags=re.ASCII)[:200]
        for name, value in means_of(row).items():
            shown = name in _TOGETHER or (name.startswith(METRIC) and not name.endswith("_std"))
            if shown and (row.used or name == "trials_out_of_memory"):
                found[f"{name}/{cell}"] = value
    return found


def shared_params(trials: Collection[PlannedTrial]) -> dict[str, str]:
    """Return the params that trials have in common, and their seeds."""
    every = [params_of(trial) for trial in trials]
    shared = {name: value for name, value in every[0].items() if all(one[name] == value for one in every)}
    seeds = dict.fromkeys(str(trial.spec.seed) for trial in trials)
    return {**shared, "seed": ", ".join(seeds)[:500]}


def metrics_of(
    values: Mapping[str, Any], step: int, seconds: float, solved: Collection[str] = (), prefix: str = ""
) -> list[Any]:
    """Return MLflow metrics, of finite numbers alone.

    Args:
        values: By name; None and nan are what there is none of, and what is no number is left out.
        step: Their step.
        seconds: When.
        solved: Names of quantities that there must be: where one is missing, the metric NAME_not_finite says so.
        prefix: Stands before every name.
    """
    from mlflow.entities import Metric

    numbers = {}
    for name, value in values.items():
        if name == "not_finite" and not value:
            continue
        if isinstance(value, (bool, int, float)) and math.isfinite(value):
            numbers[name] = float(value)
        elif (isinstance(value, float) and math.isinf(value)) or ((value is None or value != value) and name in solved):
            numbers[f"{name}_not_finite"] = 1.0
    assert len(numbers) <= MOST_PER_BATCH
    return [Metric(f"{prefix}{name}", value, int(seconds * 1000), step) for name, value in numbers.items()]


def solved_by(trial: PlannedTrial) -> tuple[str, ...]:
    """Return the quantities that every epoch of the trial has."""
    if trial.spec.system is not None:
        return ()
    backward = () if trial.spec.planner.adjoint == "unrolled" else ("backward_residual",)
    return ("train_loss", "forward_residual", *backward)


def seconds_of(record: Mapping[str, Any]) -> float:
    """Return the seconds that an epoch's training took, of a record that may be damaged."""
    taken = float(record["train_seconds"])
    return taken if 0.0 <= taken < _CENTURY else 0.0


def present_version(trial: PlannedTrial) -> str:
    """Return the version of the code, plug-ins included, that a trial runs with now."""
    return version(Provenance(code=code_hash(), plugins={name: code_hash(name) for name in trial.spec.plugins}))
