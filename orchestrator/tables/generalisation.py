"""What trained planners do on a sweep's `test_on` maps -> one row per planner, all seeds together; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.storage.evaluations import EvaluationResult
from orchestrator.sweep.specs import Scalar
from orchestrator.tables.freshness import of_one_version
from orchestrator.tables.records import TrialRecord, cell_of, grouped, usable
from orchestrator.tables.statistics import deviation_of, with_deviation


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
    """

    map_size: int
    maps: int
    k: int
    dataset_id: str
    n: int
    success_rate: float
    success_rate_std: float | None

    def __str__(self) -> str:
        deviation = self.success_rate_std
        return with_deviation(100 * self.success_rate, None if deviation is None else 100 * deviation)


@dataclass(frozen=True)
class Further:
    """All further tests of one cell of the sweep.

    Attributes:
        axes: The cell's place in the sweep.
        tests: One per set of maps, those of the smallest first.
    """

    axes: dict[str, Scalar]
    tests: list[Tested]

    def on(self, map_size: int, dataset_id: str = "") -> Tested | None:
        """Return the test on maps of that size, or on that set of them; None where there is none."""
        return next(
            (t for t in self.tests if t.map_size == map_size and dataset_id in ("", t.dataset_id)),
            None,
        )


def sets_of_maps(rows: Sequence[Further]) -> list[tuple[int, str]]:
    """Return what columns a table of the rows has: sizes, each with an empty name unless a row has several sets of it.

    Those are apart by the sets' names: success on sparse maps and on dense ones has no common mean.
    """
    columns: list[tuple[int, str]] = []
    for size in sorted({test.map_size for row in rows for test in row.tests}):
        sets = [[test.dataset_id for test in row.tests if test.map_size == size] for row in rows]
        several = any(len(names) > 1 for names in sets)
        columns += [(size, name) for name in (sorted({name for names in sets for name in names}) if several else [""])]
    return columns


def further(runs: Sequence[TrialRecord]) -> list[Further]:
    """Return the rows, in the order of the sweep; trials of different code are never averaged."""
    rows = [Further(dict(axes), _tests(usable(members))) for axes, members in grouped(runs, cell_of).items()]
    return [row for row in rows if row.tests]


def _tests(runs: Sequence[TrialRecord]) -> list[Tested]:
    sets: dict[tuple[int, int, int, str], list[EvaluationResult]] = {}
    for run in runs:
        for test in run.evaluations:
            sets.setdefault((test.map_size, test.maps, test.k, test.dataset_id), []).append(test)
    return [_tested(place, tests) for place, tests in sorted(sets.items())]


def _tested(place: tuple[int, int, int, str], tests: Sequence[EvaluationResult]) -> Tested:
    rates = [test.success_rate for test in of_one_version(tests, lambda test: test.provenance)]
    return Tested(*place, len(rates), math.fsum(rates) / len(rates), deviation_of(rates))
