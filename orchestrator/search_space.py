"""What a `search:` sweep looks for, and the suggestions it has made so far; needs no optuna."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from datagen.spec import Spec

Scalar = str | int | float | bool | None
Suggestions = dict[str, list[dict[str, Scalar]]]
"""By study (`TASK_NUMBER/PLANNER`): the axes of each suggestion, in the order they were made."""


class SearchAxis(Spec):
    """The values that an axis may take: `choices`, or from `low` to `high`.

    Attributes:
        choices: The values.
        low: Smallest value; with whole numbers for both ends, values are whole.
        high: Largest value.
        log: True for values spread evenly in their logarithm.
    """

    choices: list[Scalar] | None = None
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None or self.log:
                raise ValueError("expected either choices (at least one), or low and high")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("expected choices, or low < high")
        elif self.log and self.low <= 0:
            raise ValueError(f"log: low must be above 0, got {self.low}")
        return self

    def first(self) -> Scalar:
        """Return a value of the axis, to check it with."""
        return self.choices[0] if self.choices is not None else self.low


class SearchSpec(Spec):
    """A search for the best settings of each planner on each task, one suggestion after another.

    Attributes:
        space: Axes as in `grid` (k, planner.FIELD, training.FIELD) and what they may be.
        trials: Suggestions per planner and task; each runs once per place of the sweep's `grid`.
        at_once: Suggestions made together, before the results of the others are known.
        metric: What is made largest on the validation maps, averaged over the grid.
        seed: Seed of the suggestions.
        stopping: "median" stops a trial that is worse than half of the others were at its epoch; "asha" keeps the best
            third at epochs 1, 3, 9, ...; "none" lets all of them end.
    """

    space: dict[str, SearchAxis] = Field(min_length=1)
    trials: int = Field(20, ge=1, le=10_000)
    at_once: int = Field(4, ge=1, le=1000)
    metric: Literal["valid_success_rate", "valid_optimality", "valid_spl"] = "valid_success_rate"
    seed: int = Field(0, ge=0, lt=2**32)
    stopping: Literal["none", "asha", "median"] = "none"


def read_suggestions(storage: Path, sweep: str) -> Suggestions:
    """Return what has been suggested so far."""
    found: Suggestions = {}
    for path in _rounds(storage, sweep):
        for study, suggestions in json.loads(path.read_bytes()).items():
            found.setdefault(study, []).extend(suggestions)
    return found


def write_suggestions(storage: Path, sweep: str, suggestions: Suggestions, number: int) -> bool:
    """Write the suggestions of a round; False where another run of the sweep was faster, whose suggestions count.

    Args:
        storage: The storage directory.
        sweep: Name of the sweep.
        suggestions: The new ones.
        number: Number of the round, from 0.
    """
    folder = storage / "sweeps" / sweep / "search"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".round.{uuid.uuid4().hex[:12]}.tmp"
    try:
        temporary.write_text(json.dumps(suggestions, indent=1))
        os.link(temporary, folder / f"round-{number:06d}.json")
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def rounds(storage: Path, sweep: str) -> int:
    """Return how many rounds of suggestions there have been."""
    return len(_rounds(storage, sweep))


def _rounds(storage: Path, sweep: str) -> list[Path]:
    return sorted((storage / "sweeps" / sweep / "search").glob("round-*.json"))
