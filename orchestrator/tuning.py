"""Ray Tune schedules the trials that are missing; what a trial is and leaves behind is not its business."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune

from orchestrator.leases import LeaseLost, Patience, TrialHeld, free, give_back, look
from orchestrator.outcomes import record_failure
from orchestrator.placement import alone, requested_resources
from orchestrator.results import StorageFull, TrialResult, read_result, trial_directory, write_spec
from orchestrator.search_space import SearchSpec
from orchestrator.searching import EarlyStopping
from orchestrator.specs import PlannedTrial, Resources, TrialSpec
from orchestrator.steering import cancel, is_cancelled

MOST_DEATHS = 2
"""How often a trial whose process died is taken up again (from its checkpoint) before it is FAILED."""


WAIT_SECONDS = 0.5
"""Least time between two looks at trials that other runs work on."""

WAIT_SECONDS_PER_TRIAL = 0.02
"""Many runs that wait for many trials would keep a file server busy with looking."""


class Watcher(Protocol):
    """Is told, in the driver, what happens to the trials."""

    def started(self, trial: PlannedTrial) -> None:
        """Note that a process works on the trial."""

    def epoch(self, trial: PlannedTrial, record: Mapping[str, Any]) -> None:
        """Note that the trial finished an epoch; fields of `EpochRecord`."""

    def died(self, trial: PlannedTrial, deaths: int) -> None:
        """Note that the trial's process died and that another goes on."""

    def finished(self, trial: PlannedTrial, result: TrialResult) -> None:
        """Note that the trial ended, well or not."""

    def waiting(self, trials: list[PlannedTrial], holder: str) -> None:
        """Note that other processes work on these trials, so that there is nothing to do but wait for them."""

    def left(self, trial: PlannedTrial) -> None:
        """Note that another process turned out to work on the trial, or that it can't go on for now."""

    def tick(self) -> None:
        """Do what is due from time to time."""


class TrialDied(RuntimeError):
    """A trial's process ended without a word: killed, out of host memory, or its node was lost."""


def run_trials(
    trials: list[PlannedTrial],
    storage: Path,
    resources: Resources,
    watcher: Watcher,
    scratch: Path,
    search: SearchSpec | None = None,
    retime: bool = False,
) -> None:
    """Run each trial in a process of the cluster and return when all have ended, here or in another run.

    A trial that raises is FAILED with its traceback in its directory; one whose process dies is taken up again from
    its checkpoint, `MOST_DEATHS` times. Neither stops the others. A trial that another run works on is left to it,
    unless that gives no sign of life any more.

    Args:
        trials: What to run, first to last, all with the same `execution`; a `ray_cluster` must be open.
        storage: The storage directory; all nodes must see it.
        resources: What one trial asks of the cluster.
        watcher: Is told what happens.
        scratch: A directory of this sweep for Tune's own files, which nothing ever reads; removed at the end.
        search: The search that the trials belong to, which may stop them early.
        retime: Train again those that were trained on a shared device.

    Raises:
        StorageFull: There is no room for results.
    """
    storage = storage.resolve()
    pending = {trial.trial_id: trial for trial in trials}
    if not pending:
        return
    cluster = ray.cluster_resources()
    request = requested_resources(resources, trials[0].spec, cluster)
    before = {trial_id: _result_file(trial_directory(storage, trial_id)) for trial_id in pending}
    campaign, patience, told = uuid.uuid4().hex, Patience(), False
    constants = {"campaign": campaign, "exclusive": alone(request, cluster), "retime": retime}
    while pending:
        ready, expired = _ready(pending, storage, patience)
        if ready:
            relay = Relay(ready, storage, watcher, before, search)
            try:
                _fit(relay, ready, storage, request, scratch, constants | {"expired": expired})
            except BaseException:
                # A node that is being taken away, above all: others need not wait for the leases to expire.
                for trial in ready:
                    give_back(trial_directory(storage, trial.trial_id), campaign)
                raise
            for trial_id in relay.ended:
                del pending[trial_id]
            continue
        for trial_id in list(pending):
            directory = trial_directory(storage, trial_id)
            if _result_file(directory) != before[trial_id] and (result := read_result(directory)) is not None:
                watcher.finished(pending.pop(trial_id), result)
        if pending and not told:
            held = look(trial_directory(storage, next(iter(pending))))
            owner = held.owner if held else None
            watcher.waiting(list(pending.values()), f"process {owner.pid} on {owner.host}" if owner else "another run")
            told = True
        until = time.monotonic() + WAIT_SECONDS_PER_TRIAL * len(pending)
        while True:
            watcher.tick()
            time.sleep(WAIT_SECONDS)
            if time.monotonic() >= until:
                break


def _ready(
    pending: Mapping[str, PlannedTrial], storage: Path, patience: Patience
) -> tuple[list[PlannedTrial], dict[str, int]]:
    """Return the trials that nobody works on, and the numbers of those leases among them that have expired."""
    ready, expired = [], {}
    for trial_id, trial in pending.items():
        held = look(trial_directory(storage, trial_id))
        if free(held):
            ready.append(trial)
        elif held is not None and patience.expired(trial_directory(storage, trial_id), held):
            ready.append(trial)
            expired[trial_id] = held.number
    return ready, expired


def _fit(
    relay: Relay,
    trials: list[PlannedTrial],
    storage: Path,
    request: dict[str, float],
    scratch: Path,
    constants: dict[str, Any],
) -> None:
    for trial in trials:
        write_spec(trial_directory(storage, trial.trial_id), trial.spec)
    tuner = tune.Tuner(
        tune.with_resources(_train, request),
        param_space={
            "trial_id": tune.grid_search([trial.trial_id for trial in trials]),
            "storage": str(storage),
            **constants,
        },
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.resolve()),
            verbose=0,
            callbacks=[relay],
            failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
        ),
    )
    # With half a million objects that stay, Python would look for cyclic garbage too rarely to keep memory flat.
    gc.freeze()
    try:
        tuner.fit()
    except _Stopped:
        assert relay.full is not None
        raise StorageFull(relay.full) from None
    finally:
        gc.unfreeze()
        shutil.rmtree(scratch, ignore_errors=True)


class _Stopped(BaseException):
    """Stops Tune from within a callback; as an Exception it would be taken for an error of the callback."""


def _train(config: dict[str, Any]) -> None:
    """Run one trial in a Tune worker."""
    from orchestrator.trial import run_trial

    storage, trial_id, campaign = Path(config["storage"]), config["trial_id"], config["campaign"]
    directory = trial_directory(storage, trial_id)
    try:
        spec = TrialSpec.model_validate_json((directory / "spec.json").read_bytes())
        run_trial(
            spec,
            storage,
            report=lambda record: tune.report(dataclasses.asdict(record)),
            campaign=campaign,
            instead_of=config["expired"].get(trial_id, 0),
            exclusive=config["exclusive"],
            retime=config["retime"],
        )
    except (TrialHeld, LeaseLost):
        tune.report({"left": True})
    except StorageFull as error:
        tune.report({"full": str(error)})
    except Exception as error:
        record_failure(directory, trial_id, error, campaign)


class Relay(tune.Callback):
    """Passes Tune's events on to a watcher.

    Tune pickles its callbacks, to be able to restore what we never restore: nothing of this one is kept.

    Attributes:
        ended: The trials that have ended.
        full: What to say where there is no room in the storage.
    """

    def __init__(
        self,
        trials: list[PlannedTrial],
        storage: Path,
        watcher: Watcher,
        before: Mapping[str, tuple[int, int] | None],
        search: SearchSpec | None = None,
    ) -> None:
        self.planned = {trial.trial_id: trial for trial in trials}
        self.storage, self.watcher, self.before = storage, watcher, before
        self.epochs: dict[str, int] = {}
        self.ended: set[str] = set()
        self.left: set[str] = set()
        self.full: str | None = None
        self.search = search if search is not None and search.stopping != "none" else None
        self.stopping = EarlyStopping(self.search.stopping) if self.search else None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let the watcher do what is due."""
        if self.full is not None:
            raise _Stopped
        self.watcher.tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process works on the trial."""
        self.watcher.started(self.planned[trial.config["trial_id"]])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on an epoch."""
        trial_id, epoch = trial.config["trial_id"], result.get("epoch")
        self.full = result.get("full", self.full)
        if "left" in result:
            self.left.add(trial_id)
        # Tune repeats the last report when a trial ends, and a trial that died may report an epoch again.
        if epoch is not None and epoch > self.epochs.get(trial_id, -1):
            self.epochs[trial_id] = epoch
            self.watcher.epoch(self.planned[trial_id], result)
            if self.search is not None and self.stopping is not None:
                planned = self.planned[trial_id]
                unfinished = epoch < planned.spec.training.epochs
                if self.stopping.stops(trial_id, epoch, result.get(self.search.metric)) and unfinished:
                    cancel(self.storage, trial_id, f"stopped early ({self.search.stopping})")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process died and another takes its trial up."""
        self.watcher.died(self.planned[trial.config["trial_id"]], trial.num_failures)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on the result that the trial wrote."""
        self._end(trial, "the trial ended without a result")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the result that a dead process could not write, and pass it on."""
        last = str(trial.get_error() or "").strip().splitlines()[-1:]
        self._end(trial, " ".join([f"its process died {MOST_DEATHS + 1} times:", *last]))

    def _end(self, trial: Any, reason: str) -> None:
        trial_id = trial.config["trial_id"]
        # Tune keeps its trials to the end, with their last report and statistics of every number in it.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        trial.run_metadata.last_result.clear()
        if self.full is not None:
            return
        planned, directory = self.planned[trial_id], trial_directory(self.storage, trial_id)
        if trial_id in self.left:
            self.watcher.left(planned)
            return
        # A result that was there before is a failed or stale one, which this run was to replace.
        result = read_result(directory) if _result_file(directory) != self.before[trial_id] else None
        if result is None and is_cancelled(directory):
            result = read_result(directory)
        if result is None:
            try:
                result = record_failure(directory, trial_id, TrialDied(reason), trial.config["campaign"])
            except TrialHeld:
                self.watcher.left(planned)
                return
        self.ended.add(trial_id)
        self.watcher.finished(planned, result)


def _result_file(directory: Path) -> tuple[int, int] | None:
    """Return what tells one writing of a result from another."""
    try:
        found = (directory / "result.json").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
