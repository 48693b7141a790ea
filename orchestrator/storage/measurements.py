"""A few full-size training steps of a cell of a sweep, measured on purpose and kept in the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from datagen.spec import digest
from orchestrator.storage.code import code_hash
from orchestrator.storage.files import Line, read_stored
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import Count, Seconds, write_json
from orchestrator.sweep.specs import TrialSpec
from orchestrator.sweep.trial import however_launched


class Measurement(BaseModel):
    """A few full-size training steps of one cell on one kind of device, `measurements/CELL-DEVICE.json`.

    Attributes:
        cell: Digest of the trial without its seed.
        device: Model of the device.
        host: The machine.
        code: Hash of the code.
        name: The cell, for people.
        status: COMPLETED, OUT_OF_MEMORY or FAILED.
        reason: Why, where it is not COMPLETED.
        step_seconds: Wall time of one training step, all included.
        forward_seconds: Median of the forward pass.
        backward_seconds: Median of the backward pass.
        peak_bytes: Tensor memory of a step.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    cell: Line
    device: Line
    host: Line
    code: Line
    name: Line
    status: Literal["COMPLETED", "OUT_OF_MEMORY", "FAILED"]
    reason: Line = ""
    step_seconds: Seconds | None = None
    forward_seconds: Seconds | None = None
    backward_seconds: Seconds | None = None
    peak_bytes: Count | None = None


def timed_cell(spec: TrialSpec) -> str:
    """Return what trials that differ in nothing but seed, length of training and number of maps have in common."""
    data = spec.data.model_copy(update={"train": 1, "valid": 1, "test": 1})
    unlimited = {"most_steps": None, "most_seconds": None, "most_applications": None}
    training = spec.training.model_copy(update={"epochs": 1, **unlimited})
    same = {"data": data, "training": training, "seed": 0, "execution": however_launched(spec.execution)}
    return digest(spec.model_copy(update=same), 16)


def measurement_path(storage: Storage, cell: str, device: str) -> Path:
    """Return where a measurement is or will be."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in device)[:60]
    return storage.measurements / f"{cell}-{plain}.json"


def write_measurement(storage: Storage, measurement: Measurement) -> None:
    """Keep a measurement, in place of an earlier one of its cell and device."""
    path = measurement_path(storage, measurement.cell, measurement.device)
    write_json(path, measurement.model_dump(mode="json"))


def read_measurements(storage: Storage) -> list[Measurement]:
    """Return the measurements of the present code; what is damaged or no file is left out."""
    found = []
    for path in sorted(storage.measurements.glob("*.json")):
        try:
            measurement = Measurement.model_validate_json(read_stored(path))
        except (OSError, ValueError):
            continue  # an estimate can do without it
        if measurement.code == code_hash():
            found.append(measurement)
    return found
