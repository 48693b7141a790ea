"""What machines without a shared file system share through object storage: finished trials, datasets, and leases.

Each machine has a storage of its own, on its own disk, and all that is said of one holds there. The bucket holds whole
things: a trial that has ended is one object, as is a dataset, a test on further maps, and the lease of a trial that a
machine works on. They are written on condition, so that of two machines exactly one gets a trial, and no result that
stands is replaced.

    leases/ID              who works on a trial; empty where it was given back; written anew as a sign of life
    trials/ID.tar          a trial that has ended
    evaluations/ID/NAME    its tests on further maps
    datasets/NAME.tar      a dataset

No clock is compared: whoever waits looks whether a lease's ETag changes while `EXPIRY_SECONDS` pass on its own clock,
its owner's where those are more.
A trial's result is written before its lease goes, and looked for after a lease is taken: no trial is run that is done.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from datagen.storage.dataset import is_complete
from datagen.storage.manifest import DatasetError
from datagen.tasks.registry import DatasetSpec, dataset_id
from orchestrator.errors import ResultError, UserError
from orchestrator.storage import leases
from orchestrator.storage.bucket import Bucket, BucketError, Entry, TooLarge
from orchestrator.storage.code import code_hash
from orchestrator.storage.evaluations import EvaluationResult, write_evaluation
from orchestrator.storage.files import parsed, printable, read_stored
from orchestrator.storage.layout import Storage, is_dataset_id
from orchestrator.storage.leases import LeaseLost, Owner, TrialHeld, owner_of
from orchestrator.storage.parcels import packed_dataset, packed_trial, place_dataset, place_trial, unpacked_trial
from orchestrator.storage.results import TrialResult, is_trial_id
from orchestrator.words import first_line

_TIMES = 5.0
EXPIRY_SECONDS = _TIMES * leases.EXPIRY_SECONDS
"""A lease that was not written anew for so long is lost; longer than in a storage: the internet has worse days."""

LOOK_SECONDS = EXPIRY_SECONDS / 30
"""Between two looks at the bucket, which are paid for."""

_NEVER = -float("inf")


class Mirror:
    """A storage's part in a bucket; what goes wrong on the way is told, and stops no run.

    Args:
        bucket: The bucket.
        storage: The storage on this machine.
        say: Is told what goes wrong.
        retime: Whether only times count that a device's only trial took.
    """

    def __init__(self, bucket: Bucket, storage: Storage, say: Callable[[str], object], retime: bool = False) -> None:
        self._bucket, self._storage, self._say, self._retime = bucket, storage, say, retime
        self._owner, self._beats = Owner.here(), 0
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}
        self._leases: dict[str, Entry] = {}
        self._unchanged_since: dict[tuple[str, str], float] = {}
        self._owners: dict[str, Owner | None] = {}
        self._ended: dict[str, Entry] = {}
        self._judged: dict[str, str] = {}
        self._looked = self._away = _NEVER
        self._unsent: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    # Trials that have ended.

    def trials(self) -> list[str]:
        """Return the trials in the bucket; `BucketError` where it does not answer."""
        self._look(now=True)
        return sorted(self._ended)

    def fetch(self, trial_ids: Iterable[str], stale: bool = False) -> list[str]:
        """Put trials that have ended elsewhere into the storage, and return which.

        Args:
            trial_ids: Those that the storage lacks.
            stale: Also those that other code has made.
        """
        found = []
        with self._telling():
            self._look()
            for name in trial_ids:
                if name in self._ended and self._take_in(name, self._ended[name], stale):
                    found.append(name)
        return found

    def _take_in(self, trial_id: str, entry: Entry, stale: bool) -> bool:
        if self._judged.get(trial_id) == entry.etag:
            return False
        try:
            answer = self._bucket.get(f"trials/{trial_id}.tar")
            self._judged[trial_id] = entry.etag
            if answer is None:
                return False
            with unpacked_trial(trial_id, answer[0]) as (arrived, result):
                if not stale and not self._stands(result):
                    return False
                place_trial(arrived, result, self._storage.trial(trial_id), self._owner)
        except (ResultError, TrialHeld, LeaseLost, TooLarge) as error:
            self._judged[trial_id] = entry.etag
            self._say(f"{self._bucket.address}/trials/{trial_id}.tar: left alone: {error}")
            return False
        return True

    def _stands(self, result: TrialResult) -> bool:
        return result.stands(code_hash(), self._retime)

    def meet(self, trial_ids: Collection[str]) -> None:
        """Exchange what has ended of these trials, with their tests; `BucketError` where the bucket does not answer."""
        known = {name: self._storage.trial(name).whole_result() for name in trial_ids}
        stand = {name for name, result in known.items() if result is not None and self._stands(result)}
        there = set(self.trials())
        self.fetch(name for name in trial_ids if name not in stand)
        for name in stand - there:
            self._send(name)
        self.exchange_evaluations(trial_ids)

    def give(self, trial_ids: Iterable[str]) -> int:
        """Write trials that have ended into the bucket, as far as it lacks them; return how many that were."""
        there = self.trials()
        return sum(self._send(name, stale=True) for name in trial_ids if name not in there)

    def _send(self, trial_id: str, stale: bool = False) -> bool:
        """Write a trial; where it has not ended, give its lease back. One that can't be read is told of and kept."""
        with self._leaving_alone(f"trials/{trial_id}.tar"):
            return self._write(trial_id, stale)
        return False

    def _write(self, trial_id: str, stale: bool) -> bool:
        trial = self._storage.trial(trial_id)
        result = trial.whole_result()
        if result is None or not result.final or not (stale or self._stands(result)):
            self._release(trial_id)
            return False
        key, body = f"trials/{trial_id}.tar", packed_trial(trial)
        sent = self._bucket.put(key, body, instead_of="")
        if sent is None and (answer := self._bucket.get(key)) is not None and not self._good(trial_id, answer[0]):
            sent = self._bucket.put(key, body, instead_of=answer[1])
        with self._lock:
            held = self._held.pop(trial_id, None)
        if held is not None:
            self._bucket.remove(_lease(trial_id))  # whoever has it by now finds the result
        return sent is not None

    def _good(self, trial_id: str, body: bytes) -> bool:
        """Return whether what is in the bucket is as good as what this code makes."""
        try:
            with unpacked_trial(trial_id, body) as (_, result):
                return self._stands(result)
        except ResultError:
            return False

    # Who works on a trial.

    def free(self, trial_id: str) -> bool:
        """Return whether no other machine works on the trial, as far as is known."""
        with self._telling():
            self._look()
            entry = self._leases.get(trial_id)
            if trial_id in self._held or entry is None or not entry.size:
                return not self._is_away
            owner = self._holder(trial_id, entry)
            if owner is not None and owner.gone():
                return True
            expiry = max(EXPIRY_SECONDS, _TIMES * owner.expiry_seconds if owner else 0.0)
            return time.monotonic() - self._unchanged_since[trial_id, entry.etag] >= expiry
        return False

    def _holder(self, trial_id: str, entry: Entry) -> Owner | None:
        if entry.etag not in self._owners:
            answer = self._bucket.get(_lease(trial_id))
            self._owners[entry.etag] = owner_of(answer[0]) if answer and answer[1] == entry.etag else None
        return self._owners[entry.etag]

    def take(self, trial_id: str) -> bool:
        """Take a trial, and return whether it is to be run here: nobody else works on it, and it has not ended."""
        if trial_id in self._held:
            return True
        if not self.free(trial_id):
            return False
        with self._telling():
            entry = self._leases.get(trial_id)
            with self._lock:
                etag = self._bucket.put(_lease(trial_id), self._life(), instead_of=entry.etag if entry else "")
                if etag is None:
                    self._looked = _NEVER  # somebody was faster
                    return False
                self._held[trial_id] = etag
            self._ended |= _trials(self._bucket.entries("trials", trial_id))
            if not self.fetch([trial_id]):
                return True
        if trial_id in self._held:
            self.ended(trial_id)
        return False

    def ended(self, trial_id: str) -> None:
        """Note that nobody works on the trial here any more: its result is sent, or else its lease given back."""
        self._unsent.put(trial_id)

    def _release(self, trial_id: str) -> None:
        with self._lock:
            if (etag := self._held.pop(trial_id, None)) is not None:
                self._bucket.put(_lease(trial_id), b"", instead_of=etag)

    def _life(self) -> bytes:
        self._beats += 1  # what is written anew must be another content, to have another ETag
        return json.dumps(asdict(replace(self._owner, campaign=f"{self._owner.campaign}-{self._beats}"))).encode()

    def _beat(self) -> None:
        for trial_id in list(self._held):
            with self._telling(), self._leaving_alone(_lease(trial_id)), self._lock:
                if (etag := self._held.get(trial_id)) is None:
                    continue
                new = self._bucket.put(_lease(trial_id), self._life(), instead_of=etag)
                if new is not None:
                    self._held[trial_id] = new
                    continue
                del self._held[trial_id]
                self._say(f"{trial_id[:8]}: another machine has taken it over; whichever ends first is kept")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Until the end of the block, show life and send what has ended, from two threads."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(EXPIRY_SECONDS / 6):
                self._beat()

        def send() -> None:
            while (trial_id := self._unsent.get()) is not None:
                while True:
                    try:
                        self._send(trial_id)
                        break
                    except BucketError as error:
                        self._tell(error)
                    if over.wait(LOOK_SECONDS):
                        self._say(f"{trial_id[:8]} is not in {self._bucket.address} yet; idp mirror sends it")
                        break

        threads = [threading.Thread(target=work, name="idp-mirror", daemon=True) for work in (beat, send)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for trial_id in [*self._held, None]:  # also what could not be read before: sent now, or told of once more
                self._unsent.put(trial_id)
            over.set()
            for thread in threads:
                thread.join()

    # What the bucket holds.

    def _look(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._leases = self._bucket.entries("leases")
        self._ended = _trials(self._bucket.entries("trials"))
        self._looked = time.monotonic()
        states = {(name, entry.etag) for name, entry in self._leases.items()}
        self._unchanged_since = {state: self._unchanged_since.get(state, self._looked) for state in states}

    @property
    def _is_away(self) -> bool:
        return time.monotonic() - self._away < LOOK_SECONDS

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell, and go on, where the store does not answer."""
        try:
            yield
        except BucketError as error:
            self._tell(error)

    @contextmanager
    def _leaving_alone(self, what: str) -> Iterator[None]:
        """Tell, and go on with the rest, where it is this one thing that can't be exchanged.

        Whatever is raised: in one of the mirror's threads it would end the thread, and all that it has yet to do.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, BucketError) and not isinstance(error, TooLarge):
                raise  # the store does not answer: that is about all of them
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._say(f"{self._bucket.address}/{what}: left alone: {kind}{first_line(error)}")

    def _tell(self, error: BucketError) -> None:
        if time.monotonic() - self._away > EXPIRY_SECONDS:
            self._say(f"{error}; trials go on, and no new ones begin until it answers")
        self._away = time.monotonic()

    # Tests on further maps, and datasets.

    def exchange_evaluations(
        self, trial_ids: Collection[str], *, send: bool = True, take: bool = True
    ) -> tuple[int, int]:
        """Send the tests on further maps that the bucket lacks, take those that the storage lacks; return how many.

        Args:
            trial_ids: Their trials.
            send: Whether to write into the bucket.
            take: Whether to write into the storage.
        """
        there = self._bucket.entries("evaluations")
        here = {f"{name}/{path.name}": path for name in trial_ids for path in self._storage.trial(name).evaluations}
        sent = taken = 0
        for name in sorted(here.keys() - there.keys()) if send else ():
            with self._leaving_alone(f"evaluations/{name}"):
                sent += self._bucket.put(f"evaluations/{name}", read_stored(here[name]), instead_of="") is not None
        for name in sorted(there.keys() - here.keys()) if take else ():
            if (trial_id := name.partition("/")[0]) not in trial_ids:
                continue
            trial = self._storage.trial(trial_id)
            try:
                answer = self._bucket.get(f"evaluations/{name}")
                found = parsed(EvaluationResult, answer[0]) if answer else None
                if found is None or not trial.trained:
                    continue
                path = trial.evaluation(found.dataset_id, found.split, found.k)
                if found.trial_id != trial_id or name != f"{trial_id}/{path.name}":
                    raise ValueError("holds another evaluation")
            except (ValueError, TooLarge) as error:
                self._say(f"{self._bucket.address}/evaluations/{printable(name)}: left alone: {error}")
                continue
            write_evaluation(trial, found)
            taken += 1
        return sent, taken

    def datasets(self) -> list[str]:
        """Return the datasets in the bucket."""
        names = (name.removesuffix(".tar") for name in self._bucket.entries("datasets"))
        return sorted(name for name in names if is_dataset_id(name))

    def give_dataset(self, name: str) -> bool:
        """Send a dataset, and return whether the bucket lacked it."""
        with self._leaving_alone(f"datasets/{name}.tar"):
            try:
                body = packed_dataset(self._storage.datasets / name)
            except DatasetError:
                return False  # not finished
            return self._bucket.put(f"datasets/{name}.tar", body, instead_of="") is not None
        return False

    def fetch_dataset(self, name: str) -> bool:
        """Put a dataset into the storage; return False where the bucket has none that is whole."""
        try:
            answer = self._bucket.get(f"datasets/{name}.tar")
            if answer is None:
                return False
            place_dataset(answer[0], self._storage.datasets / name)
        except (ResultError, TooLarge) as error:
            self._say(f"{self._bucket.address}/datasets/{name}.tar: left alone: {error}")
            return False
        return True

    def exchange_datasets(self, specs: Iterable[DatasetSpec], make: Callable[[], None]) -> None:
        """Take the datasets that the storage lacks, make the others, and send those that the bucket lacks."""
        names, there = {dataset_id(spec): spec for spec in specs}, set[str]()
        with self._telling():
            there = set(self.datasets()) if names else set()
            for name in there & names.keys():
                if not is_complete(names[name], self._storage.datasets, verify=False):
                    self.fetch_dataset(name)
        make()
        with self._telling():
            for name in names.keys() - there:
                self.give_dataset(name)


def _lease(trial_id: str) -> str:
    return f"leases/{trial_id}"


def _trials(entries: dict[str, Entry]) -> dict[str, Entry]:
    found = {name.removesuffix(".tar"): entry for name, entry in entries.items()}
    return {name: entry for name, entry in found.items() if is_trial_id(name)}
