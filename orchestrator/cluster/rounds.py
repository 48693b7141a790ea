"""A round: trials that are run together, which of them has a process, and what becomes of each."""

from __future__ import annotations

import dataclasses
import math
import time
from bisect import insort
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from orchestrator.cluster.sharing import Sharing
from orchestrator.errors import ClusterError
from orchestrator.storage.code import code_hash, whole_code
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import EXPIRY_SECONDS, Patience, TrialHeld, free
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.provenance import provenance
from orchestrator.storage.results import StorageFull, TrialResult
from orchestrator.storage.runs import asked_to_give_way
from orchestrator.sweep.specs import PlannedTrial, Resources
from orchestrator.trial.cancel import cancel
from orchestrator.trial.failure import STAYS, record_failure, stalled

MOST_DEATHS = 2
"""How often a trial whose process died is taken up again (from its checkpoint) before it is FAILED; each epoch that it
finishes puts the count back to none."""

WAIT_SECONDS = 0.5
"""Least time between two looks at trials that other runs work on."""


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

    def behind(self, users: str) -> None:
        """Note that others have all of the cluster for now."""

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
        sharing: The run's part in sharing the cluster; None for as many trials at once as fit.
        mirror: Where machines that don't see this storage take trials from too.
    """

    resources: Resources
    scratch: Path
    stopping: Stopping | None = None
    retime: bool = False
    sharing: Sharing | None = None
    mirror: Mirror | None = None


def ready_of(
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


class Round:
    """Trials that are run together, and what has become of them.

    Attributes:
        planned: The trials by their ids.
        done: Ids of those that have ended.
        stop: What ends the run before its trials have ended: there is no room in the storage, or a machine runs other
            code or can't use its GPU.

    Args:
        trials: Those that are run, first to last.
        storage: The storage directory.
        watcher: Is told what happens.
        before: Which result, if any, each trial had when the run began.
        terms: On what terms they are run.
        campaign: The run that they are run for.
        expired: Numbers of those leases of the trials that have expired.
        pending: All trials that have not ended; those of them that another run works on join when they are free.
        patience: What is known of others' leases.
    """

    def __init__(
        self,
        trials: list[PlannedTrial],
        storage: Storage,
        watcher: Watcher,
        before: Mapping[str, tuple[int, int] | None],
        terms: Terms,
        campaign: str,
        expired: Mapping[str, int] = MappingProxyType({}),
        pending: Mapping[str, PlannedTrial] = MappingProxyType({}),
        patience: Patience | None = None,
    ) -> None:
        self.planned = {trial.trial_id: trial for trial in trials}
        self.storage, self.watcher, self.before = storage, watcher, before
        self.terms, self.campaign, self._expired = terms, campaign, dict(expired)
        self.done: set[str] = set()
        self.stop: StorageFull | ClusterError | None = None
        self._epochs: dict[str, int] = {}
        self._left: set[str] = set()
        self._gave_way: set[str] = set()
        self._order = {trial_id: place for place, trial_id in enumerate({**pending, **self.planned})}
        self._waiting = deque(self.planned)
        self._given: dict[str, None] = {}
        self._started: set[str] = set()
        self._elsewhere = {name: planned for name, planned in pending.items() if name not in self.planned}
        self._patience = patience or Patience()
        self._look_again = time.monotonic() + EXPIRY_SECONDS

    @property
    def over(self) -> bool:
        """Whether no trial has a process, and none will have one before others give this run a part again."""
        return not self._given and (not self._waiting or self._share() < 1)

    @property
    def has_its_part(self) -> bool:
        """Whether a process that is free now is somebody else's."""
        return len(self._given) >= self._share()

    @property
    def unfinished(self) -> list[PlannedTrial]:
        """The trials that have a process or wait for one."""
        return [self.planned[trial_id] for trial_id in (*self._given, *self._waiting)]

    def config(self, trial_id: str) -> dict[str, Any]:
        """Return what `train` needs to know of a trial."""
        return {"trial_id": trial_id, "instead_of": self._expired.get(trial_id, 0)}

    def wait_for_a_part(self) -> None:
        """Return once this run may work on a trial."""
        told = False
        while self._share() < 1:
            if not told and self.terms.sharing is not None:
                self.watcher.behind(self.terms.sharing.others())
                told = True
            self.watcher.tick()
            time.sleep(WAIT_SECONDS)

    def next(self) -> str | None:
        """Return a trial that is to be given to a process; None where none waits, or this run has its part."""
        mirror = self.terms.mirror
        while self._waiting and len(self._given) < self._share():
            trial_id = self._waiting.popleft()
            if mirror is None or mirror.take(trial_id):
                self._given[trial_id] = None
                return trial_id
            self._elsewhere[trial_id] = self.planned[trial_id]
        return None

    def tick(self) -> None:
        """Do what is due from time to time."""
        self.watcher.tick()
        if self._elsewhere and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + EXPIRY_SECONDS
            with suppress(OSError):  # the storage is away for a moment: they are looked at again
                self._look_elsewhere()
        self._share()

    def _look_elsewhere(self) -> None:
        """Let those trials wait for a process that another run has given back without a result, or died over."""
        open_ones = {
            trial_id: planned
            for trial_id, planned in self._elsewhere.items()
            if self.storage.trial(trial_id).result_version() == self.before[trial_id]
        }
        ready, expired = ready_of(open_ones, self.storage, self._patience)
        mirror = self.terms.mirror
        for planned in ready:
            trial_id = planned.trial_id
            if mirror is not None and not mirror.free(trial_id):
                continue
            self.storage.trial(trial_id).write_spec(planned.spec)
            self.planned[trial_id] = planned
            self._expired[trial_id] = expired.get(trial_id, 0)
            self._left.discard(trial_id)
            del self._elsewhere[trial_id]
            self._wait(trial_id)

    def _wait(self, trial_id: str) -> None:
        insort(self._waiting, trial_id, key=self._order.__getitem__)

    def _share(self) -> float:
        """Return how many trials may have a process; of those that are too many, the latest are asked to give way."""
        sharing = self.terms.sharing
        if sharing is None:
            return math.inf
        given, started = len(self._given), len(self._started)
        allowed = sharing.allowed(started, given - started + len(self._waiting))
        if allowed < given:
            # Those that still wait for a process have nothing to give back, and go first.
            sharing.ask(sorted(self._given, key=lambda trial_id: trial_id not in self._started)[int(allowed) :])
        else:
            sharing.ask([])
        return allowed

    def started(self, trial_id: str) -> None:
        """Note that a process is about to work on the trial, or to find that another run has done so meanwhile."""
        self._started.add(trial_id)
        sharing = self.terms.sharing
        if sharing is not None and asked_to_give_way(sharing.mark, trial_id):
            return
        trial = self.storage.trial(trial_id)
        held = trial.latest_lease()
        elsewhere = not free(held, self.campaign) and held is not None and held.number != self._expired.get(trial_id)
        if not elsewhere and trial.result_version() == self.before[trial_id]:
            self.watcher.started(self.planned[trial_id])

    def said(self, trial_id: str, report: Mapping[str, Any]) -> bool:
        """Note what a trial reports, an epoch or why it does not go on, and return whether it got further by that."""
        epoch = report.get("epoch")
        if "full" in report:
            self.stop = StorageFull(report["full"])
        if "other_code" in report:
            self.stop = ClusterError(
                f"a process has other code of idp than this one ({whole_code()}): "
                f"{report['other_code']}; "
                "have one version everywhere, then run the same command again"
            )
        if "no_gpu" in report:
            self.stop = ClusterError(
                f"{report['no_gpu']}; mend that machine or take it out of the cluster (or ask for no GPU: "
                "resources.gpus: 0), then run the same command again"
            )
        if "left" in report:
            self._left.add(trial_id)
        if "gave_way" in report:
            self._gave_way.add(trial_id)
        # Tune repeats the last report when a trial ends, and a trial that died may report an epoch again.
        if epoch is None or epoch <= self._epochs.get(trial_id, -1):
            return False
        self._epochs[trial_id] = epoch
        planned = self.planned[trial_id]
        self.watcher.epoch(planned, report)
        if self.terms.sharing is not None:
            self.terms.sharing.moved(epochs=1)
        unfinished = epoch < planned.spec.training.epochs
        stopping = self.terms.stopping
        if stopping is not None and stopping.stops(planned, report) and unfinished:
            cancel(self.storage.trial(trial_id), stopping.reason)
        return True

    def died(self, trial_id: str, deaths: int) -> None:
        """Note that the trial's process died and that another takes it up."""
        self._started.discard(trial_id)
        self.watcher.died(self.planned[trial_id], deaths, stalled(self.storage.trial(trial_id)))

    def gave_up(self, trial_id: str, last_words: str) -> None:
        """Write the result that a process could not write which died once too often."""
        why = stalled(self.storage.trial(trial_id))
        self.ended(trial_id, f"its process died {MOST_DEATHS + 1} times in a row: {why or last_words}")

    def ended(self, trial_id: str, otherwise: str) -> None:
        """Note that nobody works on the trial any more.

        Args:
            trial_id: The trial.
            otherwise: Why it has failed, if it has left no result.
        """
        if self.stop is not None:
            return
        planned = self.planned[trial_id]
        self._given.pop(trial_id, None)
        self._started.discard(trial_id)
        if trial_id in self._gave_way:
            self._gave_way.remove(trial_id)
            self._wait(trial_id)
            self.watcher.left(planned)
            return
        if self.terms.mirror is not None:
            self.terms.mirror.ended(trial_id)
        try:
            result = None if trial_id in self._left else self._result(trial_id, otherwise)
        except TrialHeld:
            result = None
        if result is None:
            self._elsewhere[trial_id] = planned
            self.watcher.left(planned)
            return
        self.done.add(trial_id)
        if self.terms.sharing is not None:
            failed = result.status == "FAILED"
            self.terms.sharing.moved(done=not failed, failed=failed)
        self.watcher.finished(planned, result)

    def _result(self, trial_id: str, reason: str) -> TrialResult:
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
        return record_failure(trial, TrialDied(reason), self.campaign)
