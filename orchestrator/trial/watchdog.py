"""Ends a process whose trial makes no progress, so that another can go on from its checkpoint.

Progress is a number that the training loop advances: a step, a batch of a test. A thread's beat would go on while a
plug-in waits for ever, and no thread of Python runs while compiled code spins; so the clock is faulthandler's, which
needs neither, and which writes down where every thread stood before it ends the process. Where that can't be written,
since it is the file system that gives no answer, the kernel's own alarm ends the process a little later.
"""

from __future__ import annotations

import faulthandler
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from numba.core import event

from orchestrator.storage.files import appending
from orchestrator.storage.trial_directory import TrialDirectory

STALL_SECONDS = 1800.0
"""Longest time without progress, where the sweep does not say otherwise."""

LOADING_SECONDS = 1800.0
"""Least time until the first progress, and for the compilation of any kernel: data is read, kernels are compiled."""

WRITING_SECONDS = 30.0
"""How long it may take to write down where threads stood, before the process is ended without it."""

_MOST_OFTEN = 1.0


class Watchdog(event.Listener):
    """Counts progress, and puts the clock back when there is some.

    Args:
        seconds: Longest time without progress.
        file: Where it is written down, before the process ends, where its threads stood.

    Attributes:
        progress: How often there was progress.
    """

    def __init__(self, seconds: float, file: TextIO) -> None:
        self.seconds, self.progress = seconds, 0
        self._file, self._compiling, self._set_at = file, 0, 0.0

    def advance(self, *_: Any) -> None:
        """Note that there was progress."""
        self.progress += 1
        # Setting the clock starts a thread; a small planner takes thousands of steps a second.
        # The first progress puts an end to the time for loading, however soon it comes.
        late = self.progress == 1 or time.monotonic() - self._set_at >= min(_MOST_OFTEN, self.seconds / 10)
        if late and not self._compiling and math.isfinite(self.seconds):
            self._set(self.seconds)

    def on_start(self, event: Any) -> None:
        """Note that numba compiles, which takes as long as it takes."""
        self._compiling += 1
        self._set(max(self.seconds, LOADING_SECONDS))

    def on_end(self, event: Any) -> None:
        """Note that it is done."""
        self._compiling -= 1
        if not self._compiling:
            self._set(self.seconds if self.progress else max(self.seconds, LOADING_SECONDS))

    def _set(self, seconds: float) -> None:
        self._set_at = time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)
        # Nobody handles this signal, so that the kernel ends the process, even while it waits for a dead server.
        signal.setitimer(signal.ITIMER_REAL, seconds + WRITING_SECONDS)

    @contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """End this process where there is no progress for too long, until the end of the block."""
        self._set(max(self.seconds, LOADING_SECONDS))
        try:
            with event.install_listener("numba:compile", self):
                yield self
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextmanager
def watched(trial: TrialDirectory, seconds: float | None, alone: bool = False) -> Iterator[Watchdog]:
    """Watch over what this process does for a trial until the end of the block.

    Args:
        trial: The trial, in whose log a stall is written down.
        seconds: Longest time without progress; None for any.
        alone: True where nobody looks into the log when the process has ended: standard error is written to instead.
    """
    if seconds is None or (alone and sys.__stderr__ is None):
        yield Watchdog(math.inf, sys.stderr)
        return
    with appending(trial.log) as log:
        file = sys.__stderr__ if alone and sys.__stderr__ is not None else log
        with Watchdog(seconds, file).watching() as watchdog:
            yield watchdog
