"""Who runs what: a note that each run of a sweep keeps beside its sign of life, for others who share its machines."""

from __future__ import annotations

import getpass
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.storage.files import Line, ResultError, printable, read_stored, write_bytes
from orchestrator.storage.layout import Storage, folders
from orchestrator.storage.leases import free, latest_lease

_NOTE, _GIVE_WAY = "run.json", "give-way"
_MOST_BYTES = 2**16
MOST_USER, MOST_PLACE = 200, 300
_Amount = Annotated[float, Field(ge=0.0, le=1e12)]
_Count = Annotated[int, Field(ge=0, le=10**12)]
"""A note is anybody's: a number without a bound would be hundreds of digits in everybody's `idp status`."""


class RunNote(BaseModel):
    """What a run says of itself, `working/RUN/run.json`.

    Attributes:
        sweep: Name of its sweep.
        user: Who has started it.
        host: The machine of its driver.
        job: Its job in Ray's or Slurm's list, empty for none.
        cluster: The Ray cluster whose machines it shares with other runs; empty where it has machines to itself.
        priority: `resources.priority`.
        cpus: What one trial asks for.
        gpus: What one trial asks for.
        accelerator: The model of GPU that it asks for, empty for any.
        most_cpus: `resources.at_most.cpus`.
        most_gpus: `resources.at_most.gpus`.
        total: Trials of the sweep.
        done: How many of them have ended well.
        failed: How many have FAILED in this run.
        running: How many processes work.
        wants: How many trials it could work on at once: those that run, and those that wait.
        used: Devices times seconds that it has had, older ones counting less.
        epochs: Epochs that its trials have done since it began.
        began: When, in seconds since 1970 by the driver's clock.
        moved: When a trial last finished an epoch or ended, or the first began after none had run, by the same clock.
        written: When this was written, by the same clock.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    sweep: Line = Field(max_length=200)
    user: Line = Field(max_length=MOST_USER)
    host: Line = Field("", max_length=MOST_PLACE)
    job: Line = Field("", max_length=MOST_PLACE)
    cluster: Line = Field("", max_length=MOST_PLACE)
    priority: int = Field(0, ge=-1000, le=1000)
    cpus: _Amount = 1.0
    gpus: _Amount = 0.0
    accelerator: Line = Field("", max_length=MOST_PLACE)
    most_cpus: float | None = Field(None, ge=0.0)
    most_gpus: float | None = Field(None, ge=0.0)
    total: _Count = 0
    done: _Count = 0
    failed: _Count = 0
    running: _Count = 0
    wants: _Count = 0
    used: _Amount = 0.0
    epochs: _Count = 0
    began: _Amount = 0.0
    moved: _Amount = 0.0
    written: _Amount = 0.0


@dataclass(frozen=True)
class Run:
    """A run of a sweep, as somebody else sees it.

    Attributes:
        path: Its folder below `working`, with its lease.
        note: What it says of itself.
        silent_seconds: How long ago it gave a sign of life, by this machine's clock.
        lost: Whether it has given no sign of life for so long that it is hardly alive.
        still_seconds: For how long trials of it run of which none has finished an epoch or ended; 0 where none runs.
    """

    path: Path
    note: RunNote
    silent_seconds: float
    lost: bool
    still_seconds: float = 0.0

    @property
    def name(self) -> str:
        """What tells it from others."""
        return self.path.name


def user_here() -> str:
    """Return who starts a run: IDP_USER, which `idp submit` sets, or else the login name."""
    if name := os.environ.get("IDP_USER", "").strip():
        return _fitting(name, MOST_USER)
    try:
        return _fitting(getpass.getuser(), MOST_USER)
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


def job_here() -> str:
    """Return the job that this process is, as Slurm or Ray name it; empty for none."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    slurm = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return _fitting(f"slurm {slurm}" if slurm else os.environ.get("IDP_JOB", ""), MOST_PLACE)


def host_here() -> str:
    """Return this machine's name."""
    return _fitting(socket.gethostname(), MOST_PLACE)


def _fitting(text: str, most: int) -> str:
    """Return what of a text a note can hold: the environment may have any bytes, and escaped they are more."""
    return printable(text)[:most]


def write_note(mark: Path, note: RunNote) -> None:
    """Write what a run says of itself beside its sign of life."""
    write_bytes(mark / _NOTE, note.model_dump_json().encode(), durable=False)


def runs(storage: Storage) -> list[Run]:
    """Return the runs that work in a storage, the first to begin first; changes nothing.

    A run that has ended without a word is left out where this machine knows it.
    """
    found = []
    for mark in folders(storage.working):
        try:
            written = (mark / _NOTE).stat().st_mtime_ns
            note = RunNote.model_validate_json(read_stored(mark / _NOTE, _MOST_BYTES))
        except (OSError, ResultError, ValidationError, ValueError):
            continue  # making a dataset, or just ending
        held = latest_lease(mark)
        if held is None or free(held):
            continue
        # A driver that hangs writes no note, while the thread that shows its life goes on: two times of one clock.
        since_written = max(0.0, (held.touched - written) / 1e9)
        still = max(0.0, note.written - note.moved) + since_written if note.running else 0.0
        silent = max(0.0, time.time() - held.touched / 1e9)
        found.append(Run(mark, note, silent, held.lost(silent), still))
    return sorted(found, key=lambda run: (run.note.began, run.name))


def ask_to_give_way(mark: Path, trial_id: str) -> None:
    """Ask the process that works on a trial for a run to give it back after its present epoch."""
    folder = mark / _GIVE_WAY
    folder.mkdir(exist_ok=True)
    (folder / trial_id).touch()


def stop_asking(mark: Path, trial_id: str) -> None:
    """Let a trial be that was asked to give way, or has given way."""
    (mark / _GIVE_WAY / trial_id).unlink(missing_ok=True)


def asked_to_give_way(mark: Path, trial_id: str) -> bool:
    """Return whether a trial is to be given back."""
    return (mark / _GIVE_WAY / trial_id).exists()
