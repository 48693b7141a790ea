"""Running a sweep: datasets, then trials, with the terminal and MLflow looking on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import interruption, tracking
from orchestrator.cluster import DatasetProgress, check_address, make_datasets, ray_cluster
from orchestrator.planning import Plan
from orchestrator.progress import Progress, outcome, trial_name
from orchestrator.results import TrialResult
from orchestrator.specs import PlannedTrial
from orchestrator.tracking import Tracker


class Onlookers:
    """Passes what happens to the trials on to the terminal and to MLflow."""

    def __init__(self, progress: Progress, tracker: Tracker) -> None:
        self._progress, self._tracker = progress, tracker
        self.failures = 0

    def started(self, trial: PlannedTrial) -> None:
        """Note that a process works on the trial."""
        self._progress.start(trial.trial_id, trial_name(trial), trial.spec.training.epochs)
        self._tracker.note(trial, "started")

    def epoch(self, trial: PlannedTrial, record: Mapping[str, Any]) -> None:
        """Note that the trial finished an epoch."""
        self._progress.epoch(trial.trial_id, trial_name(trial), trial.spec.training.epochs, record)
        self._tracker.note(trial, "epoch")

    def died(self, trial: PlannedTrial, deaths: int) -> None:
        """Note that the trial's process died and that another goes on from its checkpoint."""
        line = f"{trial.trial_id[:8]}  {trial_name(trial)}  its process died ({deaths}); goes on from its checkpoint"
        self._progress.say(line)

    def finished(self, trial: PlannedTrial, result: TrialResult) -> None:
        """Note that the trial ended."""
        self._progress.finish(trial.trial_id, trial_name(trial), outcome(result), failed=result.status == "FAILED")
        self._tracker.note(trial, "finished")
        self.failures += result.status == "FAILED"

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
) -> None:
    """Make the datasets and run the trials; returns when all have ended, well or not.

    With nothing to do it starts no Ray, and MLflow only where it has not seen all results yet.

    Args:
        plan: The sweep and what there is of it.
        todo: The trials to run, first to last.
        storage: The storage directory.
        progress: The terminal.
        address: A Ray cluster; None for a local one.
        tracking_uri: MLflow's store; None for the SQLite file in the storage.
    """
    uri = tracking_uri or tracking.default_uri(storage)
    running = {trial.trial_id for trial in todo}
    done = {trial_id: result for trial_id, result in plan.results.items() if trial_id not in running}
    unsent = set(tracking.unsent(storage, plan.sweep.name, uri, done))
    if not todo and not unsent:
        return
    if todo:
        check_address(address)
    storage.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(uri, plan.sweep, plan.trials, storage, progress.say)
    status = "KILLED"
    try:
        for trial in plan.trials:
            if trial.trial_id in unsent:
                tracker.note(trial, "finished")
        onlookers = Onlookers(progress, tracker)
        if todo:
            _run(plan, todo, storage, progress, onlookers, address)
        status = "FAILED" if onlookers.failures else "FINISHED"
    finally:
        progress.close()
        left = tracker.close(status, patience=2.0 if status == "KILLED" else 10.0)
        if left:
            progress.say(f"{left} trials are not in MLflow yet; the next run, or idp sync, sends them")


def _run(
    plan: Plan,
    todo: list[PlannedTrial],
    storage: Path,
    progress: Progress,
    onlookers: Onlookers,
    address: str | None,
) -> None:
    from orchestrator.tuning import run_trials

    progress.say(f"starting Ray for {len(todo)} trials" if address is None else f"joining Ray at {address}")
    with ray_cluster(address):
        make_datasets([trial.spec.data for trial in todo], storage / "datasets", dataset_lines(progress))
        scratch = storage / "sweeps" / plan.sweep.name / "ray"
        run_trials(todo, storage, plan.sweep.resources, onlookers, scratch)


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
