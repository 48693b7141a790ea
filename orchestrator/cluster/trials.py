"""Ray Tune schedules the trials that are missing; what a trial is and leaves behind is not its business."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from orchestrator.cluster.ray_cluster import ClusterError, machine_here, machines
from orchestrator.cluster.resources import alone, requested_resources
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LeaseLost, Patience, TrialHeld, free, give_back, holder
from orchestrator.storage.provenance import code_hash, provenance
from orchestrator.storage.results import StorageFull, TrialResult
from orchestrator.sweep.specs import PlannedTrial, Resources
from orchestrator.trial.cancel import cancel
from orchestrator.trial.failure import STAYS, record_failure, stalled

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

    def died(self, trial: PlannedTrial, deaths: int, why: str) -> None:
        """Note that the trial's process died, why as far as is known, and that another goes on."""

    def finished(self, trial: PlannedTrial, result: TrialResult) -> None:
        """Note that the trial ended, well or not."""

    def waiting(self, trials: list[PlannedTrial], holder: str) -> None:
        """Note that other processes work on these trials, so that there is nothing to do but wait for them."""

    def left(self, trial: PlannedTrial) -> None:
        """Note that another process turned out to work on the trial, or that it can't go on for now."""

    def tick(self) -> None:
        """Do what is due from time to time."""


class Stopping(Protocol):
    """Says which trials are not worth going on with."""

    reason: str

    def stops(self, trial: PlannedTrial, record: Mapping[str, Any]) -> bool:
        """Note an epoch of a trial and return True where the trial should stop."""


class TrialDied(RuntimeError):
    """A trial's process ended without a word: killed, out of host memory, or its node was lost."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """On what terms trials are run.

    Attributes:
        resources: What one trial asks of the cluster.
        scratch: A directory of this run for Tune's own files, which nothing ever reads; removed at the end.
        stopping: What may stop them early.
        retime: Train again those that were trained on a shared device.
    """

    resources: Resources
    scratch: Path
    stopping: Stopping | None = None
    retime: bool = False


def run_trials(trials: list[PlannedTrial], storage: Storage, watcher: Watcher, terms: Terms) -> None:
    """Run each trial in a process of the cluster and return when all have ended, here or in another run.

    A trial that raises is FAILED with its traceback in its directory; one whose process dies is taken up again from
    its checkpoint, `MOST_DEATHS` times. Neither stops the others. A trial that another run works on is left to it,
    unless that gives no sign of life any more.

    Args:
        trials: What to run, first to last, all with the same `execution`; a `ray_cluster` must be open.
        storage: The storage directory; all nodes must see it.
        watcher: Is told what happens.
        terms: On what terms.

    Raises:
        StorageFull: There is no room for results.
        ClusterError: No machine has what a trial needs, or one runs other code than this process.
    """
    storage = storage.resolve()
    pending = {trial.trial_id: trial for trial in trials}
    if not pending:
        return
    request = requested_resources(terms.resources, trials[0].spec, machines())
    before = {trial_id: storage.trial(trial_id).result_version() for trial_id in pending}
    campaign, patience, told = uuid.uuid4().hex, Patience(), False
    constants = {
        "campaign": campaign,
        "request": request,
        "retime": terms.retime,
        "code": code_hash(),
        "stall_seconds": terms.resources.stall_seconds,
    }
    while pending:
        for trial_id in list(pending):
            trial = storage.trial(trial_id)
            if trial.result_version() != before[trial_id] and (result := trial.whole_result()) is not None:
                watcher.finished(pending.pop(trial_id), result)
        ready, expired = _ready(pending, storage, patience)
        if ready:
            relay = Relay(ready, storage, watcher, before, terms)
            try:
                _fit(relay, request, constants | {"expired": expired})
            except BaseException:
                # A node that is being taken away, above all: others need not wait for the leases to expire.
                for planned in ready:
                    give_back(storage.trial(planned.trial_id).path, campaign)
                raise
            for trial_id in relay.ended:
                del pending[trial_id]
            continue
        if pending and not told:
            held = storage.trial(next(iter(pending))).latest_lease()
            watcher.waiting(list(pending.values()), holder(held) if held and held.owner else "another run")
            told = True
        until = time.monotonic() + WAIT_SECONDS_PER_TRIAL * len(pending)
        while True:
            watcher.tick()
            time.sleep(WAIT_SECONDS)
            if time.monotonic() >= until:
                break


def _ready(
    pending: Mapping[str, PlannedTrial], storage: Storage, patience: Patience
) -> tuple[list[PlannedTrial], dict[str, int]]:
    """Return the trials that nobody works on, and the numbers of those leases among them that have expired."""
    ready, expired = [], {}
    for trial_id, trial in pending.items():
        directory = storage.trial(trial_id)
        held = directory.latest_lease()
        if free(held):
            ready.append(trial)
        elif held is not None and patience.expired(directory.path, held):
            ready.append(trial)
            expired[trial_id] = held.number
    return ready, expired


def _fit(relay: Relay, request: dict[str, float], constants: dict[str, Any]) -> None:
    scratch = relay.terms.scratch
    for trial in relay.planned.values():
        relay.storage.trial(trial.trial_id).write_spec(trial.spec)
    tuner = tune.Tuner(
        tune.with_resources(_train, request),
        param_space={
            "trial_id": tune.grid_search(list(relay.planned)),
            "storage": str(relay.storage),
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
        assert relay.stop is not None
        raise relay.stop from None
    finally:
        gc.unfreeze()
        shutil.rmtree(scratch, ignore_errors=True)


class _Stopped(BaseException):
    """Stops Tune from within a callback; as an Exception it would be taken for an error of the callback."""


def _train(config: dict[str, Any]) -> None:
    """Run one trial in a Tune worker."""
    from orchestrator.trial.train import TrialOptions, run_trial

    storage, campaign = Storage(Path(config["storage"])), config["campaign"]
    trial = storage.trial(config["trial_id"])
    if code_hash() != config["code"]:  # a machine that has joined since the others were asked, or edited files
        tune.report({"other_code": f"{socket.gethostname()} ({code_hash()})"})
        return
    try:
        run_trial(
            trial.read_spec(),
            storage,
            report=lambda record: tune.report(dataclasses.asdict(record)),
            options=TrialOptions(
                campaign=campaign,
                instead_of=config["expired"].get(trial.name, 0),
                exclusive=alone(config["request"], machine_here()),
                retime=config["retime"],
                stall_seconds=config["stall_seconds"],
            ),
        )
    except (TrialHeld, LeaseLost):
        tune.report({"left": True})
    except StorageFull as error:
        tune.report({"full": str(error)})
    except Exception as error:
        record_failure(trial, error, campaign)


class Relay(tune.Callback):
    """Passes Tune's events on to a watcher.

    Tune pickles its callbacks, to be able to restore what we never restore: nothing of this one is kept.

    Attributes:
        ended: The trials that have ended.
        stop: What ends the run before its trials have ended: there is no room in the storage, or a machine runs other
            code.
    """

    def __init__(
        self,
        trials: list[PlannedTrial],
        storage: Storage,
        watcher: Watcher,
        before: Mapping[str, tuple[int, int] | None],
        terms: Terms,
    ) -> None:
        self.planned = {trial.trial_id: trial for trial in trials}
        self.storage, self.watcher, self.before = storage, watcher, before
        self.epochs: dict[str, int] = {}
        self.ended: set[str] = set()
        self.left: set[str] = set()
        self.stop: StorageFull | ClusterError | None = None
        self.terms = terms

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Let the watcher do what is due."""
        if self.stop is not None:
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
        if "full" in result:
            self.stop = StorageFull(result["full"])
        if "other_code" in result:
            self.stop = ClusterError(
                f"a process has other code of datagen or planners than this one ({code_hash()}): "
                f"{result['other_code']}; "
                "have one version everywhere, then run the same command again"
            )
        if "left" in result:
            self.left.add(trial_id)
        # Tune repeats the last report when a trial ends, and a trial that died may report an epoch again.
        if epoch is not None and epoch > self.epochs.get(trial_id, -1):
            self.epochs[trial_id] = epoch
            planned = self.planned[trial_id]
            self.watcher.epoch(planned, result)
            unfinished = epoch < planned.spec.training.epochs
            stopping = self.terms.stopping
            if stopping is not None and stopping.stops(planned, result) and unfinished:
                cancel(self.storage.trial(trial_id), stopping.reason)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process died and another takes its trial up."""
        trial_id = trial.config["trial_id"]
        self.watcher.died(self.planned[trial_id], trial.num_failures, stalled(self.storage.trial(trial_id)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on the result that the trial wrote."""
        self._end(trial, "the trial ended without a result")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the result that a dead process could not write, and pass it on."""
        why = stalled(self.storage.trial(trial.config["trial_id"]))
        self._end(trial, f"its process died {MOST_DEATHS + 1} times: {why or _last_words(trial)}")

    def _end(self, trial: Any, reason: str) -> None:
        trial_id = trial.config["trial_id"]
        # Tune keeps its trials to the end, with their last report and statistics of every number in it.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        trial.run_metadata.last_result.clear()
        if self.stop is not None:
            return
        planned = self.planned[trial_id]
        try:
            result = None if trial_id in self.left else self._result(trial_id, reason, trial.config["campaign"])
        except TrialHeld:
            result = None
        if result is None:
            self.watcher.left(planned)
            return
        self.ended.add(trial_id)
        self.watcher.finished(planned, result)

    def _result(self, trial_id: str, reason: str, campaign: str) -> TrialResult:
        """Return the result that a trial has left, or the failure of one that has left none."""
        trial = self.storage.trial(trial_id)
        found = trial.whole_result()
        if found is not None:
            new = trial.result_version() != self.before[trial_id]
            # A result that stands may be older: another run was faster, and the worker found nothing to do.
            if new or trial.is_cancelled() or found.stands(code_hash(), self.terms.retime):
                return found
            if found.final:
                # A stale result that was to be replaced is still worth more than none: the failure is told, not kept.
                reason = f"TrialDied: {reason}; {STAYS}"
                return TrialResult(trial_id=trial_id, status="FAILED", reason=reason, provenance=provenance())
        return record_failure(trial, TrialDied(reason), campaign)


def _last_words(trial: Any) -> str:
    """Return the last line of what Ray says of a trial's last death."""
    said = trial.get_error()
    if not said:
        # Tune looks in the place that it copies to, and may not have copied yet.
        try:
            said = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            said = ""
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "Ray gives no reason")
