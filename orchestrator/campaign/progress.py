"""Live progress of a sweep: a block that redraws itself on a terminal; elsewhere lines, and no long silence."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TextIO

from orchestrator.sweep.systems import METRIC
from orchestrator.terminal import painted
from orchestrator.words import duration

REDRAW_SECONDS = 0.2
LOOK_SECONDS = 1.0
"""How often a terminal is told where each trial stands."""
STILL_SECONDS = (30.0, 60.0, 120.0, 300.0, 600.0)
"""Where no terminal shows it: how long nothing is said before it is said what is going on, the next time later."""
MOST_NAMED = 3
"""Trials that such a line names."""
BAR_CELLS = 28


@dataclass(frozen=True)
class _Running:
    """A trial that runs: epochs that it had when this run began, and has now, and where it stands, in words.

    Or that waits for another process, since its own has died.
    """

    name: str
    begun: int | None
    epoch: int
    epochs: int
    rate: float | None = None
    where: str = ""
    waits: bool = False

    def standing(self) -> str:
        """Return in words where it stands; before its process has said a word, that is all there is to say."""
        if self.waits:
            return "waits for another process"
        return self.where or (f"epoch {self.epoch}/{self.epochs}" if self.epoch else "starting")

    def share(self) -> float:
        """Return the share of the trial that this run has done."""
        return 0.0 if self.begun is None or not self.epochs else (self.epoch - self.begun) / self.epochs

    def left(self) -> float:
        """Return the share of the trial that is still to be done."""
        return 1.0 - self.epoch / self.epochs if self.epochs else 1.0


class Progress:
    """Shows the trials of a sweep while they run; any thread may call it.

    Args:
        total: Trials of the sweep.
        done: How many of them need no work.
        work: Expected work of each trial that is to run, in any unit; sets the time left.
        stream: Where to write; standard error by default, so that standard output holds only the table.
    """

    def __init__(
        self, total: int, done: int, work: Mapping[str, float] | None = None, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._total, self._done, self._failed = total, done, 0
        self._work = dict(work or {})
        self._finished_work = 0.0
        self._running: dict[str, _Running] = {}
        self._started = time.monotonic()
        self._worked_since: float | None = None
        self._doing = ""
        self._drawn_lines = 0
        self._drawn_at = 0.0
        self._said_at, self._still_said = self._started, 0
        self._lock = threading.RLock()  # MLflow's thread speaks too

    def say(self, line: str) -> None:
        """Write a line that stays."""
        with self._lock:
            self._said_at, self._still_said = time.monotonic(), 0
            self._erase()
            self._write(f"{line}\n")
            self._draw(force=True)

    def doing(self, what: str) -> None:
        """Note what is done that is no trial, "" for nothing: a terminal shows it beside the clock."""
        with self._lock:
            self._doing = what
            self._draw(force=True)

    def waiting(self, why: str) -> None:
        """Say that there is nothing to do but wait, and go on saying so."""
        with self._lock:
            self._doing = why
            self.say(why)

    @contextmanager
    def watched(self, where: Callable[[str], str]) -> Iterator[None]:
        """Keep a terminal fresh until the end of the block, whatever the process is busy with.

        Elsewhere a line says from time to time what is going on, where nothing else has been said for a while.

        Args:
            where: From a trial's id to where it stands, in words.
        """
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                self.look(where, time.monotonic())

        looking = threading.Thread(target=look, name="idp-terminal", daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()

    def look(self, where: Callable[[str], str], now: float) -> None:
        """Show where the trials stand, if it is time to.

        Args:
            where: From a trial's id to where it stands, in words.
            now: By the monotonic clock.
        """
        with self._lock:
            patience = STILL_SECONDS[min(self._still_said, len(STILL_SECONDS) - 1)]
            if not self._live and now - self._said_at < patience:
                return
            names = list(self._running)
        found = {name: where(name) for name in names}  # reads files: nobody waits for that
        with self._lock:
            for name in found.keys() & self._running.keys():
                self._running[name] = replace(self._running[name], where=found[name])
            if self._live:
                self._draw(force=True)
            elif what := self._going_on():
                said = self._still_said
                self.say(f"{duration(now - self._started)}: {what}")
                self._said_at, self._still_said = now, said + 1

    def _going_on(self) -> str:
        """Return what is going on in one line, empty for nothing that is known."""
        named = [f"{trial_id[:8]} {one.standing()}" for trial_id, one in list(self._running.items())[:MOST_NAMED]]
        more = len(self._running) - len(named)
        running = ", ".join([*named, *([f"and {more} more"] if more else [])])
        return self._doing or (running and f"{self._done}/{self._total} trials; {running}")

    def add(self, work: Mapping[str, float]) -> None:
        """Note that there are more trials than was said.

        Args:
            work: Expected work of each.
        """
        with self._lock:
            self._total += len(work)
            self._work |= work

    def start(self, trial_id: str, name: str, epochs: int) -> None:
        """Note that a trial runs."""
        with self._lock:
            before = self._running.get(trial_id)
            self._doing = ""
            # One whose process has died goes on.
            self._running[trial_id] = replace(before, waits=False) if before else _Running(name, None, 0, epochs)
            self._draw(force=True)

    def wait(self, trial_id: str) -> None:
        """Note that a trial's process has died and another is to take it up."""
        with self._lock:
            if trial_id in self._running:
                self._running[trial_id] = replace(self._running[trial_id], waits=True)
                self._draw(force=True)

    def epoch(self, trial_id: str, name: str, epochs: int, record: Mapping[str, Any]) -> None:
        """Note that a trial finished an epoch."""
        epoch = int(record["epoch"])
        rate = record.get("valid_success_rate")
        with self._lock:
            before = self._running.get(trial_id)
            # What an earlier run has done says nothing about how fast this one is.
            begun = epoch - 1 if before is None or before.begun is None else before.begun
            if self._worked_since is None:
                # Ray, data and compilation came before, and do not come again for each epoch.
                self._worked_since = max(self._started, time.monotonic() - (record.get("train_seconds") or math.inf))
            self._running[trial_id] = _Running(name, begun, epoch, epochs, rate)
            if self._live:
                self._draw(force=True)
                return
            loss = record.get("train_loss")
            shown = "" if rate is None else f"  success {100 * rate:5.1f} %"
            shown += "" if loss is None else f"  loss {loss:.3f}"
            shown += "".join(
                f"  {key.removeprefix(METRIC)} {value:.4g}" for key, value in record.items() if key.startswith(METRIC)
            )
            self.say(f"{trial_id[:8]}  {name}  epoch {epoch}/{epochs}{shown}{self._time_left()}")

    def finish(self, trial_id: str, name: str, outcome: str, failed: bool = False) -> None:
        """Note that a trial ended."""
        with self._lock:
            ran = self._running.pop(trial_id, None)
            work = self._work.pop(trial_id, 0.0)
            if ran is not None:  # else another run has done it
                self._finished_work += work * (ran.share() if ran.epochs else 1.0)
            self._done += not failed
            self._failed += failed
            shown = painted(outcome, "red", self._stream) if failed else outcome
            self.say(f"{trial_id[:8]}  {name}  {shown}  [{self._done}/{self._total}]")

    def leave(self, trial_id: str) -> None:
        """Note that a trial runs here no more, though it has not ended."""
        with self._lock:
            self._running.pop(trial_id, None)
            self._draw(force=True)

    def tick(self) -> None:
        """Redraw if it is time to."""
        with self._lock:
            self._draw()

    def close(self) -> None:
        """Leave the screen as plain lines."""
        with self._lock:
            self._running.clear()
            self._erase()
            self._live = False

    def _time_left(self) -> str:
        if not sum(self._work.values()):
            return ""
        shares = {trial_id: (trial.share(), trial.left()) for trial_id, trial in self._running.items()}
        worked = self._finished_work
        worked += sum(self._work.get(trial_id, 0.0) * share for trial_id, (share, _) in shares.items())
        if worked <= 0:
            return ""
        left = sum(work * shares.get(trial_id, (0.0, 1.0))[1] for trial_id, work in self._work.items())
        since = self._started if self._worked_since is None else self._worked_since
        rate = worked / max(1e-9, time.monotonic() - since)
        return f"  about {duration(left / rate)} left"

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if not self._live or (not force and now - self._drawn_at < REDRAW_SECONDS):
            return
        size = self._size()
        width, most = max(20, size.columns - 1), max(2, size.lines - 2)
        full = BAR_CELLS * self._done // max(1, self._total)
        failed = f", {self._failed} failed" if self._failed else ""
        lines = [
            f"{'━' * full}{'╌' * (BAR_CELLS - full)} {self._done}/{self._total} trials{failed}, "
            f"{duration(now - self._started)}{self._time_left()}{self._doing and f'  {self._doing}'}"
        ]
        for trial_id, trial in self._running.items():
            line = f"  {trial_id[:8]}  {trial.name}  {trial.standing()}"
            rate = "" if trial.rate is None else f"{100 * trial.rate:5.1f} %"
            shown = [f"  success {rate}", f"  {rate}"] if rate else []
            # A number that is cut is another number.
            lines.append(line + next((words for words in shown if len(line + words) <= width), ""))
        if len(lines) > most:  # what has left the screen at its top can't be erased
            lines[most - 1 :] = [f"  and {len(lines) - most + 1} more"]
        self._erase()
        head = lines[0][:width]
        lines[0] = f"{painted(head[:full], 'green', self._stream)}{head[full:]}"
        self._write("".join(f"{line}\n" for line in (lines[0], *(line[:width] for line in lines[1:]))))
        self._drawn_lines, self._drawn_at = len(lines), now

    def _size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._stream.fileno())  # standard output may be a pipe meanwhile
        except OSError:
            return shutil.get_terminal_size()
        return size if size.columns and size.lines else shutil.get_terminal_size()

    def _erase(self) -> None:
        if self._drawn_lines:
            self._write(f"\x1b[{self._drawn_lines}F\x1b[J", steering=True)
            self._drawn_lines = 0

    def _write(self, text: str, steering: bool = False) -> None:
        try:
            (getattr(self._stream, "steer", self._stream.write) if steering else self._stream.write)(text)
            self._stream.flush()
        except OSError:
            # The terminal is gone, or whoever read has left: the sweep and its way out matter more than who watches.
            self._live, self._drawn_lines, self._stream = False, 0, io.StringIO()
