"""SIGINT and SIGTERM as one exception, raised where it is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; a BaseException, so that nothing on the way takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    deferred = False
    pending: int | None = None


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.deferred and _State.pending is None:
        _State.pending = number
        return
    for handled in _SIGNALS:
        signal.signal(handled, signal.SIG_IGN)  # the way out is short; one more signal would only break it
    raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` until the end of the block."""
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        _State.deferred, _State.pending = False, None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the first signal wait for `check`: an exception in the middle of Ray's compiled code would be lost.

    Ray puts handlers of its own over ours, which abort the process; ours are put back here.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _handle:
        yield
        return
    for number in _SIGNALS:
        signal.signal(number, _handle)
    _State.deferred = True
    try:
        yield
        check()
    finally:
        _State.deferred = False


def check() -> None:
    """Raise `Interrupted` if a signal is waiting."""
    if _State.pending is not None:
        _State.deferred = False
        _handle(_State.pending, None)
