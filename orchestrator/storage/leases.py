"""Leases: who works on a trial, so that no two processes do, on any shared file system.

A lease is a file `.lease-N` in the trial directory, made by `link`, which every file system makes for one process only.
The highest N is the owner's. Taking a trial over means making N + 1; an owner that was asleep finds N + 1 there and
has lost. Publishing a result makes N + 1 too, so that of an owner and whoever takes over exactly one succeeds.

No clock is compared: the owner touches its file, and whoever waits looks whether the file's time changes while
`Held.expiry_seconds` pass on its own clock. An owner on the same machine whose process is gone has lost at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.environment import number_from_environment
from orchestrator.storage.files import ResultError, printable, read_stored

EXPIRY_SECONDS = number_from_environment("IDP_LEASE_SECONDS", 60.0)
"""An owner that gives no sign of life for so long has lost its lease; it is in the lease, for others may wait less."""

_LOST_AFTER = 10.0
"""A run without a sign of life for so many times that long is told of as lost, and its mark removed by the next one."""

_MOST_SECONDS = 86400.0
"""What a lease may ask for: it is anybody's file, and damaged it would keep its trial for ever."""

_FILE = re.compile(r"\.lease-([0-9]{6,200})")
_MOST_BYTES = 2**16


class LeaseLost(RuntimeError):
    """Somebody else took the trial over: what this process has made is not to be kept."""


class TrialHeld(RuntimeError):
    """Another process works on the trial."""


@dataclass(frozen=True)
class Owner:
    """A process that works on a trial.

    Attributes:
        campaign: The run of a sweep that it works for, which may take over from its own dead processes at once.
        host: Its machine.
        boot: The machine's start and the process namespace, in which `pid` means something.
        pid: Its process.
        started: When the process started, in ticks since boot, so that a pid that is used again is not taken for it.
        expiry_seconds: Its `EXPIRY_SECONDS`; 0 where it has not said.
    """

    campaign: str
    host: str
    boot: str
    pid: int
    started: str
    expiry_seconds: float = 0.0

    @classmethod
    def here(cls, campaign: str = "") -> Owner:
        """Return this process."""
        pid = os.getpid()
        return cls(campaign or uuid.uuid4().hex, socket.gethostname(), _boot(), pid, _started(pid), EXPIRY_SECONDS)

    def gone(self) -> bool:
        """Return True where this machine knows that the process has ended; False where it can't know."""
        return bool(self.boot) and self.boot == _boot() and _started(self.pid) != self.started


@dataclass(frozen=True)
class Held:
    """The latest lease of a trial, as somebody else sees it.

    Attributes:
        number: Its number.
        owner: Whose it is; None where it was given back.
        touched: The file's time, which says nothing but whether it has changed.
    """

    number: int
    owner: Owner | None
    touched: int

    @property
    def expiry_seconds(self) -> float:
        """How long it may be unchanged: by its owner's setting, or this process's where that is longer."""
        return max(EXPIRY_SECONDS, self.owner.expiry_seconds if self.owner else 0.0)

    def lost(self, silent_seconds: float) -> bool:
        """Return whether a run with this lease is hardly alive that has given no sign of life for so long."""
        return silent_seconds > _LOST_AFTER * self.expiry_seconds


def latest_lease(directory: Path) -> Held | None:
    """Return the latest lease of a trial, None where there has never been one."""
    while True:
        numbers = _numbers(directory)
        if not numbers:
            return None
        path = _path(directory, numbers[-1])
        try:
            touched = path.lstat().st_mtime_ns
            content = b"" if path.is_symlink() else read_stored(path, _MOST_BYTES)
        except FileNotFoundError:
            continue  # a newer one has just replaced it
        except ResultError:
            content = b""  # a folder, a pipe or a device of that name is nobody's
        return Held(numbers[-1], owner_of(content), touched)


def free(held: Held | None, campaign: str = "") -> bool:
    """Return True where nobody works on the trial, as far as can be told without waiting.

    Args:
        held: What `latest_lease` saw.
        campaign: A run of a sweep that has nobody on this trial any more.
    """
    return held is None or held.owner is None or held.owner.campaign == campaign or held.owner.gone()


class Lease:
    """A lease that this process has taken.

    Use it as `with lease.beating(): ...`, ask `check` before each write and `renew` it before the result.
    """

    def __init__(self, directory: Path, owner: Owner, number: int) -> None:
        self.directory, self.owner, self.number = Path(directory), owner, number

    @classmethod
    def take(cls, directory: Path, owner: Owner, instead_of: Held | None) -> Lease | None:
        """Take a trial, or return None where somebody was faster.

        Args:
            directory: The trial directory.
            owner: This process.
            instead_of: What `latest_lease` saw and found `free`, or saw unchanged for its `expiry_seconds`.
        """
        lease = cls(directory, owner, 0 if instead_of is None else instead_of.number)
        try:
            lease._advance()
        except LeaseLost:
            return None
        return lease

    def _advance(self) -> None:
        """Make the file of the next number; raise `LeaseLost` where another process has made it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / f".lease.{uuid.uuid4().hex[:12]}.tmp"
        try:
            temporary.write_text(json.dumps(asdict(self.owner)))
            try:
                os.link(temporary, _path(self.directory, self.number + 1))
            except FileExistsError:
                # NFS repeats a request whose answer was lost, and finds its own link there.
                if temporary.stat().st_nlink != 2:
                    raise LeaseLost(self._lost()) from None
        finally:
            temporary.unlink(missing_ok=True)
        numbers = _numbers(self.directory)
        if numbers[-1] > self.number + 1:
            # The number was used and swept up before, so that link did not notice; the highest is never swept up.
            _path(self.directory, self.number + 1).unlink(missing_ok=True)
            raise LeaseLost(self._lost())
        self.number += 1
        for number in numbers[:-1]:
            with suppress(OSError):  # a folder of that name is in nobody's way
                _path(self.directory, number).unlink(missing_ok=True)

    def _lost(self) -> str:
        return f"{self.directory.name}: another process has taken this trial over"

    def check(self) -> None:
        """Raise `LeaseLost` where another process has taken the trial over."""
        if _numbers(self.directory)[-1:] != [self.number]:
            raise LeaseLost(self._lost())

    def renew(self) -> None:
        """Take the next number, so that what is written right after it is ours; raise `LeaseLost` where it is not."""
        self._advance()

    def release(self) -> None:
        """Give the trial back."""
        try:
            # Truncating needs no room, so that it works on a full disk.
            os.truncate(_path(self.directory, self.number), 0)
        except FileNotFoundError:
            return  # it was taken over, there is nothing to give back

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Show signs of life until the end of the block, from a thread, however long an epoch takes."""
        stop = threading.Event()

        def beat() -> None:
            while True:
                # Taken over, or the file system is away: `check` and `renew` find out.
                with suppress(OSError):
                    os.utime(_path(self.directory, self.number))
                if stop.wait(EXPIRY_SECONDS / 6):
                    return

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def take(directory: Path, owner: Owner, instead_of: int = 0) -> Lease:
    """Take a trial that nobody works on.

    Args:
        directory: The trial directory.
        owner: This process.
        instead_of: Number of a lease whose owner has given no sign of life for its `expiry_seconds`.

    Raises:
        TrialHeld: Another process has it.
    """
    held = latest_lease(directory)
    lease = None
    if free(held, owner.campaign) or (held is not None and held.number == instead_of):
        lease = Lease.take(directory, owner, held)
    if lease is None:
        found = latest_lease(directory)
        raise TrialHeld(f"{directory.name}: {holder(found)} works on this trial")
    return lease


def holder(held: Held | None) -> str:
    """Return who holds a lease, in words."""
    owner = held.owner if held else None
    return f"process {owner.pid} on {owner.host}" if owner else "another process"


def silent(directories: Iterable[Path]) -> Iterator[tuple[Path, Held]]:
    """Yield the trials whose owners are gone without having given them back, each with its lease.

    After a power cut nothing but time tells an owner that is gone from one on another machine: as long as leases are
    held that give no sign of life, this waits for one, their `expiry_seconds` at most.

    Args:
        directories: Trial directories.
    """
    patience = Patience()
    first = {directory: latest_lease(directory) for directory in directories}
    waiting = {directory: held for directory, held in first.items() if held is not None and not free(held)}
    while waiting:
        for directory, seen in list(waiting.items()):
            now = latest_lease(directory)
            if now is None or free(now) or (now.number, now.touched) != (seen.number, seen.touched):
                del waiting[directory]  # given back, or alive
            elif patience.expired(directory, now):
                del waiting[directory]
                yield directory, now
        if waiting:
            time.sleep(0.5)


@contextmanager
def at_work(folder: Path) -> Iterator[Path]:
    """Show by a lease in a folder, until the end of the block, that this process works though it holds no trial.

    Marks of runs that are lost are removed: nobody else can, where another machine or another start of it left them.

    Yields:
        The folder of the lease, in which others may be told more.
    """
    mark = folder / uuid.uuid4().hex[:12]
    lease = take(mark, Owner.here())
    _remove_lost(mark)
    try:
        with lease.beating():
            yield mark
    finally:
        # A storage that has gone away meanwhile has its own story to tell.
        shutil.rmtree(mark, ignore_errors=True)
        with suppress(OSError):
            mark.parent.rmdir()


def _remove_lost(mark: Path) -> None:
    """Remove the marks beside a new one whose runs are lost, by the times of one clock: the file system's."""
    here = latest_lease(mark)
    for other in mark.parent.iterdir():
        held = None if other.is_symlink() else latest_lease(other)
        if here is not None and held is not None and held.lost((here.touched - held.touched) / 1e9):
            shutil.rmtree(other, ignore_errors=True)  # another run that begins may have done so


def give_back(directory: Path, campaign: str) -> None:
    """Give a trial back for a process of the same run of a sweep, which is about to end.

    Whoever waits for the trial can have it at once; should the process live on, it finds out when it next writes.

    Args:
        directory: The trial directory.
        campaign: The run of the sweep.
    """
    # Where the storage is away, the lease expires.
    with suppress(OSError):
        held = latest_lease(directory)
        if held is not None and held.owner is not None and held.owner.campaign == campaign:
            os.truncate(_path(directory, held.number), 0)


class Patience:
    """Remembers what leases looked like, to tell those whose owners give no sign of life any more."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}

    def expired(self, directory: Path, held: Held) -> bool:
        """Return True where the lease has not changed since this was first asked, its `expiry_seconds` ago or more."""
        state, now = (held.number, held.touched), time.monotonic()
        before = self._seen.get(directory)
        if before is None or before[0] != state:
            self._seen[directory] = (state, now)
            return False
        return now - before[1] >= (held.expiry_seconds if self._seconds is None else self._seconds)


def _path(directory: Path, number: int) -> Path:
    return directory / f".lease-{number:06d}"


def _numbers(directory: Path) -> list[int]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = sorted(int(found.group(1)) for name in names if (found := _FILE.fullmatch(name)))
    # Other spellings of a number are no leases: nobody would find the file again.
    return [number for number in numbers if _path(directory, number).name in names]


def owner_of(content: bytes) -> Owner | None:
    """Return whose a lease is that holds this; None for nobody's."""
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None  # given back, or cut short by a power failure, which no owner survives
    words = (owner.campaign, owner.host, owner.boot, owner.started)
    if not all(isinstance(word, str) for word in words) or type(owner.pid) is not int or owner.pid < 1:
        return None
    if type(owner.expiry_seconds) not in (int, float) or not owner.expiry_seconds >= 0:
        return None
    return replace(owner, host=printable(owner.host), expiry_seconds=min(owner.expiry_seconds, _MOST_SECONDS))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, empty where there is none (or only its exit status is left)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
