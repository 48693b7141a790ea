"""Running a sweep: datasets, then trials, with the terminal and MLflow looking on."""

from __future__ import annotations

import itertools
import math
import shlex
import statistics
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from datagen.tasks.registry import DatasetSpec, dataset_id
from orchestrator import signals as interruption
from orchestrator.campaign.plan import Plan
from orchestrator.campaign.progress import Progress
from orchestrator.campaign.webhook import Webhook
from orchestrator.cluster.datasets import DatasetProgress
from orchestrator.cluster.executors import Executor, InProcess, OnCluster
from orchestrator.cluster.sharing import Sharing
from orchestrator.command import Command
from orchestrator.report.keeper import FreshReport, ReportError
from orchestrator.storage.bucket import BucketError
from orchestrator.storage.evaluations import (
    PlannedEvaluation,
    keep_test_steps,
    missing_evaluations,
    planned_evaluations,
)
from orchestrator.storage.layout import Storage
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.results import TrialResult
from orchestrator.storage.runs import RunNote, host_here, job_here, user_here
from orchestrator.storage.standing import read_standing
from orchestrator.storage.suggestions import planned_trials
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.event_files import EventFiles
from orchestrator.tracking.tracker import Tracker, Untracked
from orchestrator.words import counted, first_line, outcome, trial_name

if TYPE_CHECKING:
    from orchestrator.campaign.search import StudyStopping


class Onlookers:
    """Passes what happens to the trials on to the terminal, to MLflow, to TensorBoard and to a chat room."""

    def __init__(
        self,
        progress: Progress,
        tracker: Tracker | Untracked,
        events: EventFiles,
        report: FreshReport,
        webhook: Webhook,
    ) -> None:
        self._progress, self._report, self._webhook = progress, report, webhook
        self._views = (tracker, events)
        self.failures = 0
        self.ended = 0

    def started(self, trial: PlannedTrial) -> None:
        """Note that a process works on the trial."""
        self._progress.start(trial.trial_id, trial_name(trial), trial.spec.training.epochs)
        self._show(trial, "started")

    def epoch(self, trial: PlannedTrial, record: Mapping[str, Any]) -> None:
        """Note that the trial finished an epoch."""
        self._progress.epoch(trial.trial_id, trial_name(trial), trial.spec.training.epochs, record)
        self._show(trial, "epoch")
        self._report.note()
        if record.get("forward_diverged"):
            what = f"the forward iteration of {trial_name(trial)} diverged in epoch {record['epoch']}"
            self._webhook.send(what, once="divergence")

    def died(self, trial: PlannedTrial, deaths: int, why: str) -> None:
        """Note that the trial's process died and that another goes on from its checkpoint."""
        died = f"its process died ({deaths})" + (f": {why}" if why else "")
        self._progress.wait(trial.trial_id)
        self._progress.say(f"{trial.trial_id[:8]}  {trial_name(trial)}  {died}; goes on from its checkpoint")

    def finished(self, trial: PlannedTrial, result: TrialResult) -> None:
        """Note that the trial ended."""
        self._progress.finish(trial.trial_id, trial_name(trial), outcome(result), failed=result.status == "FAILED")
        self._show(trial, "finished")
        self._report.note()
        self.ended += 1
        if result.status == "FAILED":
            self.failures += 1
            self._webhook.send(f"{trial_name(trial)} failed: {first_line(result.reason)}", once="failure")

    def waiting(self, trials: list[PlannedTrial], holder: str) -> None:
        """Note that the trials that are left are being run elsewhere."""
        self._progress.waiting(f"waiting for {counted(len(trials), 'trial')}, run by {holder}")

    def left(self, trial: PlannedTrial) -> None:
        """Note that another process turned out to work on the trial."""
        self._progress.leave(trial.trial_id)

    def behind(self, users: str) -> None:
        """Note that others have all of the cluster for now."""
        self._progress.waiting(f"waiting for a part of the cluster, which {users} have for now")

    def _show(self, trial: PlannedTrial, event: tracking.Event) -> None:
        for view in self._views:
            view.note(trial, event)

    def tick(self) -> None:
        """Redraw the terminal if it is time to, and leave where a signal asks for it."""
        interruption.check()
        self._progress.tick()


@dataclass(frozen=True)
class Ending:
    """What a run has come to.

    Attributes:
        trials: The trials of the sweep, with those that a search has added.
        ran: How many of them this run has seen to.
        failures: How many of those have FAILED.
        failed_tests: How many tests on further maps have failed.
    """

    trials: list[PlannedTrial]
    ran: int = 0
    failures: int = 0
    failed_tests: int = 0


def run_campaign(
    plan: Plan,
    todo: list[PlannedTrial],
    storage: Storage,
    progress: Progress,
    command: Command,
    mirror: Mirror | None = None,
) -> Ending:
    """Make the datasets, run the trials and test the planners on the sweep's further maps; ends when all have ended.

    With nothing to do it starts no Ray, and MLflow only where it has not seen all results yet.

    Args:
        plan: The sweep and what there is of it.
        todo: The trials to run, first to last.
        storage: The storage directory.
        progress: The terminal.
        command: What was asked: on which cluster, shown in which MLflow store, and which trials of a search's later
            rounds are to be run.
        mirror: What other machines share with this one.

    Returns:
        What it has come to; a trial that has failed says so in its result.
    """
    webhook = Webhook.of_environment(plan.sweep.name, progress.say)
    events = EventFiles.of_environment(plan.sweep, storage, progress.say)
    executor: Executor = InProcess() if command.in_process else OnCluster(command.address)
    uri = command.tracking_uri or tracking.default_uri(storage)
    tracking.check_uri(uri)
    running = {trial.trial_id for trial in todo}
    done = {trial_id: result for trial_id, result in plan.results.items() if trial_id not in running}
    untracked = uri == tracking.NOWHERE
    unsent = set() if untracked else set(tracking.unsent(storage, plan.sweep.name, uri, done))
    tests = planned_evaluations(plan.sweep, plan.trials)
    keep_test_steps(plan.sweep, plan.trials, storage)
    waiting = bool(todo and tests) or bool(missing_evaluations(tests, storage))
    if not todo and not unsent and not waiting:
        return Ending(plan.trials)
    if todo or waiting:
        executor.check(plan.sweep.resources, todo)
    storage.make()
    trials = list(plan.trials)  # a search adds to it, which MLflow's thread and the report's see
    with ExitStack() as stack:
        stack.callback(progress.close)
        mark = stack.enter_context(storage.at_work())
        if mirror is not None:
            stack.enter_context(mirror.working())
        stack.enter_context(progress.watched(lambda trial_id: where(storage.trial(trial_id))))
        cluster = stack.enter_context(ExitStack())
        if todo or waiting:
            starting = f"joining Ray at {command.address}" if command.address else "starting Ray"
            progress.doing("" if command.in_process else starting)
            cluster.enter_context(executor.opened(storage, plan.sweep.resources, todo, progress.say))
        tracker = Untracked() if untracked else Tracker(uri, plan.sweep, storage, progress.say)
        report = FreshReport(plan.sweep, storage, command)
        status = "KILLED"
        stack.callback(webhook.close)
        stack.callback(events.close)
        try:
            for trial in plan.trials:
                if trial.trial_id in unsent:
                    tracker.note(trial, "finished")
            onlookers = Onlookers(progress, tracker, events, report, webhook)
            ending = Ending(trials)
            if todo or waiting:
                sharing = Sharing(storage, mark, _note(plan, running, executor.shared()))
                begun = _Running(plan, trials, storage, progress, onlookers, command, executor, sharing, mirror)
                ending = begun.run(todo)
            status = "FAILED" if onlookers.failures else "FINISHED"
            if todo:
                failed = f", {onlookers.failures} of them FAILED" if onlookers.failures else ""
                ended = f"{counted(onlookers.ended, 'trial')} ended{failed}"
                webhook.send(f"done: {ended}; {shlex.join(command.words('table'))}")
        except interruption.Interrupted as stopped:
            webhook.send(f"stopped by {stopped}; run again, it goes on")
            progress.say(f"stopping by {stopped}: trials are given back, which takes some seconds")
            progress.doing("stopping")
            cluster.close()
            raise
        finally:
            progress.close()
            _close(report, tracker, status, progress)
        return ending


def _close(report: FreshReport, tracker: Tracker | Untracked, status: str, progress: Progress) -> None:
    """Write the last report, then send MLflow what it has not seen; whoever kills a run does not wait for long."""
    killed = status == "KILLED"
    progress.doing("writing the report")
    try:
        report.close(10.0 if killed else math.inf)  # first, since MLflow gets a copy
    except ReportError as error:  # the results are there, and why a run was stopped matters more
        progress.say(f"{error}; idp report says more")
    progress.doing("sending MLflow what it has not seen")
    left = tracker.close(status, patience=2.0 if killed else 10.0)
    if left:
        progress.say(f"not in MLflow yet: {counted(left, 'trial')}; the next run, or idp sync, sends them")


@dataclass(frozen=True)
class _Running:
    """A run of a sweep on an executor that is ready.

    Attributes:
        plan: The sweep and what there was of it.
        trials: The trials of the sweep; those that a search adds are put behind them.
        storage: The storage directory.
        progress: The terminal.
        onlookers: Are told what happens to the trials.
        command: What was asked.
        executor: Does the work.
        sharing: The run's part in sharing the cluster.
        mirror: What other machines share with this one.
        made: The datasets that are there by now.
    """

    plan: Plan
    trials: list[PlannedTrial]
    storage: Storage
    progress: Progress
    onlookers: Onlookers
    command: Command
    executor: Executor
    sharing: Sharing
    mirror: Mirror | None = None
    made: set[str] = field(default_factory=set)

    def run(self, todo: list[PlannedTrial]) -> Ending:
        """Run these trials and those that a search adds, then test the trained planners."""
        sweep = self.plan.sweep
        tests = planned_evaluations(sweep, self.trials)
        self._make_datasets([*(trial.spec.data for trial in todo), *(test.data for test in tests)])
        ran = self._train(todo)
        if sweep.search is not None:
            from orchestrator.campaign.search import keep_journal, state_of_search

            keep_journal(sweep, self.storage)
            for line in state_of_search(sweep, self.storage):
                self.progress.say(line)
        return Ending(self.trials, ran, self.onlookers.failures, self._test())

    def _make_datasets(self, specs: Iterable[DatasetSpec]) -> None:
        new = {name: spec for spec in specs if (name := dataset_id(spec)) not in self.made}
        self.progress.doing("making what is missing of the datasets" if new else "")
        wanted, say = list(new.values()), dataset_lines(self.progress)
        make = partial(self.executor.make_datasets, wanted, self.storage.datasets, say)
        make() if self.mirror is None else self.mirror.exchange_datasets(wanted, make)
        self.made.update(new)
        self.progress.doing("")

    def _train(self, todo: list[PlannedTrial]) -> int:
        """Run trials, round after round where the sweep has a search, and return how many that were."""
        from orchestrator.cluster.rounds import Terms
        from orchestrator.cluster.trials import run_trials

        sweep, ran = self.plan.sweep, 0
        scratch = self.storage.sweep(sweep.name).scheduler()
        retime = self.command.rerun == "shared"
        while todo:
            self._make_datasets(trial.spec.data for trial in todo)
            terms = Terms(sweep.resources, scratch, _stopping(sweep, self.storage), retime, self.sharing, self.mirror)
            self.progress.doing("starting trials")
            run_trials(todo, self.storage, self.onlookers, terms, self.executor.fit)
            ran += len(todo)
            todo = _next_round(sweep, self.trials, self.storage, self.command.only)
            self.trials.extend(todo)
            typical = statistics.median(self.plan.work.values()) if self.plan.work else 0.0
            self.progress.add({trial.trial_id: typical for trial in todo})
        return ran

    def _test(self) -> int:
        """Test the trained planners on the sweep's further maps, and return how many of the tests failed."""
        sweep = self.plan.sweep
        keep_test_steps(sweep, self.trials, self.storage)
        self._exchange_tests()
        missing = missing_evaluations(planned_evaluations(sweep, self.trials), self.storage)
        self._make_datasets(test.data for test in missing)
        self.progress.doing("testing on further maps" if missing else "")
        done = itertools.count(1)

        def say(test: PlannedEvaluation, reason: str) -> None:
            name = f"{trial_name(test.trial)} on {test.data.map_size}x{test.data.map_size}, K={test.k}"
            line = f"{test.trial.trial_id[:8]}  {name}  {reason or 'tested'}  [{next(done)}/{len(missing)}]"
            self.progress.say(line)

        failures = self.executor.evaluate(missing, self.storage, say, sweep.resources.stall_seconds)
        self._exchange_tests()
        return failures

    def _exchange_tests(self) -> None:
        if self.mirror is not None and self.plan.sweep.test_on:
            try:
                self.mirror.exchange_evaluations({trial.trial_id for trial in self.trials})
            except BucketError as error:  # they are in the storage, and are sent next time
                self.progress.say(str(error))


def _note(plan: Plan, running: Container[str], cluster: str) -> RunNote:
    """Return what a run of these trials that begins says of itself."""
    resources = plan.sweep.resources
    return RunNote(
        sweep=plan.sweep.name,
        user=user_here(),
        host=host_here(),
        job=job_here(),
        cluster=cluster,
        priority=resources.priority,
        most_cpus=resources.at_most and resources.at_most.cpus,
        most_gpus=resources.at_most and resources.at_most.gpus,
        total=len(plan.trials),
        done=sum(plan.states[t.trial_id] == "done" and t.trial_id not in running for t in plan.trials),
        wants=1,  # a processor, for datasets: until trials are handed out nobody would give way to a run that has none
    )


def _stopping(sweep: SweepSpec, storage: Storage) -> StudyStopping | None:
    """Return what stops the trials of a search early, with what earlier ones have reached; None where nothing does."""
    if sweep.search is None or sweep.search.stopping == "none":
        return None
    from orchestrator.campaign.search import StudyStopping

    return StudyStopping(sweep, planned_trials(sweep, storage)[0], storage)


def _next_round(sweep: SweepSpec, known: list[PlannedTrial], storage: Storage, only: str | None) -> list[PlannedTrial]:
    """Return the trials that a search suggests after those that have ended."""
    if sweep.search is None:
        return []
    from orchestrator.campaign.search import keep_journal, next_suggestions

    keep_journal(sweep, storage)
    if not next_suggestions(sweep, storage, only):
        return []
    there = {trial.trial_id for trial in known}
    return [trial for trial in select(planned_trials(sweep, storage)[0], only) if trial.trial_id not in there]


def where(trial: TrialDirectory) -> str:
    """Return in words where a trial stands, nothing where nobody says."""
    standing = read_standing(trial)
    return standing.words() if standing is not None else ""


def dataset_lines(progress: Progress) -> Callable[[DatasetProgress], None]:
    """Return what says, from time to time, how far the datasets are."""
    said = -10.0

    def say(made: DatasetProgress) -> None:
        nonlocal said
        if made.died:
            progress.say(f"{made.dataset}: the worker of {made.died} died; another makes the shard")
            return
        percent = 100 * made.done / made.total
        if percent - said >= 10 or made.done == made.total:
            said = percent
            progress.say(f"{made.dataset}: shard {made.done}/{made.total}")

    return say
