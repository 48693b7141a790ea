"""TensorBoard: a folder of event files a trial, which `tensorboard --logdir` shows, where IDP_TENSORBOARD names one.

A view like MLflow's, made of the same numbers: delete the folder, and `idp sync` makes it again. It stands in the
environment, and so in no sweep and no trial's identity.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import TrackingError
from orchestrator.storage.layout import Storage
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tracking.tracker import Event
from orchestrator.tracking.trial_run import trial_run
from orchestrator.words import trial_name

VARIABLE = "IDP_TENSORBOARD"
RESULT = "result/"
"""Stands before the names of what there is once; what there is of every epoch begins with "epoch/", as in MLflow."""
_COMPARED = ("test_success_rate", "test_spl", "train_seconds", "forward_seconds", "backward_seconds", "peak_bytes")
_FILES = "events.out.tfevents.*"


class EventFiles:
    """Keeps the event files of a run's trials up to date; a folder that can't be written is told once, and left.

    Args:
        folder: Where they go, a folder a trial in one that has the sweep's name; None for nowhere.
        sweep: The sweep.
        storage: The storage directory.
        say: Is told what is damaged, and that the folder can't be written.

    Raises:
        TrackingError: There is a file at its place.
    """

    def __init__(
        self, folder: Path | None, sweep: SweepSpec, storage: Storage, say: Callable[[str], object] = str
    ) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise TrackingError(f"{VARIABLE}={folder}: expected a folder, or nothing there yet")
        self.folder, self._sweep, self._storage, self._say = folder, sweep, storage, say
        self._written: dict[str, _Written] = {}

    @classmethod
    def of_environment(cls, sweep: SweepSpec, storage: Storage, say: Callable[[str], object] = str) -> Self:
        """Return those in the folder that IDP_TENSORBOARD names."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named) if named else None, sweep, storage, say)

    def note(self, trial: PlannedTrial, event: Event) -> None:
        """Write what the trial's directory has and its event file has not.

        Args:
            trial: The trial.
            event: What happened to it; what it had before it "started" is of an earlier attempt, and goes.
        """
        if self.folder is None:
            return
        written = self._written.pop(trial.trial_id, None)
        if written is not None and event == "started":
            written.close()
            return
        result = self._storage.results([trial.trial_id]).get(trial.trial_id) if event == "finished" else None
        try:
            shown = trial_run(trial, self._storage, result, self._sweep.label, self._say, epochs=event != "started")
            if shown.epochs or shown.numbers:
                written = written or _Written(self.folder / self._sweep.name / _plain(shown.name, trial))
                written.write(shown.epochs, shown.numbers, shown.params)
        except OSError as error:
            self._say(f"{VARIABLE}: {self.folder}: {error.strerror or error}; the run goes on without it")
            self.folder = None
            return
        except Exception as error:  # of this trial alone; no picture of a trial may end a run
            self._say(f"{trial_name(trial)}: not in {self.folder}: {type(error).__name__}: {error}")
        if written is not None:
            if event == "finished":
                written.close()
            else:
                self._written[trial.trial_id] = written

    def close(self) -> None:
        """Close the files of trials that have not ended."""
        while self._written:
            self._written.popitem()[1].close()


class _Written:
    """One trial's event file, anew: what was in its folder before goes."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(_FILES):
            old.unlink()
        # TensorBoard goes on from file to file by their names.
        name = _FILES.replace("*", f"{time.time():017.6f}.{socket.gethostname()}")
        self._file = RecordWriter(str(folder / name))
        self._epochs: set[int] = set()
        self._event(time.time(), file_version="brain.Event:2")

    def write(self, epochs: Mapping[int, list[Any]], numbers: list[Any], params: Mapping[str, str]) -> None:
        """Add the epochs that are missing, and how it ended, where it has."""
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import hparams

        for number in sorted(set(epochs) - self._epochs):
            for metric in epochs[number]:
                self._scalar(metric.key, metric)
            self._epochs.add(number)
        for metric in numbers:
            self._scalar(RESULT + metric.key, metric)
        if numbers:
            there = [metric.key for metric in numbers]
            compared = [name for name in _COMPARED if name in there] or [name for name in there if "/" in name]
            settings = {name: as_number(value) for name, value in params.items()}
            for summary in hparams(settings, {RESULT + name: 0.0 for name in compared}):
                self._event(numbers[0].timestamp / 1000, summary=Summary(value=summary.value))
        self._file.flush()

    def _scalar(self, tag: str, metric: Any) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=metric.value)])
        self._event(metric.timestamp / 1000, step=metric.step, summary=summary)

    def _event(self, when: float, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event as Entry

        self._file.write(Entry(wall_time=when, **content).SerializeToString())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _plain(name: str, trial: PlannedTrial) -> str:
    """Return the name of a trial's folder: its words, which TensorBoard shows, and its identity."""
    return f"{re.sub(r'[^A-Za-z0-9=,._+-]+', '_', name).strip('_')[:120]}-{trial.trial_id[:8]}"


def as_number(value: str) -> float | str:
    """Return a setting as a number where it is one, so that pages have an axis for it."""
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value
