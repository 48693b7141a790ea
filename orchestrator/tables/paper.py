"""The paper's own numbers beside ours, and the statistics that a fair comparison needs."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.sweep.specs import Scalar
from orchestrator.tables.freshness import is_present, of_one_version
from orchestrator.tables.records import Run, grouped, once, planner_of, provenance_of, usable
from planners.registry import CORES
from planners.specs import PlannerSpec, TrainingSpec

CONFIDENCE = 0.95
_SCALE = {"train": 10_000, "valid": 2_000, "test": 2_000}
_SEEDS = 5
_CORES = ("vin", "symvin", "conv_gppn")
_TASKS = ("navigation", "manipulation", "workspace_manipulation", "visual_navigation")


@dataclass(frozen=True)
class Sample:
    """Mean and sample standard deviation of `n` trials, in percent."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference of means with its confidence interval, in percentage points.

    Attributes:
        value: Ours minus theirs, or the first planner minus the second.
        low: Lower end of the 95 % interval; None where there are too few trials for one.
        high: Upper end.
        n: Trials (or pairs of trials) behind it.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def significant(self) -> bool:
        """True where the interval excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:+.1f}"
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@functools.cache
def paper() -> dict[str, Any]:
    """Return what the paper prints, from the data file beside this module."""
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))
    return content


def printed(planner: PlannerSpec, task: str, map_size: int) -> Sample | None:
    """Return the paper's Table 1 entry for a planner and a task, None where it has none.

    A planner with other sizes or solvers than the paper's has none.
    """
    table = paper()["table1"]
    column = {"task": task, "map_size": map_size}
    if column not in table["columns"] or not _is_the_papers(planner):
        return None
    for row in table["rows"]:
        if (row["core"], row["adjoint"]) == (planner.core, planner.adjoint):
            mean, deviation = row["success"][table["columns"].index(column)]
            return Sample(mean, deviation, table["trials"])
    return None


def _is_the_papers(planner: PlannerSpec) -> bool:
    plain = PlannerSpec(core=planner.core, adjoint=planner.adjoint)
    fields = ("solver", "solver_bwd", "k_bwd", "adjoint_options", "solver_options", "solver_bwd_options")
    return planner.options == CORES[planner.core].options_type() and all(
        getattr(planner, field) == getattr(plain, field) for field in fields
    )


@dataclass(frozen=True)
class Entry:
    """One cell of the paper's Table 1 beside ours, all K and seeds together.

    Attributes:
        planner: Name of the planner in the sweep, with its place on further axes than K and the seed.
        task: Name of the task.
        map_size: Rows of the map.
        paper: The printed numbers.
        ours: Ours, None where no trial is completed.
        expected: Trials of the sweep in this cell.
        diverged: How many of ours are under 20 %.
        out_of_memory: How many ran out of memory.
        stale: True where ours are of other code than the present.
        difference: Ours minus the paper's with a 95 % interval (Welch); None without ours.
    """

    planner: str
    task: str
    map_size: int
    paper: Sample
    ours: Sample | None
    expected: int
    diverged: int
    out_of_memory: int
    stale: bool
    difference: Difference | None


def beside_paper(runs: Sequence[Run]) -> list[Entry]:
    """Return the entries of Table 1 that the sweep has, in its order; empty where it has none."""
    entries = []
    # Of a planner's trials each once: one that two spellings of an axis list is one entry, and no further seed.
    each = {(run.axis("planner"), run.trial.trial_id): run for run in reversed(runs)}
    for (planner, task, size), own in grouped(list(each.values())[::-1], _cell).items():
        theirs = printed(own[0].trial.spec.planner, str(task), int(str(size)))
        if theirs is None:
            continue
        done = usable(own)
        ours = sample(_percents(done))
        entries.append(
            Entry(
                planner=str(planner),
                task=str(task),
                map_size=int(str(size)),
                paper=theirs,
                ours=ours,
                expected=len(own),
                diverged=sum(bool(run.result and run.result.trial_diverged) for run in done),
                out_of_memory=sum(run.out_of_memory for run in own),
                stale=any(run.result is not None and not is_present(run.result.provenance) for run in done),
                difference=None if ours is None else welch(ours, theirs),
            )
        )
    return entries


def _cell(run: Run) -> tuple[Scalar, Scalar, Scalar]:
    return planner_of(run), run.axis("task"), run.axis("map_size")


def _percents(runs: Iterable[Run]) -> list[float]:
    return [
        100 * run.result.test_success_rate
        for run in runs
        if run.result is not None and run.result.test_success_rate is not None
    ]


def sample(values: Sequence[float]) -> Sample | None:
    """Return mean, sample standard deviation (0 for a single value) and n; None for no values."""
    if not values:
        return None
    return Sample(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def scale_differences(runs: Sequence[Run]) -> list[str]:
    """Return in what the sweep is smaller than, or otherwise not, the paper's scale, in words; empty where it is.

    Only the paper's planners on its tasks count: what is in no paper need not be trained as the paper's are.
    """
    specs = [
        run.trial.spec for run in runs if run.trial.spec.planner.core in _CORES and run.trial.spec.data.task in _TASKS
    ]
    if not specs:
        return []
    said = []
    for split, count in _SCALE.items():
        found = sorted({int(getattr(spec.data, split)) for spec in specs})
        if found != [count]:
            said.append(f"{_list(found)} {split} maps, not {count:,}")
    plain = TrainingSpec()
    for field in TrainingSpec.model_fields:
        values = {getattr(spec.training, field) for spec in specs} - {getattr(plain, field)}
        if values and not field.startswith("jacobian"):
            usual = getattr(plain, field)
            instead = "" if usual is None else f", not {usual}"
            said.append(f"training.{field} {_list(sorted(values, key=str))}{instead}")
    seeds = len({spec.seed for spec in specs})
    if seeds != _SEEDS:
        said.append(f"{seeds} seed{'s' if seeds != 1 else ''}, not {_SEEDS}")
    ks = paper()["table1"]["k"]
    used = sorted({spec.planner.k_fwd for spec in specs})
    if beside_paper(runs) and used != ks:
        said.append(f"K {_list(used)}, not {_list(ks)}")
    if any(not _plain_sizes(spec.planner) for spec in specs):
        said.append("other layer sizes than the paper's")
    return said


def _plain_sizes(planner: PlannerSpec) -> bool:
    return planner.options == CORES[planner.core].options_type()


def _list(values: Sequence[Any]) -> str:
    return "/".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)


def paired_difference(runs: Sequence[Run], first: str, second: str) -> Difference | None:
    """Return how much better one planner is than another, seed by seed.

    Trials are paired that share task, size, seed and training data, and K where both planners have it; where they share
    no K, each side of a pair is the mean over its K. The difference of each pair is free of what the pair shares. None
    where there is no pair.

    Args:
        runs: The sweep's runs.
        first: Name of a planner in the sweep.
        second: Name of another.
    """
    both = [run for run in runs if run.axis("planner") in (first, second)]
    comparable = {id(run) for run in of_one_version([run for run in both if run.completed], provenance_of)}
    differences = []
    for one, other in pairs(both, first, second):
        rates = [_percents(run for run in side if id(run) in comparable) for side in (one, other)]
        # Half of a side's K would make another pair than the one that the sweep asks for.
        if len(rates[0]) == len(one) and len(rates[1]) == len(other):
            differences.append(statistics.fmean(rates[0]) - statistics.fmean(rates[1]))
    found = sample(differences)
    if found is None:
        return None
    if found.n < 2:
        return Difference(found.mean, None, None, found.n)
    reach = student_quantile(0.5 + CONFIDENCE / 2, found.n - 1) * found.deviation / math.sqrt(found.n)
    return Difference(found.mean, found.mean - reach, found.mean + reach, found.n)


def pairs(runs: Sequence[Run], first: str, second: str) -> list[tuple[list[Run], list[Run]]]:
    """Return the trials of two planners that belong together, done or not: each side is one trial, or one per K."""
    ks = [{run.axis("k") for run in runs if run.axis("planner") == name} for name in (first, second)]
    by_k = bool(ks[0] & ks[1])

    def place(run: Run) -> tuple[Any, ...]:
        rest = sorted((axis, str(value)) for axis, value in run.trial.axes.items() if axis not in ("planner", "k"))
        return (*rest, run.axis("k") if by_k else None)

    sides = [grouped((run for run in runs if run.axis("planner") == name), place) for name in (first, second)]
    found = [(once(own), once(sides[1][key])) for key, own in sides[0].items() if key in sides[1]]
    # Two spellings of a place are one pair.
    return list({tuple(run.trial.trial_id for run in (*one, *other)): (one, other) for one, other in found}.values())


def welch(ours: Sample, theirs: Sample) -> Difference:
    """Return the difference of two means with Welch's 95 % confidence interval, which assumes no common variance.

    Welch, The generalization of "Student's" problem, 1947.
    """
    value = ours.mean - theirs.mean
    if ours.n < 2 or theirs.n < 2:
        return Difference(value, None, None, ours.n)
    ours_share, their_share = ours.deviation**2 / ours.n, theirs.deviation**2 / theirs.n
    total = ours_share + their_share
    if total == 0.0:
        return Difference(value, value, value, ours.n)
    freedom = total**2 / (ours_share**2 / (ours.n - 1) + their_share**2 / (theirs.n - 1))
    reach = student_quantile(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(total)
    return Difference(value, value - reach, value + reach, ours.n)


@functools.lru_cache(maxsize=1024)
def student_quantile(probability: float, freedom: float) -> float:
    """Return t with P(T <= t) = probability for Student's distribution.

    Args:
        probability: In [0.5, 1).
        freedom: Degrees of freedom, positive, not necessarily whole.
    """
    if not 0.5 <= probability < 1.0 or freedom <= 0.0:
        raise ValueError(f"expected 0.5 <= probability < 1 and freedom > 0, got {probability} and {freedom}")
    # t = sqrt(freedom) tan(angle); dP = c cos(angle)^(freedom - 1) d angle, smooth where freedom >= 1.
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def share(angle: float) -> float:
        steps = 400  # Simpson's rule
        width = angle / steps
        values = [math.cos(i * width) ** (freedom - 1) for i in range(steps + 1)]
        return scale * width / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))

    low, high = 0.0, math.pi / 2 * (1 - 1e-12)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < probability - 0.5 else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)
