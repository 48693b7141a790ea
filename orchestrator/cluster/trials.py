"""Runs the trials of a sweep that are missing; what schedules them, and in which processes, is another's business."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.cluster.rounds import WAIT_SECONDS, Round, Terms, Watcher, ready_of
from orchestrator.storage.code import whole_code
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LeaseLost, Patience, TrialHeld, give_back, holder
from orchestrator.storage.results import StorageFull
from orchestrator.storage.runs import asked_to_give_way
from orchestrator.sweep.specs import PlannedTrial
from orchestrator.trial.cancel import GaveWay
from orchestrator.trial.device import may_use_gpu, no_gpu
from orchestrator.trial.failure import record_failure

WAIT_SECONDS_PER_TRIAL = 0.02
"""Many runs that wait for many trials would keep a file server busy with looking."""

Fit = Callable[[Round, dict[str, Any]], None]
"""Runs the trials of a round, telling the round of them, with what `train` needs to know beside the trial."""


def run_trials(trials: list[PlannedTrial], storage: Storage, watcher: Watcher, terms: Terms, fit: Fit) -> None:
    """Run each trial and return when all have ended, here or in another run.

    A trial that raises is FAILED with its traceback in its directory; one whose process dies is taken up again from
    its checkpoint, `MOST_DEATHS` times without an epoch between. Neither stops the others. A trial that another run
    works on is left to it, unless that gives it back, or no sign of life any more.

    Args:
        trials: What to run, first to last, all with the same `execution`.
        storage: The storage directory; all nodes must see it.
        watcher: Is told what happens.
        terms: On what terms.
        fit: Runs those that nobody else works on.

    Raises:
        StorageFull: There is no room for results.
        ClusterError: No machine has what a trial needs, or one runs other code than this process.
    """
    storage = storage.resolve()
    pending = {trial.trial_id: trial for trial in trials}
    if not pending:
        return
    before = {trial_id: storage.trial(trial_id).result_version() for trial_id in pending}
    campaign, patience, told = uuid.uuid4().hex, Patience(), False
    constants = {
        "campaign": campaign,
        "retime": terms.retime,
        "code": whole_code(),
        "stall_seconds": terms.resources.stall_seconds,
        "run": None if terms.sharing is None else str(terms.sharing.mark),
    }
    mirror = terms.mirror
    while pending:
        if mirror is not None:
            mirror.fetch(pending)
        for trial_id in list(pending):
            trial = storage.trial(trial_id)
            if trial.result_version() != before[trial_id] and (result := trial.whole_result()) is not None:
                watcher.finished(pending.pop(trial_id), result)
        ready, expired = ready_of(pending, storage, patience)
        if mirror is not None:
            ready = [trial for trial in ready if mirror.free(trial.trial_id)]
        if ready:
            together = Round(ready, storage, watcher, before, terms, campaign, expired, pending, patience)
            try:
                for planned in ready:
                    storage.trial(planned.trial_id).write_spec(planned.spec)
                fit(together, constants)
            except BaseException:
                # A node that is being taken away, above all: others need not wait for the leases to expire.
                for trial_id in together.planned:
                    give_back(storage.trial(trial_id).path, campaign)
                raise
            for trial_id in together.done:
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


def train(config: Mapping[str, Any], say: Callable[[dict[str, Any]], None], exclusive: bool) -> None:
    """Run one trial in this process.

    Args:
        config: The trial (`Round.config`), what Ray lends it, the storage and the constants of its round.
        say: Takes what `Round.said` is to hear.
        exclusive: Whether the trial has its device to itself.
    """
    from orchestrator.trial.train import TrialOptions, run_trial

    storage, campaign = Storage(Path(config["storage"])), config["campaign"]
    trial = storage.trial(config["trial_id"])
    if whole_code() != config["code"]:  # a machine that has joined since the others were asked, or edited files
        say({"other_code": f"{socket.gethostname()} ({whole_code()})"})
        return
    run = config["run"] and Path(config["run"])
    if run is not None and asked_to_give_way(run, trial.name):  # while it waited for a process
        say({"gave_way": True})
        return
    try:
        spec = trial.read_spec()
        if "gpu" in config.get("request", {}) and may_use_gpu(spec) and (why := no_gpu()):
            say({"no_gpu": f"{socket.gethostname()} lends its trials a GPU, but {why}"})
            return
        result = run_trial(
            spec,
            storage,
            report=say,
            options=TrialOptions(
                campaign=campaign,
                instead_of=config["instead_of"],
                exclusive=exclusive,
                retime=config["retime"],
                stall_seconds=config["stall_seconds"],
                run=run,
            ),
        )
    except GaveWay:
        say({"gave_way": True})
    except (TrialHeld, LeaseLost):
        say({"left": True})
    except StorageFull as error:
        say({"full": str(error)})
    except Exception as error:
        record_failure(trial, error, campaign)
        say({"failed": True})
    else:
        if result.status == "FAILED":
            say({"failed": True})
