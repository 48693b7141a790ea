"""A trial of seconds, and what a killed process looks like from inside it; `conftest.storage` has its dataset."""

from __future__ import annotations

from datagen.tasks.registry import DatasetSpec
from orchestrator.sweep.specs import TrialSpec
from planners.specs import PlannerSpec, TrainingSpec

DATA = DatasetSpec(map_size=9, train=64, valid=16, test=16)


class Stop(BaseException):
    """Passes every `except Exception`, as a signal does."""


def small_trial(epochs: int) -> TrialSpec:
    """Return VIN on 64 maps of 9x9."""
    return TrialSpec(
        data=DATA,
        planner=PlannerSpec(core="vin", hidden_channels=8, q_channels=8, k_fwd=8),
        training=TrainingSpec(epochs=epochs, batch_size=16),
    )
