"""What trained planners do on a sweep's `test_on` maps -> one row per planner, all seeds together; pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from datagen.tasks.registry import DatasetSpec
from orchestrator.storage.evaluations import Bins, EvaluationResult
from orchestrator.sweep.specs import Scalar
from orchestrator.tables.freshness import is_present, of_one_version
from orchestrator.tables.records import TrialRecord, cell_of, grouped, usable
from orchestrator.tables.statistics import deviation_of, mean_of, with_deviation


@dataclass(frozen=True)
class Tested:
    """A cell's planners on maps of one size.

    Attributes:
        map_size: Rows of the maps.
        maps: How many.
        k: Most forward steps.
        dataset_id: Which maps, of perhaps several sets of one size.
        n: Planners that were tested.
        success_rate: Mean over them, 0..1.
        success_rate_std: Sample standard deviation, None for a single one.
        exact: Mean share of maps whose whole way from the start, or else from the farthest cell, is a shortest one.
        about: Fields of the maps' dataset, for telling sets apart; empty where they are not known.
        lengths: Starts by the length of their shortest path, all planners together; None where not measured.
        detours: The same by the way round that an adjacent wall would save.
        path_independence: Mean over planners; None where there is none.
        residual_auroc: The same.
        cost_ratio: The same.
        cost_rank: The same.
        stale: True where the tests are of other code than the present.
    """

    map_size: int
    maps: int
    k: int
    dataset_id: str
    n: int
    success_rate: float
    success_rate_std: float | None
    exact: float | None = None
    about: dict[str, str] = field(default_factory=dict)
    lengths: Bins | None = None
    detours: Bins | None = None
    path_independence: float | None = None
    residual_auroc: float | None = None
    cost_ratio: float | None = None
    cost_rank: float | None = None
    stale: bool = False

    @property
    def measured(self) -> bool:
        """True where more than success was measured."""
        numbers = (self.path_independence, self.residual_auroc, self.cost_ratio, self.cost_rank)
        parts = (self.lengths, self.detours, *numbers)
        return any(part is not None for part in parts)

    def __str__(self) -> str:
        deviation = self.success_rate_std
        return with_deviation(100 * self.success_rate, None if deviation is None else 100 * deviation)


@dataclass(frozen=True)
class Further:
    """All further tests of one cell of the sweep.

    Attributes:
        axes: The cell's place in the sweep.
        tests: One per set of maps, those of the smallest first.
        asked: Size and name of every set that the cell is to be tested on.
    """

    axes: dict[str, Scalar]
    tests: list[Tested]
    asked: list[tuple[int, str]]

    def on(self, map_size: int, dataset_id: str = "") -> Tested | None:
        """Return the test on maps of that size, or on that set of them; None where there is none."""
        return next(
            (t for t in self.tests if t.map_size == map_size and dataset_id in ("", t.dataset_id)),
            None,
        )


def sets_of_maps(rows: Sequence[Further]) -> list[tuple[int, str]]:
    """Return what columns a table of the rows has: sizes, each with an empty name unless a row has several sets of it.

    Those are apart by the sets' names: success on sparse maps and on dense ones has no common mean. Sets that were
    asked for count, those included that a cell has not been tested on yet.
    """
    columns: list[tuple[int, str]] = []
    for size in sorted({size for row in rows for size, _ in row.asked}):
        sets = [[name for its, name in row.asked if its == size] for row in rows]
        several = any(len(names) > 1 for names in sets)
        columns += [(size, name) for name in (sorted({name for names in sets for name in names}) if several else [""])]
    return columns


def further(runs: Sequence[TrialRecord]) -> list[Further]:
    """Return the rows, in the order of the sweep; trials of different code are never averaged."""
    rows = [
        Further(dict(axes), _tests(usable(members)), _asked(members))
        for axes, members in grouped(runs, cell_of).items()
    ]
    return [row for row in rows if row.tests]


def _asked(runs: Sequence[TrialRecord]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((maps.map_size, name) for run in runs for name, maps in run.maps.items()))


def _tests(runs: Sequence[TrialRecord]) -> list[Tested]:
    sets: dict[tuple[int, int, int, str], list[EvaluationResult]] = {}
    maps: dict[str, DatasetSpec] = {}
    for run in runs:
        maps |= run.maps
        for test in run.evaluations:
            sets.setdefault((test.map_size, test.maps, test.k, test.dataset_id), []).append(test)
    asked = {name: number for number, name in enumerate(maps)}
    order = sorted(sets, key=lambda place: (place[0], asked.get(place[3], len(asked)), place))
    return [_tested(place, sets[place], maps.get(place[3])) for place in order]


def _tested(place: tuple[int, int, int, str], tests: Sequence[EvaluationResult], maps: DatasetSpec | None) -> Tested:
    used = of_one_version(tests, lambda test: test.provenance)
    rates = [test.success_rate for test in used]
    return Tested(
        *place,
        len(rates),
        math.fsum(rates) / len(rates),
        deviation_of(rates),
        exact=mean_of(test.exact for test in used),
        about={} if maps is None else about(maps),
        lengths=merged([test.lengths for test in used if test.lengths is not None]),
        detours=merged([test.detours for test in used if test.detours is not None]),
        path_independence=mean_of(test.path_independence for test in used),
        residual_auroc=mean_of(test.residual_auroc for test in used),
        cost_ratio=mean_of(test.cost_ratio for test in used),
        cost_rank=mean_of(test.cost_rank for test in used),
        stale=not is_present(used[0].provenance),
    )


def about(maps: DatasetSpec) -> dict[str, str]:
    """Return task, size and options of a dataset as words, ranges as "0 to 0.1".

    Left out are options at their defaults, which may mean nothing to its maps, but for lists of words, such as kinds.
    """
    defaults = type(maps.options)()
    options = {name: value for name, value in maps.options if value != getattr(defaults, name) or _is_words(value)}
    return {"task": maps.task, "size": str(maps.map_size), **{name: _word(value) for name, value in options.items()}}


def _is_words(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, str) for part in value)


def _word(value: object) -> str:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, float) for part in value):
        return f"{value[0]:g}" if value[0] == value[1] else f"{value[0]:g} to {value[1]:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def merged(parts: Sequence[Bins]) -> Bins | None:
    """Return the sum of counts bin by bin, None of none."""
    if not parts:
        return None
    columns = {
        name: [sum(row) for row in itertools.zip_longest(*(getattr(part, name) for part in parts), fillvalue=0)]
        for name in ("starts", "arrivals", "right")
    }
    return Bins(**columns)
