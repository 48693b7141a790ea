"""The report of a running sweep, kept fresh in the storage: an advisor needs a link and nothing else."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from orchestrator.command import Command
from orchestrator.storage.layout import Storage
from orchestrator.sweep import plugins
from orchestrator.sweep.specs import SweepSpec
from orchestrator.words import last_line

_FIRST_SECONDS = 10.0
"""How long after the first change the first version of a running sweep's report is written, at most."""


class ReportError(RuntimeError):
    """A report could not be written; the message has the last line of what went wrong."""


class FreshReport:
    """Rewrites the report of a running sweep, in a process of its own: the sweep neither waits for it nor grows by it.

    Args:
        sweep: The sweep.
        storage: The storage directory.
        command: What runs the sweep, or some of its trials; the report is of all of them.
        seconds: The least time between two versions.
    """

    def __init__(
        self,
        sweep: SweepSpec,
        storage: Storage,
        command: Command | None = None,
        *,
        seconds: float = 60.0,
    ) -> None:
        self._sweep, self._storage = sweep, storage
        self._command, self._seconds = command and replace(command, only=None), seconds
        self._changed, self._closing = threading.Event(), threading.Event()
        self.error: ReportError | None = None
        self._thread = threading.Thread(target=self._keep, name="report", daemon=True)
        self._thread.start()

    def note(self) -> None:
        """Say that something has changed; returns at once."""
        self._changed.set()

    def close(self, patience: float = math.inf) -> Path:
        """Stop, write the last version, and return its path.

        Args:
            patience: Seconds that the last version may take.

        Raises:
            ReportError: It could not be written, or not in that time.
        """
        self._closing.set()
        self._changed.set()
        self._thread.join()
        self._write(running=False, patience=patience)
        return self._storage.sweep(self._sweep.name).report

    def _keep(self) -> None:
        first = True
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            # A sweep that ends at once has its last version alone.
            if self._closing.wait(min(self._seconds, _FIRST_SECONDS) if first else 0.0):
                return
            first = False
            started = time.monotonic()
            try:
                self._write(running=True)
            except ReportError as error:
                self.error = error  # the next version, and close(), try again
            # A large sweep's report takes a while to draw: at most a twentieth of the time goes into it.
            self._closing.wait(max(self._seconds, 20 * (time.monotonic() - started)))

    def _write(self, running: bool, patience: float = math.inf) -> None:
        try:
            self._write_elsewhere(running, patience)
        except OSError as error:  # no room for the request, or no process to be had
            raise ReportError(f"the report could not be written: {error}") from error

    def _write_elsewhere(self, running: bool, patience: float) -> None:
        with tempfile.TemporaryFile() as request:
            pickle.dump(plugins.loaded(), request)
            pickle.dump((self._sweep, self._storage, self._command, running), request)
            request.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator.report.keeper"],
                stdin=request,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the sweep, which then closes this
            )
        until, late = time.monotonic() + patience, False
        while True:
            try:
                _, complaint = process.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                late = time.monotonic() > until
                if late or (running and self._closing.is_set()):
                    process.kill()  # the last version takes the place of one before
        if late:
            raise ReportError(f"the report was not written anew, which takes more than {patience:g} seconds now")
        if process.returncode and not (running and self._closing.is_set()):
            reason = last_line(complaint) or f"its process ended with {process.returncode}"
            raise ReportError(f"the report could not be written: {reason}")


def _main() -> None:
    """Write one version, as asked on standard input by the process that started this one."""
    from orchestrator.report.page import write_report  # here alone: the process that asks needs no Matplotlib

    request = sys.stdin.buffer
    plugins.load_plugins(pickle.load(request))
    sweep, storage, command, running = pickle.load(request)
    write_report(sweep, storage, command=command, running=running)


if __name__ == "__main__":
    _main()
