"""How runs share a cluster: who may work on how many trials at once.

No run rules over another. Each says what it wants in a note in the storage, reads what the others say, and computes the
same division of the machines; then it keeps to its own part: it starts no more trials, or asks some to give way after
their present epoch.

The division hands out trial after trial. The next one goes to a run of the highest priority that still wants one; among
those to the user who has least so far, and among a user's runs to the one that has least. "Least" is the larger of the
shares of processors and of GPUs (dominant resource fairness, Ghodsi et al. 2011). Where that is a tie, as for the last
device of three that two users want, who has had less of the cluster lately gets it, so that in time both do.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.cluster.resources import model_of, models_of
from orchestrator.errors import ClusterError
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Patience, latest_lease
from orchestrator.storage.runs import Run, RunNote, ask_to_give_way, runs, stop_asking, write_note
from orchestrator.sweep.limits import Resources

LOOK_SECONDS = 5.0
"""Between two looks at what others say, and at most between two notes of one's own."""

TURN_SECONDS = 600.0
"""By so many device-seconds another must have had less, for a tie to go to him: no turn is shorter."""

_HALF_LIFE_SECONDS = 3600.0
_TINY = 1e-9

Machines = Sequence[Mapping[str, float]]


class _Free:
    """What is free of a machine.

    Args:
        machine: What it has.
    """

    def __init__(self, machine: Mapping[str, float]) -> None:
        self.cpus, self.models = machine.get("CPU", 0.0), models_of(machine)
        self.gpus = [1.0] * int(machine.get("GPU", 0.0))

    def _devices(self, note: RunNote) -> list[int] | None:
        """Return the GPUs that a trial would have, the fullest that does for a part of one; None without room."""
        part = min(note.gpus, 1.0)
        fits = sorted((free, at) for at, free in enumerate(self.gpus) if free >= part - _TINY)
        wanted = math.ceil(note.gpus - _TINY)
        return [at for _, at in fits[:wanted]] if len(fits) >= wanted else None

    def has_room(self, note: RunNote) -> bool:
        """Return whether a trial of a run fits."""
        right = not note.accelerator or note.accelerator in self.models
        return right and self.cpus >= note.cpus - _TINY and self._devices(note) is not None

    def take(self, note: RunNote) -> None:
        """Give a trial of a run what it asks for."""
        self.cpus -= note.cpus
        for at in self._devices(note) or ():
            self.gpus[at] -= min(note.gpus, 1.0)


def division(notes: Mapping[str, RunNote], machines: Machines) -> dict[str, int]:
    """Return how many trials each run may work on at once.

    Args:
        notes: What the runs of one cluster say, by their names.
        machines: What each machine has, e.g. {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}.
    """
    free = [_Free(machine) for machine in machines]
    whole = [max(sum(machine.get(kind, 0.0) for machine in machines), _TINY) for kind in ("CPU", "GPU")]
    asked_for = {note.accelerator for note in notes.values() if note.wants} - {""}
    given = dict.fromkeys(notes, 0)
    wanting = {name for name, note in notes.items() if note.wants > 0}
    had: dict[str, float] = defaultdict(float)
    for note in notes.values():
        had[note.user] += note.used

    def share(names: Sequence[str]) -> float:
        cpus = sum(given[name] * notes[name].cpus for name in names)
        gpus = sum(given[name] * notes[name].gpus for name in names)
        return round(max(cpus / whole[0], gpus / whole[1]), 9)

    of_user: dict[str, list[str]] = defaultdict(list)
    of_sweep: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, note in sorted(notes.items()):
        of_user[note.user].append(name)
        of_sweep[note.user, note.sweep].append(name)

    def turn(name: str) -> tuple[object, ...]:
        note = notes[name]
        turns = math.floor(had[note.user] / TURN_SECONDS)
        return -note.priority, share(of_user[note.user]), turns, note.user, share([name]), note.began, name

    while wanting:
        name = min(wanting, key=turn)
        note = notes[name]
        together = of_sweep[note.user, note.sweep]
        cpus = sum(given[other] * notes[other].cpus for other in together) + note.cpus
        gpus = sum(given[other] * notes[other].gpus for other in together) + note.gpus
        most = [math.inf if limit is None else limit + _TINY for limit in (note.most_cpus, note.most_gpus)]
        within = cpus <= most[0] and gpus <= most[1]
        # Whoever takes any model leaves those that others ask for by name to the last.
        room = [machine for machine in free if machine.has_room(note)]
        if not within or not room:
            wanting.discard(name)  # there will not be more room
            continue
        min(room, key=lambda machine: bool(machine.models & asked_for)).take(note)
        given[name] += 1
        if given[name] >= note.wants:
            wanting.discard(name)
    return given


def most_at_once(resources: Resources, request: Mapping[str, float]) -> float:
    """Return how many trials `resources.at_most` allows at once; infinity where it says nothing.

    Args:
        resources: What the sweep says.
        request: What one trial asks of Ray.

    Raises:
        ClusterError: It does not allow a single one.
    """
    most = math.inf
    if resources.at_most is not None:
        limits = (("cpus", resources.at_most.cpus, "cpu"), ("gpus", resources.at_most.gpus, "gpu"))
        for name, limit, asked in limits:
            if limit is None or not (each := request.get(asked, 0.0)):
                continue
            if each > limit:
                raise ClusterError(f"resources.at_most.{name} is {limit:g}, but one trial needs {each:g}")
            most = min(most, math.floor(limit / each + _TINY))
    return most


class Sharing:
    """A run's part in sharing a cluster; used from one thread, the driver's.

    Attributes:
        mark: The folder of this run's sign of life, where its trials look whether they are to give way.
        note: What this run says of itself.

    Args:
        storage: The storage directory, in which runs see each other.
        mark: The folder of this run's sign of life.
        note: What it says of itself, to begin with.
    """

    def __init__(self, storage: Storage, mark: Path, note: RunNote) -> None:
        self.mark = mark.resolve()
        self._storage, self._patience = storage, Patience()
        self._machines: Callable[[], Machines] = list
        self._requests: Callable[[], Sequence[Mapping[str, float]]] = list
        self._resources, self._most, self._ahead = Resources(), math.inf, True
        self._asked: set[str] = set()
        self._looked = self._counted = -math.inf
        self._others: dict[str, RunNote] = {}
        self._allowed = math.inf
        now = time.time()
        self.note = note.model_copy(update={"began": now, "moved": now})
        self._write()

    def begins(
        self,
        resources: Resources,
        requests: Callable[[], Sequence[Mapping[str, float]]],
        machines: Callable[[], Machines],
        ahead: bool = True,
    ) -> None:
        """Note what the trials of the round that begins ask for, and who knows the machines there are.

        Args:
            resources: What the sweep says.
            requests: Returns what trials that have not ended ask of Ray, each request once, the dearest first.
            machines: Returns the machines there are.
            ahead: Whether trials may be handed out for which there is no room yet.
        """
        self._resources, self._requests, self._machines, self._ahead = resources, requests, machines, ahead
        self._looked = -math.inf
        self._note_request()

    def _note_request(self) -> None:
        """Note what one trial asks for: the dearest stands for all, so that a run never takes more than it says."""
        if requests := self._requests():
            self._most = min(most_at_once(self._resources, request) for request in requests)
            dearest = requests[0]
            self._say(cpus=dearest["cpu"], gpus=dearest.get("gpu", 0.0), accelerator=model_of(dearest))

    def moved(self, epochs: int = 0, done: int = 0, failed: int = 0) -> None:
        """Note that trials have done epochs, or ended."""
        note = self.note
        counts = {"epochs": note.epochs + epochs, "done": note.done + done, "failed": note.failed + failed}
        self._say(**counts, moved=time.time())

    def allowed(self, running: int, waiting: int) -> float:
        """Return how many trials may run at once now.

        Args:
            running: How many trials have a process.
            waiting: How many have none yet.
        """
        now = time.monotonic()
        self._count(now)
        if running and not self.note.running:
            self._say(moved=time.time())  # what it has waited for until now was no standing still
        if self.note.wants and not running + waiting:
            self._looked = -math.inf  # the last look of a round: tests or datasets may take hours before the next
        self._say(running=running, wants=running + waiting)
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._note_request()
            self._write()
            with suppress(OSError):  # the storage is away for a moment: what was so stays so
                self._others = self._of_others()
            self._allowed = self._part()
        return self._allowed

    def ask(self, trial_ids: Sequence[str]) -> None:
        """Ask these trials, and no others, to give way after their present epoch."""
        if set(trial_ids) == self._asked:
            return
        with suppress(OSError):  # then they go on for now
            for trial_id in self._asked - set(trial_ids):
                stop_asking(self.mark, trial_id)
            for trial_id in set(trial_ids) - self._asked:
                ask_to_give_way(self.mark, trial_id)
            self._asked = set(trial_ids)

    def others(self) -> str:
        """Return who else works on the cluster, in words."""
        return ", ".join(sorted({f"{note.user} ({note.sweep})" for note in self._others.values()})) or "others"

    def _part(self) -> float:
        if not self._others and self._ahead:
            return self._most  # and Ray knows best what fits, also on machines that are yet to come
        notes = {**self._others, self.mark.name: self.note}
        return min(self._most, division(notes, self._machines())[self.mark.name])

    def _of_others(self) -> dict[str, RunNote]:
        """Return what the other living runs of the same cluster say."""
        if not self.note.cluster:
            return {}
        return {run.name: run.note for run in runs(self._storage) if self._is_other(run)}

    def _is_other(self, run: Run) -> bool:
        if run.note.cluster != self.note.cluster or run.name == self.mark.name or not run.note.wants:
            return False
        held = latest_lease(run.path)
        return held is not None and not self._patience.expired(run.path, held)

    def _count(self, now: float) -> None:
        """Add what has been used since the last time."""
        passed = now - self._counted if math.isfinite(self._counted) else 0.0
        self._counted = now
        devices = self.note.gpus or self.note.cpus
        faded = self.note.used * 0.5 ** (passed / _HALF_LIFE_SECONDS)
        self._say(used=faded + passed * devices * self.note.running)

    def _say(self, **fields: float | str) -> None:
        self.note = self.note.model_copy(update=fields)

    def _write(self) -> None:
        self._say(written=time.time())
        with suppress(OSError):  # a full disk ends trials, whose results can't be kept, and not the run for a note
            write_note(self.mark, self.note)
