"""Where a run does its work: in the processes of a Ray cluster, or in this very one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from datagen.tasks.registry import DatasetSpec
from orchestrator import signals as interruption
from orchestrator.cluster import ray_cluster as cluster
from orchestrator.cluster.datasets import Report, make_datasets, make_here
from orchestrator.cluster.preflight import check_machines
from orchestrator.cluster.resources import check_here, distinct_requests, left_out
from orchestrator.cluster.sharing import most_at_once
from orchestrator.storage.evaluations import PlannedEvaluation
from orchestrator.storage.layout import Storage
from orchestrator.sweep.specs import PlannedTrial, Resources
from orchestrator.words import counted, first_line

if TYPE_CHECKING:
    from orchestrator.cluster.rounds import Round

Say = Callable[[str], None]
Tested = Callable[[PlannedEvaluation, str], None]
"""Is told of a test that has ended, and why it failed, else ""."""


class Executor(Protocol):
    """What does the work of a run."""

    def check(self, resources: Resources, todo: list[PlannedTrial]) -> None:
        """Refuse, before anything is started, what can't be run."""

    def opened(
        self, storage: Storage, resources: Resources, todo: list[PlannedTrial], say: Say
    ) -> AbstractContextManager[None]:
        """Be ready for the work of a run until the end of the block."""

    def shared(self) -> str:
        """Return the cluster, once open, that other runs may work on too; empty for none."""

    def make_datasets(self, specs: list[DatasetSpec], root: Path, report: Report) -> None:
        """Make what is missing of each dataset."""

    def fit(self, together: Round, constants: dict[str, Any]) -> None:
        """Run trials, and tell the round of them."""

    def evaluate(self, tests: list[PlannedEvaluation], storage: Storage, say: Tested, stall: float | None) -> int:
        """Test trained planners on further maps, and return how many of the tests failed."""


@dataclass(frozen=True)
class OnCluster:
    """The processes of a Ray cluster.

    Attributes:
        address: Which; None for one that is started on this machine.
    """

    address: str | None

    def check(self, resources: Resources, todo: list[PlannedTrial]) -> None:
        """Refuse an address where nothing listens, and what this machine can't have."""
        cluster.check_address(self.address)
        if self.address is None and todo:
            check_here(resources, todo[0].spec)

    @contextmanager
    def opened(self, storage: Storage, resources: Resources, todo: list[PlannedTrial], say: Say) -> Iterator[None]:
        """Start or join the cluster; refuse what it can't run, and say where machines will have nothing to do."""
        local = f"starting Ray for {counted(len(todo), 'trial')}"
        say(local if self.address is None else f"joining Ray at {self.address}")
        with cluster.ray_cluster(self.address):
            check_machines(storage, self.address)  # before anybody is told of a run that can't be
            if todo:
                machines = cluster.machines()
                for request in distinct_requests(resources, (trial.spec for trial in todo), machines):
                    most_at_once(resources, request)  # refuses what would never begin
                    if resources.exclusive and (small := left_out(request, machines)):
                        cpus = f"{request['cpu']:g}"
                        say(
                            f"resources.exclusive: trials run on the machines with {cpus} CPUs alone; "
                            f"{small} smaller ones get none"
                        )
            yield

    def shared(self) -> str:
        """Return the address of the cluster's head."""
        return "" if self.address is None else cluster.head_address()

    def make_datasets(self, specs: list[DatasetSpec], root: Path, report: Report) -> None:
        """Make them shard by shard on all processors."""
        make_datasets(specs, root, report)

    def fit(self, together: Round, constants: dict[str, Any]) -> None:
        """Let Ray Tune run the trials."""
        from orchestrator.cluster.tuning import fit

        fit(together, constants)

    def evaluate(self, tests: list[PlannedEvaluation], storage: Storage, say: Tested, stall: float | None) -> int:
        """Test them on all processors."""
        return cluster.evaluate_all(tests, storage, say, stall)


class InProcess:
    """This process alone, one thing after the other: a debugger stops in it, and nothing needs to be started."""

    def check(self, resources: Resources, todo: list[PlannedTrial]) -> None:
        """Refuse nothing: a trial has what this process has."""

    @contextmanager
    def opened(self, storage: Storage, resources: Resources, todo: list[PlannedTrial], say: Say) -> Iterator[None]:
        """Say where the trials run."""
        say(f"{counted(len(todo), 'trial')} in this process, one after the other, without Ray")
        yield

    def shared(self) -> str:
        """Return nothing: a process is not shared."""
        return ""

    def make_datasets(self, specs: list[DatasetSpec], root: Path, report: Report) -> None:
        """Make them shard by shard."""
        make_datasets(specs, root, report, make_here)

    def fit(self, together: Round, constants: dict[str, Any]) -> None:
        """Run the trials; nobody ends this process where one of them stands still, as it does in a debugger."""
        from orchestrator.cluster.trials import train

        while (trial_id := together.next()) is not None:
            together.started(trial_id)
            config = constants | together.config(trial_id) | {"storage": str(together.storage), "stall_seconds": None}
            # The driver's own threads work beside it: its times are none of a trial that has its device to itself.
            train(config, partial(self._said, together, trial_id), exclusive=False)
            if together.stop is not None:
                raise together.stop
            together.ended(trial_id, "the trial ended without a result")
            together.tick()

    @staticmethod
    def _said(together: Round, trial_id: str, report: dict[str, Any]) -> None:
        together.said(trial_id, report)
        together.tick()

    def evaluate(self, tests: list[PlannedEvaluation], storage: Storage, say: Tested, stall: float | None) -> int:
        """Test them one after the other."""
        failures = 0
        for test in tests:
            reason = ""
            try:
                cluster.evaluate(test, storage, None)
            except Exception as error:
                reason = first_line(error)
                failures += 1
            say(test, reason)
            interruption.check()
        return failures
