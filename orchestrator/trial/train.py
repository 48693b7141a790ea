"""One trial, from its spec to its directory; needs no Ray and no MLflow."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from datagen.storage import dataset as parquet
from datagen.storage.staging import staged
from datagen.storage.stream import ProblemStream
from datagen.tasks.registry import TASKS, DatasetSpec, Split, dataset_id
from orchestrator.storage.code import code_hash, parts_of
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LeaseLost, Owner
from orchestrator.storage.provenance import provenance
from orchestrator.storage.results import ResultError, TrialResult, no_room
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec, trial_id
from orchestrator.trial.attempt import DOES_NOT_FIT, Attempt, Report
from orchestrator.trial.attempt import TrialOptions as TrialOptions
from orchestrator.trial.cancel import Cancelled, GaveWay
from orchestrator.trial.device import device_of, limit_bytes, limit_device, no_graphs, peak_bytes, use_processor
from orchestrator.trial.divergence import WatchedTrainer, keep_divergence
from orchestrator.trial.failure import STAYS, memory_phase, numbers
from orchestrator.trial.system import system_numbers
from orchestrator.trial.telling import telling
from orchestrator.trial.trained import Convergence, convergence, residual_floor
from orchestrator.trial.watchdog import Watchdog, watched
from orchestrator.words import first_line
from planners.compiled.conv_gru.buffers import release_pages
from planners.planner import ieee_float32
from planners.training.evaluation import ProblemSource
from planners.training.memory import MemoryLimitExceeded, phase
from planners.training.rollout import Evaluation
from planners.training.trainer import EpochRecord, Trainer

IN_MEMORY_BYTES = 2**31
"""A split of up to this size is read into memory once; a larger one is streamed, in bounded memory."""

TRACED_PROBLEMS = 32
"""Test problems whose residuals are recorded step by step."""


def run_trial(
    spec: TrialSpec,
    storage: Storage,
    report: Report | None = None,
    options: TrialOptions | None = None,
) -> TrialResult:
    """Train and test one planner, or one system, and leave everything in its trial directory.

    A trial that is done is left as it is. One that was interrupted goes on after its last completed epoch and ends with
    the same numbers. Running out of memory is an outcome; any other exception ends the trial as FAILED, with its
    traceback in the result.

    Args:
        spec: The trial.
        storage: The storage directory; the trial's dataset must be in it, complete.
        report: Called after each epoch.
        options: How this process goes about it; None for the defaults.

    Returns:
        The result, which is also in `result.json`.

    Raises:
        TrialHeld: Another process works on the trial.
        GaveWay: The run of the sweep has asked for it; the trial goes on after its last epoch another time.
        LeaseLost: Another process took it over meanwhile; what this one made since then is discarded.
        StorageFull: There is no room; running the trial again goes on from its last checkpoint.
    """
    trial, options = storage.trial(trial_id(spec)), options or TrialOptions()
    try:
        lease = trial.take(Owner.here(options.campaign), options.instead_of)
        try:
            with lease.beating():
                done = _settled(trial, options.retime)
                return done or _run(Attempt(spec, storage, lease, report, options))
        finally:
            lease.release()
    except LeaseLost:
        with suppress(OSError, ResultError):  # the whole directory may have been taken away
            trial.note("another process has taken over; what this one has made since is discarded")
        raise
    except OSError as error:
        raise no_room(error, trial.path) or error from None


def _settled(trial: TrialDirectory, retime: bool) -> TrialResult | None:
    """Return the result that leaves nothing to do, found only once the trial is ours."""
    try:
        result = trial.read_result()
    except ResultError as error:
        trial.note(f"the result is damaged and made again: {error}")
        return None
    if result is None:
        return None
    if result.status == "CANCELLED" and trial.is_cancelled():
        return result
    return result if result.stands(code_hash(), retime) else None


def _run(attempt: Attempt) -> TrialResult:
    spec, trial, lease = attempt.spec, attempt.trial, attempt.lease
    trial.write_spec(spec)
    device = device_of(spec)
    ieee_float32()
    reason = no_graphs(spec, device)
    identity: dict[str, Any] = {
        "trial_id": trial_id(spec),
        "provenance": provenance(
            dataset_id(spec.data),
            device,
            spec.plugins,
            attempt.options.exclusive,
            parts_of(spec.data, None if spec.system else spec.planner, spec.plugins),
            graphs=not reason,
        ),
    }
    try:
        graphs = f"; no graphs: {reason}" if device != "cpu" and reason else ""
        trial.note(f"started on {identity['provenance'].host}, {device}, lease {lease.number}{graphs}")
        with (
            watched(trial, attempt.options.stall_seconds, alone=not attempt.options.campaign) as watchdog,
            dataset_folder(spec.data, attempt.storage) as datasets,
        ):
            state = attempt.kept()
            alone = attempt.alone(state)
            identity["provenance"] = identity["provenance"].model_copy(update={"exclusive": alone})
            if spec.system is None:
                found = _planner_numbers(attempt, state, datasets, device, watchdog)
            else:
                found = system_numbers(attempt, state, parquet.directory_of(spec.data, datasets), device, watchdog)
        result = TrialResult(status="COMPLETED", **identity, **found)
    except (MemoryLimitExceeded, torch.OutOfMemoryError) as error:
        result = _out_of_memory(error, device, spec.execution.memory_limit_gib, identity)
    except Cancelled as stopped:
        result = TrialResult(status="CANCELLED", reason=str(stopped), **identity)
    except (LeaseLost, GaveWay):
        raise
    except Exception as error:
        if full := no_room(error, trial.path):
            raise full from error
        reason = first_line(f"{type(error).__name__}: {error}")
        result = TrialResult(status="FAILED", reason=reason, traceback=traceback.format_exc(), **identity)
    kept = trial.publish(lease, result)
    if kept is not result:  # a stale one, which this was to replace
        result = result.model_copy(update={"reason": f"{result.reason}; {STAYS}"})
    # The log may itself be what failed; the result says it all.
    with suppress(OSError, ResultError):
        trial.note(f"{result.status} {result.reason}".strip())
        if kept.final and not result.final:
            trial.note(result.traceback)
    return result


def _out_of_memory(
    error: MemoryLimitExceeded | torch.OutOfMemoryError, device: str, limit_gib: float | None, identity: dict[str, Any]
) -> TrialResult:
    """Return the outcome OUT_OF_MEMORY, or where a device without a limit was too small, a failure to be retried."""
    phase = memory_phase(error)
    where = f"in the {phase} pass" if phase in ("forward", "backward") else f"in {phase}"
    if device == "cuda" and limit_gib is None:
        reason = (
            f"PlacementError: out of the device's memory {where}, and the trial has no limit of its own: run it on a "
            "larger device (resources.min_memory_gib), or give it the limit at which it counts as out of memory "
            f"(execution.memory_limit_gib): {' '.join(str(error).split())}"
        )
        return TrialResult(status="FAILED", reason=reason, traceback=traceback.format_exc(), **identity)
    return TrialResult(
        status="OUT_OF_MEMORY",
        reason=f"{where}: {error}",
        out_of_memory_phase=phase,
        peak_bytes=error.peak_bytes if isinstance(error, MemoryLimitExceeded) else peak_bytes(device),
        **identity,
    )


def _planner_numbers(
    attempt: Attempt, state: dict[str, Any] | None, datasets: Path, device: str, watchdog: Watchdog
) -> dict[str, Any]:
    """Train and test the trial's planner, and return the numbers of its result."""
    spec, alone = attempt.spec, attempt.alone(state)
    with telling(attempt.trial, spec) as teller:
        trainer = _trainer(spec, datasets, attempt.trial, device)
        trainer.advance = teller.after(watchdog.advance, trainer)
        records = [] if state is None else _resume(trainer, attempt, state)
        evaluation, traces, floor = _train_and_test(trainer, records, attempt, datasets, alone)
    return numbers(records, evaluation) | {
        "steps": trainer.spent.steps,
        "ended_by_budget": trainer.spent.exhausts(spec.training),
        "forward_trace": traces.forward,
        "backward_trace": traces.backward,
        "residual_floor": floor,
    }


def _trainer(spec: TrialSpec, datasets: Path, trial: TrialDirectory, device: str) -> WatchedTrainer:
    use_processor(spec.execution.threads)
    release_pages()  # of an earlier trial of this process
    limit_gib = spec.execution.memory_limit_gib
    limit_device(device, limit_gib)
    trainer = WatchedTrainer(
        spec.planner,
        spec.training,
        open_split(spec.data, datasets, "train"),
        open_split(spec.data, datasets, "valid"),
        moves=TASKS[spec.data.task].moves,
        seed=spec.seed,
        device=device,
        kernel=spec.execution.kernel,
        memory_limit_bytes=limit_bytes(device, limit_gib),
        graphs=not no_graphs(spec, device),
    )
    trainer.keep = lambda content: keep_divergence(trial, content)
    return trainer


def _train_and_test(
    trainer: WatchedTrainer,
    records: list[EpochRecord],
    attempt: Attempt,
    datasets: Path,
    alone: bool,
) -> tuple[Evaluation, Convergence, float | None]:
    """Train from where the trainer stands, adding an epoch to the records at a time, and test."""
    spec, trial = attempt.spec, attempt.trial
    attempt.check(trainer.epoch, trainer.finished)
    if records:
        trial.write_curves(attempt.lease, records)
    while not trainer.finished:
        record = trainer.run_epoch()
        records.append(record)
        trial.write_curves(attempt.lease, records)
        _save(trainer, records, attempt, alone)
        trial.note(
            f"epoch {record.epoch}: loss {record.train_loss:.4f}, success {record.valid_success_rate:.4f}, "
            f"residual {record.forward_residual:.2e}, {record.train_seconds:.1f} s",
        )
        if attempt.report is not None:
            attempt.report(asdict(record))
        if not trainer.finished:
            attempt.check(trainer.epoch)
    if not records:
        _save(trainer, records, attempt, alone)
    trainer.forget_graphs()
    test = open_split(spec.data, datasets, "test")
    traced = next(test.in_order(TRACED_PROBLEMS))
    with phase("test"):
        floor = residual_floor(trainer.planner, traced, spec.training.precision, trainer.moves)
        return trainer.test(test), convergence(trainer.planner, traced, trainer.moves), floor


@contextmanager
def dataset_folder(spec: DatasetSpec, storage: Storage) -> Iterator[Path]:
    """Yield the folder that holds the dataset: the storage's, or the node's own copy where IDP_CACHE names a place.

    IDP_CACHE_GIB limits what the node's copies may take together (50 by default).
    """
    cache = os.environ.get("IDP_CACHE")
    if not cache:
        yield storage.datasets
        return
    limit_bytes = int(float(os.environ.get("IDP_CACHE_GIB", "50")) * 2**30)
    with staged(storage.dataset(spec), Path(cache), limit_bytes) as local:
        yield local.parent


def open_split(spec: DatasetSpec, datasets: Path, split: Split) -> ProblemSource:
    """Return a split in memory, or as a stream where it would take too much."""
    dataset = parquet.directory_of(spec, datasets)
    if parquet.bytes_per_problem(spec) * spec.count(split) <= IN_MEMORY_BYTES:
        return parquet.read_split(dataset, split)
    return ProblemStream(dataset, split)


def _save(trainer: Trainer, records: list[EpochRecord], attempt: Attempt, alone: bool) -> None:
    if not all(bool(torch.isfinite(weights).all()) for weights in trainer.planner.parameters()):
        attempt.trial.note("weights are not finite: the checkpoint of the epoch before is kept")
        return
    attempt.keep([asdict(record) for record in records], alone, {"trainer": trainer.state_dict()})


def _resume(trainer: Trainer, attempt: Attempt, state: dict[str, Any]) -> list[EpochRecord]:
    """Load the trial's checkpoint into the trainer; return the epochs it holds."""
    try:
        records = [EpochRecord(**record) for record in state["records"]]
        trainer.load_state_dict(state["trainer"])
        for name, value in asdict(trainer.spent).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"spent {name}: expected a number from 0, got {value!r:.40}")
    except DOES_NOT_FIT as error:
        raise attempt.does_not_fit(error) from error
    attempt.trial.note(f"goes on after epoch {trainer.epoch}")
    return records
