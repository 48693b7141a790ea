"""SIGINT, SIGTERM and SIGHUP as one exception, raised where it is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal came that asks to end; a BaseException, so that nothing on the way takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    deferred = False
    pending: int | None = None
    handled: tuple[signal.Signals, ...] = ()


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.deferred and _State.pending is None:
        _State.pending = number
        return
    for handled in _State.handled:
        signal.signal(handled, signal.SIG_IGN)  # the way out is short; one more signal would only break it
    raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals into `Interrupted` until the end of the block.

    A signal that is ignored stays so: nohup promises that a closed terminal ends nothing. In a thread other than the
    main one nothing changes: signals reach the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.handled = tuple(
        number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    )
    before = {number: signal.signal(number, _handle) for number in _State.handled}
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
    for number in _State.handled:
        signal.signal(number, _handle)
    _State.deferred = True
    try:
        yield
        check()
    finally:
        _State.deferred = False


@contextmanager
def spared_hangups() -> Iterator[None]:
    """Let SIGHUP never reach the processes that are started in the block.

    A terminal that closes sends it to all of them at once; the daemons of a run would be gone before the run has given
    back what it holds.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check() -> None:
    """Raise `Interrupted` if a signal is waiting."""
    if _State.pending is not None:
        _State.deferred, number, _State.pending = False, _State.pending, None
        _handle(number, None)
