"""What one process does about a trial, whatever is trained: its options, its checkpoints, whether it is to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.storage.checkpoints import code_of, is_of, load_checkpoint, save_checkpoint
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease
from orchestrator.storage.results import ResultError
from orchestrator.storage.runs import asked_to_give_way
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec
from orchestrator.trial.cancel import Cancelled, GaveWay
from orchestrator.trial.watchdog import STALL_SECONDS

Report = Callable[[dict[str, Any]], None]
"""Is told of each epoch: its number, and what it did."""


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

    def keep(self, records: list[dict[str, Any]], alone: bool, trained: dict[str, Any]) -> None:
        """Write the checkpoint after an epoch.

        Args:
            records: What the epochs did.
            alone: Whether all of them had the device to themselves.
            trained: The state of what is trained, by its name.
        """
        state = {
            "code": code_of(self.spec),
            "spec": self.spec.model_dump(mode="json"),  # so that a checkpoint tells whose it is
            "exclusive": alone,
            "records": records,
            **trained,
        }
        save_checkpoint(self.trial, state, self.lease)

    def kept(self) -> dict[str, Any] | None:
        """Return the trial's checkpoint, None where training starts anew.

        None of other code's epochs are taken, nor of another trial's, nor, where they are to be timed again, of those
        on a shared device.
        """
        trial = self.trial
        state, wrong = load_checkpoint(trial)
        for reason in wrong:
            trial.note(f"{reason}; " + ("the one before is taken" if state else "training starts again"))
        if state is not None and state.get("code") != code_of(self.spec):
            trial.note("the checkpoint was made by other code: training starts again")
            state = None
        if state is not None and not is_of(state, self.spec):
            trial.note("the checkpoint is another trial's: training starts again")
            state = None
        if state is not None and self.options.retime and not state.get("exclusive", False):
            trial.note("the checkpoint's epochs were timed on a shared device: training starts again")
            state = None
        if state is None:
            trial.divergence.unlink(missing_ok=True)
        return state

    def alone(self, state: dict[str, Any] | None) -> bool:
        """Return whether all epochs, those of a checkpoint too, have the device to themselves."""
        return self.options.exclusive and (state is None or bool(state.get("exclusive", False)))

    def does_not_fit(self, error: Exception) -> ResultError:
        """Return what to say of a checkpoint that can't be gone on from."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return ResultError(f"{self.trial.checkpoint}: does not fit this trial ({reason}); delete it to train again")

    def check(self, epoch: int, finished: bool = False) -> None:
        """Leave after that epoch where the trial is to stop, or to give way to another run.

        Args:
            epoch: Epochs that are done.
            finished: Whether there is none to come, so that there is nothing to give way with.

        Raises:
            Cancelled: It was cancelled.
            GaveWay: The run of the sweep has asked for it; the trial goes on after its last epoch another time.
        """
        trial, run = self.trial, self.options.run
        there = f"after epoch {epoch} of {self.spec.training.epochs}"
        if trial.is_cancelled():
            raise Cancelled(f"{trial.why_cancelled()} {there}")
        if run is not None and not finished and asked_to_give_way(run, trial.name):
            trial.note(f"gives way to another sweep {there}")
            raise GaveWay(there)


DOES_NOT_FIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a state that is another's makes its reader raise."""
