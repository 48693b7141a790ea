"""One trial, from its spec to its directory; needs no Ray and no MLflow."""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from datagen import parquet
from datagen.stream import ProblemStream
from datagen.task import TASKS, DatasetSpec, Split, dataset_id
from orchestrator.provenance import code_hash, provenance
from orchestrator.results import TrialResult, trial_directory, write_bytes, write_curves, write_result, write_spec
from orchestrator.specs import TrialSpec, trial_id
from orchestrator.trained import Convergence, convergence
from planners.memory import MemoryLimitExceeded
from planners.rollout import Evaluation
from planners.training import EpochRecord, ProblemSource, Trainer

DIVERGED_BELOW = 0.2
"""A trial whose test success rate is lower counts as diverged (Table 1's italics)."""

IN_MEMORY_BYTES = 2**31
"""A split of up to this size is read into memory once; a larger one is streamed, in bounded memory."""

TRACED_PROBLEMS = 32
"""Test problems whose residuals are recorded step by step."""

Report = Callable[[EpochRecord], None]


def run_trial(spec: TrialSpec, storage: Path, report: Report | None = None) -> TrialResult:
    """Train and test one planner and leave everything in its trial directory.

    A trial that was interrupted goes on after its last completed epoch and ends with the same numbers. Running out of
    memory is an outcome; any other exception ends the trial as FAILED, with its traceback in the result.

    Args:
        spec: The trial.
        storage: The storage directory; the trial's dataset must be in it, complete.
        report: Called after each epoch.

    Returns:
        The result, which is also in `result.json`.
    """
    directory = trial_directory(storage, trial_id(spec))
    write_spec(directory, spec)
    device = _device(spec)
    identity: dict[str, Any] = {
        "trial_id": trial_id(spec),
        "provenance": provenance(dataset_id(spec.data), device, spec.plugins),
    }
    _log(directory, f"started on {identity['provenance'].host}, {device}")
    try:
        records, evaluation, traces = _train_and_test(spec, storage, directory, device, report)
        numbers = _numbers(records, evaluation) | {
            "forward_trace": traces.forward,
            "backward_trace": traces.backward,
        }
        result = TrialResult(status="COMPLETED", **identity, **numbers)
    except (MemoryLimitExceeded, torch.OutOfMemoryError, MemoryError) as error:
        peak_bytes = error.peak_bytes if isinstance(error, MemoryLimitExceeded) else _cuda_peak_bytes(device)
        result = TrialResult(status="OUT_OF_MEMORY", reason=str(error), peak_bytes=peak_bytes, **identity)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        result = TrialResult(status="FAILED", reason=reason, traceback=traceback.format_exc(), **identity)
    _log(directory, f"{result.status} {result.reason}".strip())
    write_result(directory, result)
    return result


def _train_and_test(
    spec: TrialSpec, storage: Path, directory: Path, device: str, report: Report | None
) -> tuple[list[EpochRecord], Evaluation, Convergence]:
    torch.set_num_threads(spec.execution.threads)
    dataset = parquet.directory_of(spec.data, storage / "datasets")
    limit_gib = spec.execution.memory_limit_gib
    trainer = Trainer(
        spec.planner,
        spec.training,
        _open(spec.data, dataset, "train"),
        _open(spec.data, dataset, "valid"),
        moves=TASKS[spec.data.task].moves,
        seed=spec.seed,
        device=device,
        kernel=spec.execution.kernel,
        memory_limit_bytes=None if limit_gib is None else int(limit_gib * 2**30),
    )
    code = _code(spec)
    records = _resume(trainer, directory, code)
    while not trainer.finished:
        record = trainer.run_epoch()
        records.append(record)
        write_curves(directory, records)
        _save(trainer, records, directory, code)
        _log(
            directory,
            f"epoch {record.epoch}: loss {record.train_loss:.4f}, success {record.valid_success_rate:.4f}, "
            f"residual {record.forward_residual:.2e}, {record.train_seconds:.1f} s",
        )
        if report is not None:
            report(record)
    if not records:
        _save(trainer, records, directory, code)
    test = _open(spec.data, dataset, "test")
    traced = next(test.in_order(TRACED_PROBLEMS))
    return records, trainer.test(test), convergence(trainer.planner, traced)


def _open(spec: DatasetSpec, dataset: Path, split: Split) -> ProblemSource:
    """Return a split in memory, or as a stream where it would take too much."""
    if parquet.bytes_per_problem(spec) * spec.count(split) <= IN_MEMORY_BYTES:
        return parquet.read_split(dataset, split)
    return ProblemStream(dataset, split)


def _device(spec: TrialSpec) -> str:
    if spec.execution.device != "auto":
        return spec.execution.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _cuda_peak_bytes(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def _code(spec: TrialSpec) -> str:
    """Return what tells one version of the code behind a trial from another: the project's hash, and its plug-ins'."""
    return " ".join([code_hash(), *map(code_hash, spec.plugins)])


def _save(trainer: Trainer, records: list[EpochRecord], directory: Path, code: str) -> None:
    state = {"code": code, "records": [asdict(record) for record in records], "trainer": trainer.state_dict()}
    content = BytesIO()
    torch.save(state, content)
    write_bytes(directory / "checkpoint.pt", content.getvalue())


def _resume(trainer: Trainer, directory: Path, code: str) -> list[EpochRecord]:
    """Load the trial's checkpoint into the trainer and return the epochs it holds; none of other code's epochs."""
    path = directory / "checkpoint.pt"
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True)
    if state["code"] != code:
        _log(directory, "the checkpoint was made by other code: training starts again")
        return []
    trainer.load_state_dict(state["trainer"])
    _log(directory, f"goes on after epoch {trainer.epoch}")
    return [EpochRecord(**record) for record in state["records"]]


def _numbers(records: list[EpochRecord], evaluation: Evaluation) -> dict[str, Any]:
    """Return the result's numbers: the last epoch's, the times' medians over epochs, and the test's."""
    last = {} if not records else {f.name: getattr(records[-1], f.name) for f in fields(EpochRecord)}
    kept = (
        "valid_success_rate",
        "train_loss",
        "forward_steps",
        "forward_residual",
        "backward_residual",
        "not_finite",
        "kernel",
    )
    return {
        **{name: last[name] for name in kept if name in last},
        "epochs": len(records),
        "test_success_rate": evaluation.success_rate,
        "test_optimality": evaluation.optimality,
        "test_spl": evaluation.spl,
        "test_accuracy": evaluation.accuracy,
        "test_cells_by_distance": list(evaluation.cells_by_distance),
        "test_arrivals_by_distance": list(evaluation.arrivals_by_distance),
        "trial_diverged": evaluation.success_rate < DIVERGED_BELOW,
        "forward_diverged": any(record.forward_diverged for record in records),
        "forward_seconds": _median(records, "forward_seconds"),
        "backward_seconds": _median(records, "backward_seconds"),
        "peak_bytes": max((record.peak_bytes for record in records), default=0),
        "train_seconds": sum(record.train_seconds for record in records),
    }


def _median(records: list[EpochRecord], name: str) -> float | None:
    values = [value for record in records if (value := getattr(record, name)) == value]
    return statistics.median(values) if values else None


def _log(directory: Path, line: str) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with (directory / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{now} {line}\n")
