"""What trained planners do on a sweep's `test_on` maps -> one row per planner, all seeds together; pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation import EvaluationResult
from orchestrator.freshness import of_one_version
from orchestrator.runs import Run, cell_of, grouped, usable
from orchestrator.specs import Scalar


@dataclass(frozen=True)
class Tested:
    """A cell's planners on maps of one size.

    Attributes:
        map_size: Rows of the maps.
        maps: How many.
        k: Most forward steps.
        n: Planners that were tested.
        success_rate: Mean over them, 0..1.
        success_rate_std: Sample standard deviation, None for a single one.
    """

    map_size: int
    maps: int
    k: int
    n: int
    success_rate: float
    success_rate_std: float | None

    def __str__(self) -> str:
        mean = f"{100 * self.success_rate:.1f}"
        return mean if self.success_rate_std is None else f"{mean} ± {100 * self.success_rate_std:.1f}"


@dataclass(frozen=True)
class Further:
    """All further tests of one cell of the sweep.

    Attributes:
        axes: The cell's place in the sweep.
        tests: One per size of the maps, smallest first.
    """

    axes: dict[str, Scalar]
    tests: list[Tested]

    def on(self, map_size: int) -> Tested | None:
        """Return the test on maps of that size, None where there is none."""
        return next((test for test in self.tests if test.map_size == map_size), None)


def further(runs: Sequence[Run]) -> list[Further]:
    """Return the rows, in the order of the sweep; trials of different code are never averaged."""
    rows = [Further(dict(axes), _tests(usable(own))) for axes, own in grouped(runs, cell_of).items()]
    return [row for row in rows if row.tests]


def _tests(runs: Sequence[Run]) -> list[Tested]:
    found: dict[tuple[int, int, int], list[EvaluationResult]] = {}
    for run in runs:
        for test in run.evaluations:
            found.setdefault((test.map_size, test.maps, test.k), []).append(test)
    return [_tested(place, tests) for place, tests in sorted(found.items())]


def _tested(place: tuple[int, int, int], tests: Sequence[EvaluationResult]) -> Tested:
    rates = [test.success_rate for test in of_one_version(tests, lambda test: test.provenance)]
    deviation = statistics.stdev(rates) if len(rates) > 1 else None
    return Tested(*place, len(rates), math.fsum(rates) / len(rates), deviation)
