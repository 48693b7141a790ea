"""A trial's directory: the names in it, and everything that is written there.

What holds for all writers is kept here. Files are replaced whole. How a trial has ended is written by whoever holds its
lease, which is renewed right before; what was taken over meanwhile is not written. A final result is never replaced by
one that is not, and is written last, so that its presence means that everything else is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from datagen.spec import Spec, first_problem
from datagen.tasks.registry import Split
from orchestrator.errors import ResultError
from orchestrator.storage import leases
from orchestrator.storage.curves import FILE, curves_file, read_curves
from orchestrator.storage.files import (
    Folder,
    append_line,
    parsed,
    printable,
    read_stored,
    sealed,
    write_bytes,
    write_json,
)
from orchestrator.storage.leases import Held, Lease, Owner
from orchestrator.storage.results import TrialResult, is_trial_id
from orchestrator.sweep.specs import TrialSpec, trial_id
from planners.trial_files import STEPS_FILE, PlannerError, read_json


@dataclass(frozen=True)
class TrialDirectory(Folder):
    """What a trial leaves behind, `trials/ID` of a storage; nothing is created by looking.

    Attributes:
        path: The directory; it need not exist.
    """

    @property
    def name(self) -> str:
        """The trial's id, where it lies in a storage."""
        return self.path.name

    @property
    def spec_file(self) -> Path:
        """The trial, resolved."""
        return self.path / "spec.json"

    @property
    def result_file(self) -> Path:
        """How it has ended."""
        return self.path / "result.json"

    @property
    def curves_file(self) -> Path:
        """Its epochs."""
        return self.path / FILE

    @property
    def checkpoint(self) -> Path:
        """What it goes on from, and in the end the trained planner."""
        return self.path / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before, while the trial runs."""
        return self.path / "checkpoint.previous.pt"

    @property
    def divergence(self) -> Path:
        """The first divergence of its forward iteration."""
        return self.path / "divergence.pt"

    @property
    def of_training(self) -> tuple[Path, ...]:
        """What a training leaves that its result does not hold."""
        return self.checkpoint, self.previous_checkpoint, self.divergence

    @property
    def test_steps(self) -> Path:
        """The steps per row with which its sweep tests it."""
        return self.path / STEPS_FILE

    @property
    def log(self) -> Path:
        """What its processes have noted."""
        return self.path / "log.txt"

    @property
    def evaluations(self) -> list[Path]:
        """The files of its tests on further maps that are there."""
        return sorted((self.path / "evaluations").glob("*.json"))

    def evaluation(self, dataset: str, split: Split, k: int) -> Path:
        """Return the file of a test on further maps."""
        return self.path / "evaluations" / f"{dataset}-{split}-k{k}.json"

    @property
    def standing(self) -> Path:
        """Where it stands, while a process works on it."""
        return self.path / "standing.json"

    @property
    def mark(self) -> Path:
        """The mark that the trial is to stop, or not to start; holds the reason."""
        return self.path / "cancelled"

    @property
    def trained(self) -> bool:
        """Whether the trial has ended and left a planner."""
        return self.result_file.exists() and self.checkpoint.exists()

    # Who works on it.

    def latest_lease(self) -> Held | None:
        """Return its latest lease, None where there has never been one."""
        return leases.latest_lease(self.path)

    def take(self, owner: Owner, instead_of: int = 0) -> Lease:
        """Take the trial; arguments and errors as for `leases.take`."""
        return leases.take(self.path, owner, instead_of)

    # How it has ended.

    def read_result(self) -> TrialResult | None:
        """Return its result, or None where there is none yet.

        Raises:
            ResultError: There is a file, but it is not the result that this trial has written.
        """
        path = self.result_file
        try:
            result = parsed(TrialResult, read_stored(path))
        except FileNotFoundError:
            return None
        except ResultError:
            raise
        except ValueError as error:
            raise ResultError(f"{path}: damaged: {error}") from error
        if is_trial_id(self.name) and result.trial_id != self.name:
            raise ResultError(f"{path}: damaged: trial_id: the result of another trial, {result.trial_id!r:.80}")
        return result

    def whole_result(self) -> TrialResult | None:
        """Return its result; None where there is none, or a damaged one, which is made again."""
        try:
            return self.read_result()
        except ResultError:
            return None

    def known_result(self) -> TrialResult | None:
        """Return what is known of it: as `read_result`, but what cannot be read stands as FAILED, with the reason."""
        try:
            return self.read_result()
        except (ResultError, OSError) as error:
            return TrialResult(trial_id=self.name, status="FAILED", reason=f"unreadable: {error}")

    def result_version(self) -> tuple[int, int] | None:
        """Return what tells one writing of the result from another; None where there is none."""
        try:
            found = self.result_file.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def publish(self, lease: Lease, result: TrialResult) -> TrialResult:
        """Write how the trial has ended, unless that is no final result and would replace one.

        Args:
            lease: The lease of this process.
            result: The result.

        Returns:
            What the directory holds then: the result, or the final one that was there.

        Raises:
            LeaseLost: Another process took the trial over meanwhile; nothing was written.
        """
        self._renew(lease)
        before = None if result.final else self.whole_result()
        if before is not None and before.final:
            return before
        write_json(self.result_file, sealed(result.model_dump(mode="json")), check=lease.check)
        if result.final:
            self.previous_checkpoint.unlink(missing_ok=True)
            self.drop_mark()
        return result

    def settle(self, owner: Owner, outcome: TrialResult) -> TrialResult:
        """Take the trial, `publish` an outcome, and give it back.

        Args:
            owner: This process.
            outcome: CANCELLED or FAILED.

        Raises:
            TrialHeld: Another process works on the trial.
            LeaseLost: Another process took it over meanwhile; nothing was written.
        """
        lease = self.take(owner)
        try:
            return self.publish(lease, outcome)
        finally:
            lease.release()

    def forget_result(self, lease: Lease) -> None:
        """Remove a result that is not final, or is damaged; `LeaseLost` where the trial was taken over."""
        self._renew(lease)
        found = self.whole_result()
        assert found is None or not found.final, f"{self}: a final result is kept"
        self.result_file.unlink(missing_ok=True)

    def _renew(self, lease: Lease) -> None:
        assert lease.directory == self.path, f"{lease.directory} is not {self}"
        lease.renew()

    # What it is.

    def write_spec(self, spec: Spec) -> None:
        """Write the resolved spec, defaults included; where it is there already and whole, leave it."""
        content = (json.dumps(spec.model_dump(mode="json"), indent=2, allow_nan=False) + "\n").encode()
        try:
            if read_stored(self.spec_file) == content:
                return
        except (OSError, ResultError):
            pass  # not there yet, or not readable: writing it says what is wrong
        # Whoever runs the trial compares it with the sweep and writes it again where it is not whole.
        write_bytes(self.spec_file, content, durable=False)

    def read_spec(self) -> TrialSpec:
        """Return the trial.

        Raises:
            ResultError: There is none, it is another trial's, or this version does not understand it.
        """
        path = self.spec_file
        try:
            spec = TrialSpec.model_validate(read_json(path))
        except FileNotFoundError:
            raise ResultError(f"{path}: no such file: {self} is not a trial directory") from None
        except PlannerError as error:
            raise ResultError(str(error)) from error
        except ValidationError as error:
            raise ResultError(f"{path}: {first_problem(error)}") from error
        name = self.path.resolve().name
        if is_trial_id(name) and trial_id(spec) != name:
            raise ResultError(f"{path}: is the spec of trial {trial_id(spec)}, not of {name}")
        return spec

    def known_spec(self) -> TrialSpec | None:
        """Return the trial; None where this version does not understand it, or a plug-in of it is not loaded."""
        try:
            return TrialSpec.model_validate_json(read_stored(self.spec_file))
        except (OSError, ValueError):
            return None

    # What it leaves on its way.

    def read_curves(self) -> list[dict[str, Any]]:
        """Return its epochs, empty where there are none; `ResultError` where the file is damaged."""
        return read_curves(self.curves_file)

    def write_curves(self, lease: Lease, records: Sequence[Any]) -> None:
        """Write its epochs.

        Args:
            lease: The lease of this process.
            records: Dataclasses or mappings, all with the same fields, in order of epoch.

        Raises:
            LeaseLost: Another process took the trial over meanwhile; nothing was written.
        """
        self.put_curves(lease, curves_file(records))

    def put_curves(self, lease: Lease, content: bytes) -> None:
        """Write its epochs, as `curves_file` has made them; `LeaseLost` as for `write_curves`."""
        write_bytes(self.curves_file, content, check=lease.check)

    def note(self, line: str) -> None:
        """Add a line to its log."""
        append_line(self.log, f"{datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')} {line}")

    # Whether it is to stop.

    def cancel(self, reason: str) -> None:
        """Mark it: it is to stop, or not to start."""
        write_bytes(self.mark, reason.encode(), durable=False)

    def is_cancelled(self) -> bool:
        """Return True where it is to stop, or not to start."""
        return self.mark.exists()

    def why_cancelled(self) -> str:
        """Return the reason in the mark."""
        try:
            return printable(read_stored(self.mark, 4096).decode()) or "cancelled"
        except (OSError, ResultError, UnicodeDecodeError):
            return "cancelled"

    def drop_mark(self) -> None:
        """Let it run: it is complete, or asked for again."""
        self.mark.unlink(missing_ok=True)
