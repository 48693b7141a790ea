"""One trial, from its spec to its directory; needs no Ray and no MLflow."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from datagen.storage import dataset as parquet
from datagen.storage.staging import staged
from datagen.storage.stream import ProblemStream
from datagen.tasks.registry import TASKS, DatasetSpec, Split, dataset_id
from orchestrator.storage.checkpoints import code_of, is_of, load_checkpoint, save_checkpoint
from orchestrator.storage.code import code_hash, parts_of
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, LeaseLost, Owner
from orchestrator.storage.provenance import provenance
from orchestrator.storage.results import ResultError, TrialResult, no_room
from orchestrator.storage.runs import asked_to_give_way
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec, trial_id
from orchestrator.trial.cancel import Cancelled, GaveWay
from orchestrator.trial.device import device_of, limit_device, peak_bytes
from orchestrator.trial.divergence import WatchedTrainer, keep_divergence
from orchestrator.trial.failure import STAYS, memory_phase, numbers
from orchestrator.trial.trained import Convergence, convergence, residual_floor
from orchestrator.trial.watchdog import STALL_SECONDS, watched
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

Report = Callable[[EpochRecord], None]


@dataclass(frozen=True)
class TrialOptions:
    """How a process goes about a trial.

    Attributes:
        campaign: The run of a sweep that it works for; takes over from its own dead processes at once. Empty for none.
        instead_of: Number of a lease whose owner has given no sign of life for long enough.
        exclusive: Whether the trial has its device to itself; the result says so if that was so from the first epoch.
        retime: Train again what was trained on a shared device.
        stall_seconds: Time without a training step or a tested batch after which the process ends itself; None to
            wait for ever.
        run: The folder in which the run of the sweep asks trials to give way; None for none.
    """

    campaign: str = ""
    instead_of: int = 0
    exclusive: bool = False
    retime: bool = False
    stall_seconds: float | None = STALL_SECONDS
    run: Path | None = None


@dataclass(frozen=True)
class Attempt:
    """What one process does about one trial, under its lease; the other fields are `run_trial`'s arguments."""

    spec: TrialSpec
    storage: Storage
    lease: Lease
    report: Report | None
    options: TrialOptions

    @property
    def trial(self) -> TrialDirectory:
        """The trial directory."""
        return TrialDirectory(self.lease.directory)


def run_trial(
    spec: TrialSpec,
    storage: Storage,
    report: Report | None = None,
    options: TrialOptions = TrialOptions(),
) -> TrialResult:
    """Train and test one planner and leave everything in its trial directory.

    A trial that is done is left as it is. One that was interrupted goes on after its last completed epoch and ends with
    the same numbers. Running out of memory is an outcome; any other exception ends the trial as FAILED, with its
    traceback in the result.

    Args:
        spec: The trial.
        storage: The storage directory; the trial's dataset must be in it, complete.
        report: Called after each epoch.
        options: How this process goes about it.

    Returns:
        The result, which is also in `result.json`.

    Raises:
        TrialHeld: Another process works on the trial.
        GaveWay: The run of the sweep has asked for it; the trial goes on after its last epoch another time.
        LeaseLost: Another process took it over meanwhile; what this one made since then is discarded.
        StorageFull: There is no room; running the trial again goes on from its last checkpoint.
    """
    trial = storage.trial(trial_id(spec))
    try:
        lease = trial.take(Owner.here(options.campaign), options.instead_of)
        try:
            with lease.beating():
                done = _settled(trial, options.retime)
                return done or _run(Attempt(spec, storage, lease, report, options))
        finally:
            lease.release()
    except LeaseLost:
        with suppress(OSError):  # the whole directory may have been taken away
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
    identity: dict[str, Any] = {
        "trial_id": trial_id(spec),
        "provenance": provenance(
            dataset_id(spec.data),
            device,
            spec.plugins,
            attempt.options.exclusive,
            parts_of(spec.data, spec.planner, spec.plugins),
        ),
    }
    try:
        trial.note(f"started on {identity['provenance'].host}, {device}, lease {lease.number}")
        with (
            watched(trial, attempt.options.stall_seconds, alone=not attempt.options.campaign) as watchdog,
            dataset_folder(spec.data, attempt.storage) as datasets,
        ):
            trainer = _trainer(spec, datasets, trial, device)
            trainer.advance = watchdog.advance
            records, alone = _resume(trainer, attempt)
            identity["provenance"] = identity["provenance"].model_copy(update={"exclusive": alone})
            evaluation, traces, floor = _train_and_test(trainer, records, attempt, datasets, alone)
        found = numbers(records, evaluation) | {
            "steps": trainer.spent.steps,
            "ended_by_budget": trainer.spent.exhausts(spec.training),
            "forward_trace": traces.forward,
            "backward_trace": traces.backward,
            "residual_floor": floor,
        }
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
    with suppress(OSError):
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


def _trainer(spec: TrialSpec, datasets: Path, trial: TrialDirectory, device: str) -> WatchedTrainer:
    torch.set_num_threads(spec.execution.threads)
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
        memory_limit_bytes=None if limit_gib is None else int(limit_gib * 2**30),
        graphs=spec.execution.graphs and device == "cuda",
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
    if trial.is_cancelled() or not trainer.finished:
        _leave_where_asked(trainer, attempt)
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
            attempt.report(record)
        if not trainer.finished:
            _leave_where_asked(trainer, attempt)
    if not records:
        _save(trainer, records, attempt, alone)
    test = open_split(spec.data, datasets, "test")
    traced = next(test.in_order(TRACED_PROBLEMS))
    with phase("test"):
        floor = residual_floor(trainer.planner, traced, spec.training.precision, trainer.moves)
        return trainer.test(test), convergence(trainer.planner, traced, trainer.moves), floor


def _leave_where_asked(trainer: WatchedTrainer, attempt: Attempt) -> None:
    """Leave between two epochs, for good where the trial is cancelled, or until the run has room for it again."""
    trial, run = attempt.trial, attempt.options.run
    there = f"after epoch {trainer.epoch} of {attempt.spec.training.epochs}"
    if trial.is_cancelled():
        raise Cancelled(f"{trial.why_cancelled()} {there}")
    if run is not None and asked_to_give_way(run, trial.name):
        trial.note(f"gives way to another sweep {there}")
        raise GaveWay(there)


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
    state = {
        "code": code_of(attempt.spec),
        "spec": attempt.spec.model_dump(mode="json"),  # so that a checkpoint tells whose it is
        "exclusive": alone,
        "records": [asdict(record) for record in records],
        "trainer": trainer.state_dict(),
    }
    save_checkpoint(attempt.trial, state)


def _resume(trainer: Trainer, attempt: Attempt) -> tuple[list[EpochRecord], bool]:
    """Load the trial's checkpoint into the trainer; return the epochs it holds and whether all are timed alone.

    None of other code's epochs are taken, nor of another trial's, nor, where they are to be timed again, of those on a
    shared device.
    """
    trial = attempt.trial
    state, wrong = load_checkpoint(trial)
    for reason in wrong:
        trial.note(f"{reason}; " + ("the one before is taken" if state else "training starts again"))
    if state is not None and state.get("code") != code_of(attempt.spec):
        trial.note("the checkpoint was made by other code: training starts again")
        state = None
    if state is not None and not is_of(state, attempt.spec):
        trial.note("the checkpoint is another trial's: training starts again")
        state = None
    if state is not None and attempt.options.retime and not state.get("exclusive", False):
        trial.note("the checkpoint's epochs were timed on a shared device: training starts again")
        state = None
    if state is None:
        trial.divergence.unlink(missing_ok=True)
        return [], attempt.options.exclusive
    try:
        records = [EpochRecord(**record) for record in state["records"]]
        trainer.load_state_dict(state["trainer"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ResultError(
            f"{trial.checkpoint}: does not fit this trial ({reason}); delete it to train again"
        ) from error
    trial.note(f"goes on after epoch {trainer.epoch}")
    return records, attempt.options.exclusive and bool(state.get("exclusive", False))
