"""The grid of a sweep: which field of a trial an axis stands for, and the product of the axes."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from datagen.spec import nearest


def expecting(words: str) -> WrapValidator:
    """Return what has a field of several kinds say what it takes: pydantic names the kind that it has tried first."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {words}, got {value!r:.80}") from None

    return WrapValidator(check)


Scalar = str | int | float | bool | None
Value = Annotated[Scalar, expecting("a text, a finite number, true, false or null")]
"""A `Scalar` as a field of a sweep."""

MOST_TRIALS = 100_000
TESTS = "sets of further test maps"


class GridError(ValueError):
    """A grid that can't be; the message names the axis and what was expected."""


def field_of(axis: str) -> str:
    """Return the trial's field, `SECTION.NAME`, that an axis stands for."""
    return {"k": "planner.k_fwd", "seed": ".seed"}.get(axis, axis)


def task_grid(grid: Any) -> dict[str, list[Scalar]]:
    """Return a task's own grid, checked.

    Raises:
        GridError: It is none.
    """
    lists = isinstance(grid, dict) and all(isinstance(values, list) for values in grid.values())
    if not lists or not all(isinstance(value, Scalar) for values in grid.values() for value in values):
        raise GridError(f"expected a mapping of axes to lists, got {grid!r:.80}")
    return grid


def check_values(axes: Mapping[str, list[Scalar]]) -> None:
    """Refuse an axis without values, or with one that is given twice and would count as two trials.

    Raises:
        GridError: There is one.
    """
    for axis, values in axes.items():
        if not values:
            raise GridError(f"grid.{axis}: expected at least one value, got an empty list")
        seen = set()
        for value in values:
            if value in seen:
                raise GridError(f"grid.{axis}: {value!r:.80} is given twice, and would count as two")
            seen.add(value)


def check_places(axes: Iterable[str], own: Iterable[tuple[str, str]], searched: Container[str]) -> None:
    """Refuse a field that an axis sets and something else too: one of them would be overruled without a word.

    Args:
        axes: The axes.
        own: What the planner's entry sets, as pairs of a trial's field and its place in the entry.
        searched: Those of the axes that are a search's.

    Raises:
        GridError: There is one.
    """
    by_field: dict[str, str] = {}
    for axis in axes:
        other = by_field.setdefault(field_of(axis), axis)
        if other != axis:
            raise GridError(f"grid.{other} and grid.{axis} are one field; leave one of them out")
    for field, place in own:
        if field in by_field:
            axis = by_field[field]
            if axis in searched:
                raise GridError(f"{place}: search.space.{axis} sets it too; leave it out of one of them")
            raise GridError(
                f"{place}: the axis {axis!r} of the grid sets it too; leave it out here, or give this planner an axis "
                f"of its own: grid: {{{axis}: [...]}}"
            )


def check_searched(space: Iterable[str], grids: Mapping[str, Any]) -> None:
    """Refuse an axis of a search that a grid has too: its values there would be overruled without a word.

    Args:
        space: The axes of the search.
        grids: The axes of the grids, by the place of each in the sweep.

    Raises:
        GridError: There is one.
    """
    by_field = {field_of(axis): axis for axis in space}
    for place, axes in grids.items():
        for axis in axes if isinstance(axes, dict) else ():
            if (searched := by_field.get(field_of(axis))) is not None:
                raise GridError(f"search.space.{searched}: {place}.{axis} sets it too; leave it out of one of them")


def product(axes: Mapping[str, list[Scalar]], most: int, what: str = "trials") -> Iterable[dict[str, Scalar]]:
    """Yield every place of the grid.

    Args:
        axes: The axes.
        most: How many places there may be.
        what: What the places are, in words.

    Raises:
        GridError: There are more.
    """
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > most:
        raise GridError(f"the sweep has more than {MOST_TRIALS} {what}")
    for place in itertools.product(*axes.values()):
        yield dict(zip(axes, place, strict=True))


def set_field(fields: dict[str, Any], axis: str, value: Scalar) -> None:
    """Set the field that an axis stands for in a trial's fields.

    Raises:
        GridError: There is no such field.
    """
    section, _, field = field_of(axis).partition(".")
    if section == "" and field == "seed":
        fields["seed"] = value
    elif section in ("planner", "system", "training") and section in fields and field and "." not in field:
        fields[section] = {**fields[section], field: value}
    elif "system" in fields and section == "planner":
        raise GridError(f"grid.{axis}: a system has none; its own axes are system.FIELD, training.FIELD and seed")
    else:
        raise GridError(
            f"grid.{axis}: expected k, seed, planner.FIELD or training.FIELD; "
            f"{nearest(axis, ['k', 'seed', 'planner.k_bwd', 'planner.solver', 'training.learning_rate'])}"
        )


def spread(entry: Mapping[str, Any], number: int, most: int) -> list[dict[str, Any]]:
    """Return the fields of a `test_on` entry for each place of its own grid; the entry itself where it has none.

    Args:
        entry: Fields of a dataset, and perhaps `grid`: axes are such fields, or options as `options.NAME`.
        number: The entry's place in the sweep.
        most: How many places there may be.

    Raises:
        GridError: The grid is none, or has more places.
    """
    if "grid" not in entry:
        return [dict(entry)]
    plain = {name: value for name, value in entry.items() if name != "grid"}
    try:
        axes = task_grid(entry["grid"])
        check_values(axes)
        places = list(product(axes, most, TESTS))
    except GridError as error:
        raise GridError(f"{number}.{error}" if str(error).startswith("grid.") else f"{number}.grid: {error}") from None
    own = plain.get("options", {})
    for axis in axes:
        section, _, name = axis.rpartition(".")
        if section not in ("", "options") or axis in plain or (section and name in own):
            raise GridError(f"{number}.grid.{axis}: expected a field of a dataset or options.NAME, set nowhere else")
    return [_at_place(plain, place) for place in places]


def _at_place(plain: Mapping[str, Any], place: Mapping[str, Scalar]) -> dict[str, Any]:
    fields = {axis: value for axis, value in place.items() if "." not in axis}
    options = {axis.rpartition(".")[2]: value for axis, value in place.items() if "." in axis}
    return {**plain, **fields, **({"options": {**plain.get("options", {}), **options}} if options else {})}
