"""Results -> one row per cell of the sweep, all seeds together; pure. What is made of the rows is in `summary`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.storage.results import TrialResult
from orchestrator.sweep.specs import PlannedTrial, Scalar
from orchestrator.tables.freshness import is_present, of_commonest, of_one_version
from orchestrator.tables.statistics import (
    deviation_of,
    mean_of,
    reach_over_maps,
    reach_over_seeds,
    wilson,
    with_deviation,
)
from orchestrator.tables.table import MISSING

DISTANCE_BIN_NAMES = ("≤ 10", "≤ 20", "≤ 40", "≤ 80", "≤ 160", "> 160")
"""The bins of `planners.training.rollout.DISTANCE_BINS`: steps of the shortest path."""
FEW_STEPS = 50
"""A budget that allows fewer training steps says more about itself than about a planner."""


@dataclass(frozen=True)
class Measured:
    """A number of a system's tests.

    Attributes:
        mean: Over trials.
        deviation: Sample standard deviation over seeds (n - 1), None for fewer than two.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Row:
    """One cell of the paper's tables: all seeds of a planner at one task, size and K.

    Averages are over the `used` trials: COMPLETED, of the present code; where there is none of the present code, of
    the one older version with most trials, and `stale_used` says so. The two are never mixed. Times are over those
    of them that ran on one kind of device, the commonest; where there are any that had it to themselves, over those.

    Attributes:
        axes: The place in the sweep: task, map_size, planner, k, and further axes but the seed.
        expected: Trials of the sweep in this cell.
        used: Trials behind the averages.
        success_rate: Mean test success rate, 0..1; None where there is none.
        success_rate_std: Sample standard deviation over seeds (n - 1), None for fewer than two.
        over_seeds: Half the width of the 95 % interval of the mean, by Student's distribution over the seeds.
        over_maps: The same over the test maps, as other maps might have it; None for results that do not say.
        optimality: Mean, 0..1.
        spl: Mean, 0..1.
        exact: Mean share of maps whose whole way from the start, or else from the farthest cell, is a shortest one.
        exact_interval: Wilson's 95 % interval of that over the test maps.
        searched: Mean success of a graph search in the planner's place, on the maps that its mapper drew, 0..1.
        forward_seconds: Mean over trials of the median seconds of a training step's forward pass.
        backward_seconds: The same for the backward pass.
        peak_bytes: Largest over trials.
        train_seconds: Mean over trials of the wall time of all training steps.
        success_by_distance: Mean share of starts that arrive, per bin of `rollout.DISTANCE_BINS`, 0..1;
            None for a bin without starts; empty where no trial has counted them.
        counted_by_distance: Trials behind that.
        trial_diverged: Trials under 20 % (the paper's italics).
        forward_diverged: Trials whose forward iteration diverged at some step.
        backward_stalled: Trials whose adjoint iteration stands still after training.
        cut_short: Trials whose budget was used up before `FEW_STEPS` training steps.
        outcomes: Number of trials by status; "MISSING" where there is no result.
        stale: COMPLETED or OUT_OF_MEMORY trials of other code.
        stale_used: True where the averages are of other code.
        timed: Trials behind the times.
        device: The device of the times.
        exclusive: Whether it did nothing else meanwhile.
        parameters: What the planner learns, as far as it was counted.
        system: Name of the system, empty for a planner.
        metrics: Of a system, the numbers of its tests by name, those that there are.
    """

    axes: dict[str, Scalar]
    expected: int
    used: int = 0
    success_rate: float | None = None
    success_rate_std: float | None = None
    over_seeds: float | None = None
    over_maps: float | None = None
    optimality: float | None = None
    spl: float | None = None
    exact: float | None = None
    exact_interval: tuple[float, float] | None = None
    searched: float | None = None
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    peak_bytes: int | None = None
    train_seconds: float | None = None
    success_by_distance: tuple[float | None, ...] = ()
    counted_by_distance: int = 0
    trial_diverged: int = 0
    forward_diverged: int = 0
    backward_stalled: int = 0
    cut_short: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    stale_used: bool = False
    timed: int = 0
    device: str = ""
    exclusive: bool = False
    parameters: int | None = None
    system: str = ""
    metrics: dict[str, Measured] = field(default_factory=dict)


def rows(trials: Iterable[PlannedTrial], results: Mapping[str, TrialResult]) -> list[Row]:
    """Return the rows of the table, in the order of the sweep; a trial that a cell lists twice counts once.

    Args:
        trials: The sweep.
        results: What there is, by trial id.
    """
    cells: dict[tuple[tuple[str, Scalar], ...], dict[str, PlannedTrial]] = {}
    for trial in trials:
        cells.setdefault(tuple(trial.cell.items()), {}).setdefault(trial.trial_id, trial)
    return [_row(dict(cell), list(members.values()), results) for cell, members in cells.items()]


def _row(axes: dict[str, Scalar], trials: Sequence[PlannedTrial], known: Mapping[str, TrialResult]) -> Row:
    planned = [known.get(trial.trial_id) for trial in trials]
    maps = min(trial.spec.data.test for trial in trials)
    system = next((trial.spec.system.name for trial in trials if trial.spec.system), "")
    results = [result for result in planned if result is not None]
    completed = [result for result in results if result.status == "COMPLETED"]
    used = of_one_version(completed, lambda result: result.provenance)
    alone = [result for result in used if result.provenance.exclusive]
    timed = of_commonest(alone or used, lambda result: result.provenance.device_name)
    rates = _present(result.test_success_rate for result in used)
    return Row(
        axes=axes,
        expected=len(planned),
        used=len(used),
        success_rate=mean_of(rates),
        success_rate_std=deviation_of(rates),
        optimality=mean_of(result.test_optimality for result in used),
        spl=mean_of(result.test_spl for result in used),
        **_intervals(used, maps),
        exact=mean_of(result.test_exact for result in used),
        searched=mean_of(result.test_searched for result in used),
        forward_seconds=mean_of(result.forward_seconds for result in timed),
        backward_seconds=mean_of(result.backward_seconds for result in timed),
        peak_bytes=max((result.peak_bytes for result in timed if result.peak_bytes is not None), default=None),
        train_seconds=mean_of(result.train_seconds for result in timed),
        **_by_distance(used),
        trial_diverged=sum(result.trial_diverged for result in used),
        forward_diverged=sum(result.forward_diverged for result in used),
        backward_stalled=sum(result.backward_stalled for result in used),
        cut_short=sum(result.ended_by_budget and result.steps < FEW_STEPS for result in used),
        outcomes=dict(Counter("MISSING" if result is None else result.status for result in planned)),
        stale=sum(result.final and not is_present(result.provenance) for result in results),
        stale_used=bool(used) and not is_present(used[0].provenance),
        timed=len(timed),
        device=timed[0].provenance.device_name if timed else "",
        exclusive=bool(alone),
        system=system,
        metrics=_measured(used),
    )


def _intervals(used: Sequence[TrialResult], maps: int) -> dict[str, Any]:
    """Return how far the means may be off, over seeds and over the test maps, which all seeds share."""
    rates = _present(result.test_success_rate for result in used)
    deviation = deviation_of(rates)
    between_maps = mean_of(result.test_success_deviation for result in used)
    exact = mean_of(result.test_exact for result in used)
    return {
        "over_seeds": None if deviation is None else reach_over_seeds(deviation, len(rates)),
        "over_maps": None if between_maps is None else reach_over_maps(between_maps, maps),
        "exact_interval": None if exact is None else wilson(exact, maps),
    }


def _measured(used: Sequence[TrialResult]) -> dict[str, Measured]:
    values = {name: _present(result.metrics.get(name) for result in used) for result in used for name in result.metrics}
    return {name: Measured(math.fsum(v) / len(v), deviation_of(v)) for name, v in values.items() if v}


def _by_distance(used: Sequence[TrialResult]) -> dict[str, Any]:
    counted = [bins for result in used if (bins := distance_bins(result))]
    shares = (mean_of(arrivals / cells for cells, arrivals in one if cells) for one in zip(*counted, strict=True))
    return {"success_by_distance": tuple(shares), "counted_by_distance": len(counted)}


def distance_bins(result: TrialResult) -> list[tuple[int, int]]:
    """Return starts and arrivals per bin of `rollout.DISTANCE_BINS`, empty where they were not counted."""
    return list(zip(result.test_cells_by_distance, result.test_arrivals_by_distance, strict=True))


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def notes(row: Row) -> list[str]:
    """Return what a reader must know about a row beyond its numbers, shortest first in importance."""
    words = []
    if row.trial_diverged:
        words.append(f"{row.trial_diverged}/{row.used} {'diverged' if row.system else 'under 20 %'}")
    if row.forward_diverged:
        words.append(f"{row.forward_diverged}/{row.used} forward diverged")
    if row.backward_stalled:
        words.append(f"{row.backward_stalled}/{row.used} backward stalled")
    if row.cut_short:
        words.append(f"{row.cut_short}/{row.used} under {FEW_STEPS} steps in the budget")
    for status, word in (("OUT_OF_MEMORY", "OOM"), ("FAILED", "failed"), ("CANCELLED", "cancelled")):
        if row.outcomes.get(status):
            words.append(f"{row.outcomes[status]} {word}")
    if row.stale:
        words.append(f"{row.stale} stale{', shown' if row.stale_used else ', left out'}")
    if row.timed < row.used:
        words.append(f"times of {row.timed} on {row.device}")
    if 0 < row.counted_by_distance < row.used:
        words.append(f"path lengths of {row.counted_by_distance}")
    return words


def success(row: Row) -> str:
    """Return the success rate in percent as in the paper, "62.1 ± 1.3", or the word for why there is none."""
    if row.success_rate is None:
        return "OOM" if row.outcomes.get("OUT_OF_MEMORY") else MISSING
    deviation = row.success_rate_std
    return with_deviation(100 * row.success_rate, None if deviation is None else 100 * deviation)
