"""Where a trial stands while a process works on it: a small file in its directory, for a terminal and `idp status`."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.storage.files import ResultError, read_stored, write_bytes
from orchestrator.storage.leases import free
from orchestrator.storage.trial_directory import TrialDirectory

Doing = Literal["loading", "compiling", "training", "validating", "testing"]
_MOST_BYTES = 2**12


class Standing(BaseModel):
    """Where a trial stands.

    Attributes:
        doing: What its process does.
        epoch: The epoch that it is in, from 1.
        epochs: Of how many.
        batch: Of the epoch's batches, how many have been trained on.
        batches: Of how many.
        maps: Maps that have been tested, where that is what it does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    doing: Doing
    epoch: int = Field(0, ge=0, lt=2**53)
    epochs: int = Field(0, ge=0, lt=2**53)
    batch: int = Field(0, ge=0, lt=2**53)
    batches: int = Field(0, ge=0, lt=2**53)
    maps: int = Field(0, ge=0, lt=2**53)

    def words(self) -> str:
        """Return it in a few words."""
        epoch = f"epoch {self.epoch}/{self.epochs}"
        if self.doing == "training":
            return f"{epoch}, batch {self.batch}/{self.batches}"
        if self.doing == "validating":
            return f"{epoch}, validating"
        return f"testing, {self.maps} maps" if self.doing == "testing" and self.maps else self.doing


def write_standing(trial: TrialDirectory, standing: Standing) -> None:
    """Write where a trial stands; where the storage does not take it, nobody is told, and the trial goes on."""
    with suppress(OSError):
        write_bytes(trial.standing, standing.model_dump_json().encode(), durable=False)


def read_standing(trial: TrialDirectory) -> Standing | None:
    """Return where a trial stands, None where nobody works on it, or nobody says."""
    try:
        if free(trial.latest_lease()):
            return None  # what a killed process left says nothing
        return Standing.model_validate_json(read_stored(trial.standing, _MOST_BYTES))
    except (OSError, ResultError, ValidationError):
        return None
