"""What a search has found: its suggestions in the order of the metric that it makes largest, on the validation maps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.sweep.search_space import Scalar, SearchSpec
from orchestrator.tables.records import TrialRecord
from orchestrator.tables.statistics import with_deviation
from orchestrator.tables.table import MISSING, Table, headings
from orchestrator.words import shown

BEST = "the best settings by validation"
_STUDY = ("planner", "task", "map_size")


@dataclass(frozen=True)
class Tried:
    """A suggestion and what became of it.

    Attributes:
        number: Its place in the order in which they were made, from 0.
        settings: What was suggested.
        value: The metric after its last epoch, mean over its trials; None where it has reached none.
        deviation: The same, standard deviation.
        reached: The metric after each epoch, mean over the trials that have come so far.
        trials: Ids of its trials.
        state: "complete", "stopped" (early), "failed" (or out of memory, or cancelled) or "running".
    """

    number: int
    settings: dict[str, Scalar]
    value: float | None
    deviation: float | None
    reached: tuple[float, ...]
    trials: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class Study:
    """The search of one planner on one task.

    Attributes:
        place: Planner, task, size of the maps and what else tells tasks apart.
        metric: What is made largest.
        tried: In the order in which they were made.
    """

    place: dict[str, Scalar]
    metric: str
    tried: tuple[Tried, ...]

    @property
    def name(self) -> str:
        """For people: "vin navigation-15"."""
        more = [shown(value) for axis, value in self.place.items() if axis not in _STUDY]
        return " ".join([f"{self.place['planner']} {self.place['task']}-{self.place['map_size']}", *more])

    @property
    def ranked(self) -> list[Tried]:
        """The suggestions, best first: those that were trained to the end before those that were stopped."""
        order = ("complete", "stopped", "running", "failed")
        return sorted(
            self.tried, key=lambda one: (order.index(one.state), -math.inf if one.value is None else -one.value)
        )

    @property
    def best(self) -> Tried | None:
        """The best by the validation metric of those that were trained to the end."""
        return next((one for one in self.ranked if one.state == "complete" and one.value is not None), None)

    def document(self) -> dict[str, Any]:
        """Return it as plain data, best first."""
        plain = [asdict(one) for one in self.ranked]
        for one in plain:
            one["reached"] = [value if math.isfinite(value) else None for value in one["reached"]]
        return {"place": self.place, "metric": self.metric, "suggestions": plain}


def studies_of(search: SearchSpec, runs: Sequence[TrialRecord]) -> list[Study]:
    """Return the studies of a search.

    Args:
        search: The search.
        runs: Its trials, with their curves.
    """
    studies: dict[tuple[tuple[str, Scalar], ...], dict[tuple[Scalar, ...], list[TrialRecord]]] = {}
    for run in runs:
        axes = run.trial.axes
        place = tuple((axis, value) for axis, value in axes.items() if axis in _STUDY or axis.startswith("data."))
        settings = tuple(axes[axis] for axis in search.space)
        studies.setdefault(place, {}).setdefault(settings, []).append(run)
    return [
        Study(
            dict(place),
            search.metric,
            tuple(_tried(number, search, settings, some) for number, (settings, some) in enumerate(tried.items())),
        )
        for place, tried in studies.items()
    ]


def _tried(number: int, search: SearchSpec, settings: Sequence[Scalar], runs: Sequence[TrialRecord]) -> Tried:
    values = [run.curves[-1][search.metric] for run in runs if run.curves and _is_number(run.curves[-1], search.metric)]
    reached = []
    for epoch in range(max((len(run.curves) for run in runs), default=0)):
        some = [run.curves[epoch][search.metric] for run in runs if len(run.curves) > epoch]
        reached.append(statistics.fmean(some) if all(map(math.isfinite, some)) else math.nan)
    return Tried(
        number,
        dict(zip(search.space, settings, strict=True)),
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
        tuple(reached),
        tuple(run.trial.trial_id for run in runs),
        _state(runs),
    )


def _is_number(record: dict[str, Any], name: str) -> bool:
    return isinstance(record.get(name), (int, float)) and math.isfinite(record[name])


def _state(runs: Sequence[TrialRecord]) -> str:
    results = [run.result for run in runs]
    if any(result is not None and result.status in ("FAILED", "OUT_OF_MEMORY") for result in results):
        return "failed"
    if any(result is not None and result.status == "CANCELLED" for result in results):
        early = all(result.reason.startswith("stopped early") for result in results if result and not result.final)
        return "stopped" if early else "failed"
    return "complete" if all(result is not None for result in results) else "running"


def best_runs(studies: Sequence[Study], runs: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the runs of each study's best suggestion: what the test maps may be looked at for."""
    kept = {(study.name, trial) for study in studies if study.best for trial in study.best.trials}
    names = {trial for _, trial in kept}
    return [run for run in runs if run.trial.trial_id in names]


def studies_table(studies: Sequence[Study]) -> Table:
    """Return the table of suggestions, best first within each study."""
    axes = list(studies[0].tried[0].settings) if studies and studies[0].tried else []
    metric = studies[0].metric if studies else ""
    lines = []
    for study in studies:
        for rank, one in enumerate(study.ranked, start=1):
            value = MISSING
            if one.value is not None:
                value = with_deviation(100 * one.value, None if one.deviation is None else 100 * one.deviation)
            place = [study.name] if len(studies) > 1 else []
            settings = [shown(one.settings[axis]) for axis in axes]
            lines.append([*place, str(rank), *settings, value, f"{len(one.trials)}", _note(study, one)])
    header = [*(["planner"] if len(studies) > 1 else []), "rank", *headings(axes), f"{metric} %", "n", "notes"]
    title = f"The search, best {metric} first (validation maps; nothing here is of the test maps)"
    return Table.of("search", title, header, lines)


def _note(study: Study, one: Tried) -> str:
    if one is study.best:
        return "best"
    words = {"stopped": f"stopped early after epoch {len(one.reached)}", "failed": "failed", "running": "still to end"}
    return words.get(one.state, "")
