"""Running a sweep: datasets, then trials, with the terminal and MLflow looking on."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator import interruption, tracking
from orchestrator.cluster import DatasetProgress, check_address, evaluate_all, make_datasets, ray_cluster
from orchestrator.evaluation import PlannedEvaluation, keep_test_steps, missing_evaluations, planned_evaluations
from orchestrator.fresh_report import FreshReport, ReportError
from orchestrator.leases import at_work
from orchestrator.planning import Plan
from orchestrator.preflight import check_machines
from orchestrator.progress import Progress, outcome, trial_name
from orchestrator.results import TrialResult
from orchestrator.search_space import read_suggestions
from orchestrator.specs import PlannedTrial, expand
from orchestrator.tracking import Tracker


class Onlookers:
    """Passes what happens to the trials on to the terminal and to MLflow."""

    def __init__(self, progress: Progress, tracker: Tracker, report: FreshReport) -> None:
        self._progress, self._tracker, self._report = progress, tracker, report
        self.failures = 0

    def started(self, trial: PlannedTrial) -> None:
        """Note that a process works on the trial."""
        self._progress.start(trial.trial_id, trial_name(trial), trial.spec.training.epochs)
        self._tracker.note(trial, "started")

    def epoch(self, trial: PlannedTrial, record: Mapping[str, Any]) -> None:
        """Note that the trial finished an epoch."""
        self._progress.epoch(trial.trial_id, trial_name(trial), trial.spec.training.epochs, record)
        self._tracker.note(trial, "epoch")
        self._report.note()

    def died(self, trial: PlannedTrial, deaths: int) -> None:
        """Note that the trial's process died and that another goes on from its checkpoint."""
        line = f"{trial.trial_id[:8]}  {trial_name(trial)}  its process died ({deaths}); goes on from its checkpoint"
        self._progress.say(line)

    def finished(self, trial: PlannedTrial, result: TrialResult) -> None:
        """Note that the trial ended."""
        self._progress.finish(trial.trial_id, trial_name(trial), outcome(result), failed=result.status == "FAILED")
        self._tracker.note(trial, "finished")
        self._report.note()
        self.failures += result.status == "FAILED"

    def waiting(self, trials: list[PlannedTrial], holder: str) -> None:
        """Note that the trials that are left are being run elsewhere."""
        self._progress.say(f"{len(trials)} trials are being run by {holder}; waiting for them")

    def left(self, trial: PlannedTrial) -> None:
        """Note that another process turned out to work on the trial."""
        self._progress.leave(trial.trial_id)

    def tick(self) -> None:
        """Redraw the terminal if it is time to, and leave where a signal asks for it."""
        interruption.check()
        self._progress.tick()


def run_campaign(
    plan: Plan,
    todo: list[PlannedTrial],
    storage: Path,
    progress: Progress,
    address: str | None = None,
    tracking_uri: str | None = None,
    profile: str | None = None,
    command: Sequence[str] = (),
    retime: bool = False,
) -> int:
    """Make the datasets, run the trials and test the planners on the sweep's further maps; ends when all have ended.

    With nothing to do it starts no Ray, and MLflow only where it has not seen all results yet.

    Args:
        plan: The sweep and what there is of it.
        todo: The trials to run, first to last.
        storage: The storage directory.
        progress: The terminal.
        address: A Ray cluster; None for a local one.
        tracking_uri: MLflow's store; None for the SQLite file in the storage.
        profile: The sweep's profile, for its report.
        command: The command that runs the sweep, for its report.
        retime: Train again those of the trials that were trained on a shared device.

    Returns:
        How many tests on further maps have failed; a trial that has failed says so in its result.
    """
    uri = tracking_uri or tracking.default_uri(storage)
    running = {trial.trial_id for trial in todo}
    done = {trial_id: result for trial_id, result in plan.results.items() if trial_id not in running}
    unsent = set(tracking.unsent(storage, plan.sweep.name, uri, done))
    tests = planned_evaluations(plan.sweep, plan.trials)
    keep_test_steps(plan.sweep, plan.trials, storage)
    waiting = bool(todo and tests) or bool(missing_evaluations(tests, storage))
    if not todo and not unsent and not waiting:
        return 0
    if todo or waiting:
        check_address(address)
    storage.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(progress.close)
        stack.enter_context(at_work(storage))
        if todo or waiting:
            progress.say(f"starting Ray for {len(todo)} trials" if address is None else f"joining Ray at {address}")
            stack.enter_context(ray_cluster(address))
            check_machines(storage, address)  # before anybody is told of a run that can't be
        tracker = Tracker(uri, plan.sweep, plan.trials, storage, progress.say)
        report = FreshReport(plan.sweep, plan.trials, storage, profile=profile, command=command)
        status, failed_tests = "KILLED", 0
        try:
            for trial in plan.trials:
                if trial.trial_id in unsent:
                    tracker.note(trial, "finished")
            onlookers = Onlookers(progress, tracker, report)
            if todo or waiting:
                failed_tests = _run(plan, todo, tests, storage, progress, onlookers, retime)
            status = "FAILED" if onlookers.failures else "FINISHED"
        finally:
            progress.close()
            try:
                report.close()  # first, since MLflow gets a copy
            except ReportError as error:  # the results are there, and why a run was stopped matters more
                progress.say(f"{error}; idp report says more")
            left = tracker.close(status, patience=2.0 if status == "KILLED" else 10.0)
            if left:
                progress.say(f"{left} trials are not in MLflow yet; the next run, or idp sync, sends them")
        return failed_tests


def _run(
    plan: Plan,
    todo: list[PlannedTrial],
    tests: list[PlannedEvaluation],
    storage: Path,
    progress: Progress,
    onlookers: Onlookers,
    retime: bool,
) -> int:
    from orchestrator.tuning import run_trials

    needed = [*(trial.spec.data for trial in todo), *(test.data for test in tests)]
    make_datasets(needed, storage / "datasets", dataset_lines(progress))
    # Each run its own: another run of the sweep may go on when this one removes it.
    scratch = storage / "sweeps" / plan.sweep.name / "ray" / uuid.uuid4().hex[:12]
    while todo:
        run_trials(todo, storage, plan.sweep.resources, onlookers, scratch, plan.sweep.search, retime)
        todo = _next_round(plan, storage)
        progress.add(len(todo))
    keep_test_steps(plan.sweep, plan.trials, storage)
    missing = missing_evaluations(tests, storage)
    done = itertools.count(1)

    def say(test: PlannedEvaluation, reason: str) -> None:
        name = f"{trial_name(test.trial)} on {test.data.map_size}x{test.data.map_size}, K={test.k}"
        progress.say(f"{test.trial.trial_id[:8]}  {name}  {reason or 'tested'}  [{next(done)}/{len(missing)}]")

    return evaluate_all(missing, storage, say)


def _next_round(plan: Plan, storage: Path) -> list[PlannedTrial]:
    """Return the trials that a search suggests after those that have ended, and add them to the plan."""
    if plan.sweep.search is None:
        return []
    from orchestrator.searching import next_suggestions

    if not next_suggestions(plan.sweep, storage):
        return []
    every = expand(plan.sweep, read_suggestions(storage, plan.sweep.name))
    known = {trial.trial_id for trial in plan.trials}
    new = [trial for trial in every if trial.trial_id not in known]
    plan.trials.extend(new)
    return new


def dataset_lines(progress: Progress) -> Any:
    """Return what says, from time to time, how far the datasets are."""
    said = {"percent": -10.0}

    def say(made: DatasetProgress) -> None:
        if made.died:
            progress.say(f"{made.dataset}: the worker of {made.died} died; another makes the shard")
            return
        percent = 100 * made.done / made.total
        if percent - said["percent"] >= 10 or made.done == made.total:
            said["percent"] = percent
            progress.say(f"{made.dataset}: shard {made.done}/{made.total}")

    return say
