"""Tasks whose problems are no maps: samples of named arrays, for what is no grid planner (docs/add-a-system.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from datagen.plugins import PluginError
from datagen.spec import Spec
from datagen.tasks.registry import SPLITS, DatasetSpec, Draw, Split, Task

SampleColumns = dict[str, NDArray[Any]]
"""Samples [n, ...] by the names of their columns."""

Make = Callable[[Spec, np.random.Generator], Mapping[str, Any]]
"""Makes one sample from the task's options and a generator that belongs to the sample alone."""


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        meaning: In words, with the unit.
        shape: Of one sample's value.
        dtype: NumPy's name of its numbers' type.
    """

    meaning: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Samples(Task):
    """A line of the registry of tasks whose samples are rows of named arrays; `target` is a function of type `Make`.

    Attributes:
        columns: From the task's options to what each sample has.
        per_file: Samples of a file, which one process makes: few where a sample takes seconds.
        distinct: Whether a sample that is in two splits is a fault of its generator; False where there are few to draw.
    """

    columns: Callable[[Any], Mapping[str, Column]] = field(kw_only=True)
    per_file: int = field(default=1000, kw_only=True)
    distinct: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Add to the task's own check that the fields of maps are left alone."""
        object.__setattr__(self, "check", partial(_check, own=self.check))

    def draw(self) -> Draw:
        """Return what makes samples `start` to `stop` of a split, importing the task's module."""
        return cast(Draw, partial(_draw, cast(Make, super().draw()), self))

    def bytes_per_sample(self, spec: DatasetSpec) -> int:
        """Return the raw size of one sample."""
        columns = self.columns(spec.options).values()
        return 8 + sum(math.prod(column.shape) * np.dtype(column.dtype).itemsize for column in columns)


def _check(spec: DatasetSpec, own: Callable[[DatasetSpec], None]) -> None:
    for name in ("map_size", "distinct"):
        if getattr(spec, name) != DatasetSpec.model_fields[name].default:
            raise ValueError(f"{name}: task {spec.task!r} has no maps; leave it out")
    if spec.imported is not None:
        raise ValueError(f"imported: samples of {spec.task!r} are made from the spec; leave it out")
    own(spec)


def _draw(make: Make, task: Samples, spec: DatasetSpec, split: Split, start: int, stop: int) -> SampleColumns:
    columns = task.columns(spec.options)
    values: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
    for number in range(start, stop):
        where = f"task {spec.task!r}: sample {number} of {split}"
        sample = make(spec.options, np.random.default_rng([spec.seed, SPLITS.index(split), number]))
        if set(sample) != set(columns):
            raise PluginError(f"{where}: expected the columns {', '.join(columns)}, got {', '.join(map(str, sample))}")
        for name, column in columns.items():
            values[name].append(_value(sample[name], column, f"{where}: {name}"))
    return {name: np.array(values[name], column.dtype).reshape(-1, *column.shape) for name, column in columns.items()}


def _value(given: Any, column: Column, where: str) -> NDArray[Any]:
    value, expected = np.asarray(given), f"{column.dtype} {list(column.shape)}"
    if value.shape != column.shape or not np.can_cast(value.dtype, column.dtype, "same_kind"):
        raise PluginError(f"{where}: expected {expected}, got {value.dtype} {list(value.shape)}")
    if not np.isfinite(value).all():
        raise PluginError(f"{where}: expected finite numbers")
    return value
