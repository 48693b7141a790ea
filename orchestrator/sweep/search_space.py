"""What a `search:` sweep looks for; needs no optuna."""

from __future__ import annotations

import math
import random
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from datagen.spec import Spec
from orchestrator.sweep.grid import Scalar as Scalar
from orchestrator.sweep.grid import Value, expecting
from planners.specs import TrainingSpec

Suggestions = dict[str, list[dict[str, Scalar]]]
"""By study (`TASK_NUMBER/PLANNER`): the axes of each suggestion, in the order they were made."""

_End = Annotated[float | int, expecting("a finite number")]
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class SearchAxis(Spec):
    """The values that an axis may take: `choices`, or from `low` to `high`.

    Attributes:
        choices: The values.
        low: Smallest value; with whole numbers for both ends, values are whole.
        high: Largest value.
        log: True for values spread evenly in their logarithm.
    """

    choices: list[Value] | None = None
    low: _End | None = None
    high: _End | None = None
    log: bool = False

    @field_validator("choices")
    @classmethod
    def _numbers_are_numbers(cls, choices: list[Scalar] | None) -> list[Scalar] | None:
        # YAML 1.1 reads 1e-3 as text and 1.0e-3 as a number.
        return choices and [
            float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value for value in choices
        ]

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None or self.log:
                raise ValueError("expected either choices (at least one), or low and high")
            meant = set()
            for value in self.choices:
                if (kind := _meaning(value)) in meant:
                    raise ValueError(f"choices: {value!r} is given twice")
                meant.add(kind)
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("expected choices, or low < high")
        elif math.isinf(self.high - self.low):
            raise ValueError(f"expected ends that a number can tell the distance of, got {self.low} and {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"log: low must be above 0, got {self.low}")
        return self

    @property
    def whole(self) -> bool:
        """True where the values are whole numbers from `low` to `high`."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def matching(self, value: Scalar) -> tuple[bool, Scalar]:
        """Return whether the axis may take a value, and the value as the axis spells it.

        Args:
            value: A value, perhaps of a suggestion that was made when the axis was another.
        """
        if self.choices is not None:
            found = [choice for choice in self.choices if _meaning(choice) == _meaning(value)]
            return bool(found), found[0] if found else None
        assert self.low is not None and self.high is not None
        number = _number(value)
        if number is None or not self.low <= number <= self.high or (self.whole and number != int(number)):
            return False, None
        return True, int(number) if self.whole else number

    def draw(self, chance: random.Random) -> Scalar:
        """Return any value of the axis."""
        if self.choices is not None:
            return chance.choice(self.choices)
        assert self.low is not None and self.high is not None
        if self.whole:
            return chance.randint(int(self.low), int(self.high))
        share = chance.random()
        value = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return min(self.high, max(self.low, value))


def rounded(axis: SearchAxis, value: Scalar) -> Scalar:
    """Return a value with four digits, which people can read and copy, where the axis goes from number to number."""
    if axis.choices is not None or not isinstance(value, float):
        return value
    assert axis.low is not None and axis.high is not None
    return min(float(axis.high), max(float(axis.low), float(f"{value:.4g}")))


def _number(value: Scalar) -> float | None:
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _meaning(value: Scalar) -> tuple[type, Scalar]:
    """Return what two spellings of one value share: 1e-3 and 0.001, but not 1 and true."""
    number = _number(value)
    return (type(value), value) if number is None else (float, number)


class SearchSpec(Spec):
    """A search for the best settings of each planner on each task, one suggestion after another.

    Attributes:
        space: Axes as in `grid` (k, planner.FIELD, training.FIELD) and what they may be.
        trials: Suggestions per planner and task; each runs once per place of the sweep's `grid`.
        at_once: Suggestions made together, before the results of the others are known.
        metric: What is made largest on the validation maps, averaged over the grid.
        seed: Seed of the suggestions.
        sampler: Optuna's that suggests: "tpe" (tree-structured Parzen estimators), "gp" (Gaussian processes), "random".
        stopping: "median" stops a trial that is worse than half of the others of its planner and task were at its
            epoch, "percentile" one that is not among the best quarter; "asha" keeps the best third at epochs 1, 3,
            9, ..., "hyperband" does so in brackets, which begin at epochs 1, 3 and 9; "none" lets all of them end.
    """

    space: dict[str, SearchAxis] = Field(min_length=1)
    trials: int = Field(20, ge=1, le=10_000)
    at_once: int = Field(4, ge=1, le=1000)
    metric: Literal["valid_success_rate", "valid_optimality", "valid_spl"] = "valid_success_rate"
    seed: int = Field(0, ge=0, lt=2**32)
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    stopping: Literal["none", "asha", "hyperband", "median", "percentile"] = "none"

    @field_validator("space", mode="before")
    @classmethod
    def _axes_are_fields(cls, space: Any) -> Any:
        for axis in space if isinstance(space, dict) else ():
            section, _, field = str(axis).partition(".")
            if axis not in ("k", "seed") and (section not in ("planner", "training") or not field or "." in field):
                section = "training" if axis in TrainingSpec.model_fields else "planner"
                hint = f"did you mean {f'{section}.{axis}'!r}?"
                raise ValueError(f"{axis}: expected k, seed, planner.FIELD or training.FIELD; {hint}")
        return space
