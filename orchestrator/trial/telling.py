"""Tells, from the process that trains it, where a trial stands: once a second, and when it starts to compile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba.core import event

from orchestrator.storage.standing import Doing, Standing, write_standing
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import TrialSpec
from planners.training.trainer import Trainer

MOST_OFTEN_SECONDS = 1.0


class Teller(event.Listener):
    """Writes where a trial stands.

    Args:
        trial: Its directory.
        spec: The trial.
    """

    def __init__(self, trial: TrialDirectory, spec: TrialSpec) -> None:
        self._trial, self._epochs = trial, spec.training.epochs
        self._batches = spec.data.train // spec.training.batch_size
        self._said: Doing | None = None
        self._at = -MOST_OFTEN_SECONDS

    def say(self, doing: Doing, epoch: int = 0, batch: int = 0, maps: int = 0) -> None:
        """Write it, unless the same was written less than a second ago."""
        now = time.monotonic()
        if doing == self._said and now - self._at < MOST_OFTEN_SECONDS:
            return
        self._said, self._at = doing, now
        standing = Standing(
            doing=doing, epoch=epoch, epochs=self._epochs, batch=batch, batches=self._batches, maps=maps
        )
        write_standing(self._trial, standing)

    def after(self, first: Callable[[], None], trainer: Trainer) -> Callable[..., None]:
        """Return what calls a function and then notes where the trainer stands."""

        def both(*tested: int) -> None:
            first()
            self.of(trainer, *tested)

        return both

    def of(self, trainer: Trainer, *tested: int) -> None:
        """Note a training step, or that so many maps have been tested."""
        if not tested:
            self.say("training", trainer.epoch + 1, trainer.step + 1)
        elif trainer.finished:
            self.say("testing", maps=tested[0])
        else:
            self.say("validating", trainer.epoch)

    def on_start(self, event: Any) -> None:
        """Note that numba compiles."""
        self.say("compiling")

    def on_end(self, event: Any) -> None:
        """Do nothing: what comes next says so."""


@contextmanager
def telling(trial: TrialDirectory, spec: TrialSpec) -> Iterator[Teller]:
    """Tell where a trial stands until the end of the block."""
    teller = Teller(trial, spec)
    teller.say("loading")
    try:
        with event.install_listener("numba:compile", teller):
            yield teller
    finally:
        with suppress(OSError):  # the storage is away, and why is somebody else's to say
            trial.standing.unlink(missing_ok=True)
