"""How a storage stands, for whoever watches: its trials by state, and the room that is left."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Patience, free
from orchestrator.storage.trial_directory import TrialDirectory

STATES = ("completed", "out_of_memory", "failed", "cancelled", "running", "waiting")


@dataclass(frozen=True)
class Room:
    """What a file system has.

    Attributes:
        bytes: How large it is.
        free_bytes: What is left for who is not root.
        files: How many files it can hold; 0 where it knows no such number.
        free_files: How many more.
    """

    bytes: int
    free_bytes: int
    files: int
    free_files: int


def room(storage: Storage) -> Room:
    """Return what the storage's file system has.

    Raises:
        OSError: There is no storage, or its server does not answer.
    """
    found = os.statvfs(storage.path)
    size, left = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    return Room(size, left, found.f_files, found.f_favail)


class Census:
    """Counts the trials of a storage, again and again; reads a result once, as long as it does not change.

    Args:
        storage: The storage directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, tuple[tuple[int, int], str]] = {}
        self._patience = Patience()

    def states(self) -> dict[str, int]:
        """Return how many trials are in each state; one that nobody works on and that has no result is waiting."""
        counts = Counter(self._state(trial) for trial in self._storage.trial_folders())
        return {state: counts[state] for state in STATES}

    def _state(self, trial: TrialDirectory) -> str:
        ended = self._ended(trial)
        if ended in ("completed", "out_of_memory"):
            return ended
        held = trial.latest_lease()
        if held is not None and not free(held) and not self._patience.expired(trial.path, held):
            return "running"
        return ended

    def _ended(self, trial: TrialDirectory) -> str:
        """Return how a trial has ended; waiting where it has not."""
        version = trial.result_version()
        if version is None:
            return "waiting"
        known = self._known.get(trial.name)
        if known is None or known[0] != version:
            result = trial.known_result()
            known = (version, result.status.lower() if result is not None else "waiting")
            self._known[trial.name] = known
        return known[1]
