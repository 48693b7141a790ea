"""What stands in the tables: each column's heading, its number and how it is written, once for all formats."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from datagen.spec import nearest
from orchestrator.errors import SweepError
from orchestrator.sweep.systems import SYSTEMS, Metric
from orchestrator.tables.aggregates import Aggregate
from orchestrator.tables.comparison import Comparison
from orchestrator.tables.generalisation import Further, sets_of_maps
from orchestrator.tables.paper import Entry
from orchestrator.tables.rows import DISTANCE_BIN_NAMES, Row, notes, success
from orchestrator.tables.statistics import Difference, Estimate
from orchestrator.tables.table import MISSING, Cell, Table, headings, varying
from orchestrator.words import shown


@dataclass(frozen=True)
class Quantity:
    """A number of a row, in the unit of its heading.

    Attributes:
        heading: Stands above its column.
        macro: What its LaTeX macros end in.
        value: Takes it from a row.
        scale: Its unit in the heading's.
        form: How it is written.
    """

    heading: str
    macro: str
    value: Callable[[Row], float | None]
    scale: float = 1
    form: str = ".1f"

    def __call__(self, row: Row) -> str:
        """Return the number as it is written, a dash where there is none."""
        value = self.value(row)
        return MISSING if value is None else f"{value * self.scale:{self.form}}"


MEAN = Quantity("mean %", "SuccessMean", attrgetter("success_rate"), 100)
DEVIATION = Quantity("std %", "SuccessStd", attrgetter("success_rate_std"), 100)
OPTIMALITY = Quantity("optimality %", "Optimality", attrgetter("optimality"), 100)
SPL = Quantity("SPL %", "Spl", attrgetter("spl"), 100)
OVER_SEEDS = Quantity("± over seeds", "OverSeeds", attrgetter("over_seeds"), 100)
OVER_MAPS = Quantity("± over maps", "OverMaps", attrgetter("over_maps"), 100)
EXACT = Quantity("exact %", "Exact", attrgetter("exact"), 100)
SEARCHED = Quantity("search on its map %", "Searched", attrgetter("searched"), 100)
COSTS = (
    Quantity("forward ms", "ForwardMs", attrgetter("forward_seconds"), 1e3),
    Quantity("backward ms", "BackwardMs", attrgetter("backward_seconds"), 1e3),
    Quantity("peak MiB", "PeakMib", attrgetter("peak_bytes"), 1 / 2**20),
)
TRAINING = Quantity("training s", "TrainSeconds", attrgetter("train_seconds"))
PARAMETERS = Quantity("parameters", "Parameters", attrgetter("parameters"), form=",")
WIDE = (OVER_SEEDS, OVER_MAPS, EXACT, TRAINING, PARAMETERS)


def _share(place: int, row: Row) -> float | None:
    return row.success_by_distance[place] if row.success_by_distance else None


DISTANCES = tuple(
    Quantity(
        f"{name} steps %",
        f"Success {name.replace('≤', 'upto').replace('>', 'over')}",
        functools.partial(_share, place),
        100,
    )
    for place, name in enumerate(DISTANCE_BIN_NAMES)
)


def quantities(wide: bool = False) -> tuple[Quantity, ...]:
    """Return every quantity of a row; parameters are counted, and path lengths told apart, in wide tables alone."""
    more = [quantity for quantity in WIDE if wide or quantity is not PARAMETERS]
    return (MEAN, DEVIATION, OPTIMALITY, SPL, SEARCHED, *COSTS, *more, *(DISTANCES if wide else ()))


@dataclass(frozen=True)
class MetricColumn:
    """A metric of a system as a column: mean ± std over seeds, in the metric's own unit and form.

    Attributes:
        name: Its name.
        metric: What it is.
    """

    name: str
    metric: Metric

    def value(self, number: float) -> str:
        """Return a number as it is written."""
        return f"{number * self.metric.scale:{self.metric.form}}"

    def __call__(self, row: Row) -> str:
        """Return what stands in its column, a dash where there is no number."""
        found = row.metrics.get(self.name)
        if found is None:
            return MISSING
        return self.value(found.mean) + ("" if found.deviation is None else f" ± {self.value(found.deviation)}")


def metric_columns(rows: Iterable[Row]) -> dict[str, MetricColumn]:
    """Return the columns, by heading, of the metrics that any of the rows has; none for planners."""
    found: dict[str, MetricColumn] = {}
    for row in rows:
        known = SYSTEMS[row.system].metrics if row.system in SYSTEMS else {}
        found |= {m.label(name): MetricColumn(name, m) for name, m in known.items() if name in row.metrics}
    return found


_NUMBERS = (SPL, SEARCHED, *COSTS, *WIDE, *DISTANCES)
_EVERY = ("success %", *(one.heading for one in _NUMBERS), "n", "notes")


def headings_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the headings of columns that are named by them, or by their first words.

    Raises:
        SweepError: There is no such column, or there are several.
    """
    found = []
    for name in columns:
        alike = [one for one in _EVERY if one.lower().startswith(name.strip().lower()) and name.strip()]
        exact = [one for one in alike if one.lower() in (name.strip().lower(), f"{name.strip().lower()} %")]
        if len(exact or alike) != 1:
            known = nearest(name, [one.removesuffix(" %") for one in _EVERY])
            raise SweepError(f"--columns: no single column {name!r:.80}; {known}")
        found += exact or alike
    return tuple(found)


def cells_table(title: str, rows: Sequence[Row], wide: bool = False, only: Sequence[str] = ()) -> Table:
    """Return the table of a sweep's cells.

    Args:
        title: Name of the sweep.
        rows: Its cells.
        wide: Whether to add the columns that most readers do not need.
        only: Headings of the columns to be shown beside the axes; all where none is named.
    """
    if any(row.system for row in rows):
        return _systems_table(title, rows)
    columns: dict[str, Callable[[Row], Cell | str]] = {
        "success %": lambda row: Cell(success(row), "italic" if row.trial_diverged else ""),
        SPL.heading: SPL,
        **({SEARCHED.heading: SEARCHED} if any(row.searched is not None for row in rows) else {}),
        "n": lambda row: f"{row.used}/{row.expected}",
        **{cost.heading: cost for cost in COSTS},
    }
    if wide:
        counted = any(row.counted_by_distance for row in rows)
        columns |= {quantity.heading: quantity for quantity in (*WIDE, *(DISTANCES if counted else ()))}
        columns[EXACT.heading] = _exact
    columns["notes"] = lambda row: "; ".join(notes(row))
    columns = {heading: columns[heading] for heading in only or columns if heading in columns}
    axes = varying([row.axes for row in rows])
    lines = [[*_place(row, axes), *(column(row) for column in columns.values())] for row in rows]
    return Table.of(
        "cells",
        f"{title}, mean ± std over seeds; breadth-first search on the given map: 100 %",
        [*headings(axes), *columns],
        lines,
    )


def _exact(row: Row) -> str:
    if row.exact_interval is None:
        return EXACT(row)
    low, high = row.exact_interval
    return f"{EXACT(row)} [{100 * low:.1f}, {100 * high:.1f}]"


def _systems_table(title: str, rows: Sequence[Row]) -> Table:
    """Return the table of cells that are systems: their metrics, and how long training took."""
    columns: dict[str, Callable[[Row], Cell | str]] = {
        **metric_columns(rows),
        "n": lambda row: f"{row.used}/{row.expected}",
        TRAINING.heading: TRAINING,
        "notes": lambda row: "; ".join(notes(row)),
    }
    axes = varying([row.axes for row in rows])
    lines = [[*_place(row, axes), *(column(row) for column in columns.values())] for row in rows]
    return Table.of("cells", f"{title}, mean ± std over seeds", [*headings(axes), *columns], lines)


def further_table(further: Sequence[Further], axes: Sequence[str]) -> Table:
    """Return the table of further tests.

    Args:
        further: The tests.
        axes: The axes that tell the sweep's cells apart.
    """
    columns = sets_of_maps(further)
    lines = []
    for row in further:
        ks = sorted({test.k for test in row.tests})
        k = str(ks[0]) if len(ks) == 1 else f"{ks[0]} to {ks[-1]}"
        rates = [str(row.on(*column) or MISSING) for column in columns]
        lines.append([*_place(row, axes), k, *rates, str(max(test.n for test in row.tests))])
    names = [f"{name or f'{size}x{size}'} %" for size, name in columns]
    header = [*headings(axes), "test K", *names, "n"]
    return Table.of("further", "Success on maps of other sizes, mean ± std over seeds", header, lines)


def _place(row: Row | Further, axes: Sequence[str]) -> list[str]:
    return [shown(row.axes.get(axis, MISSING)) for axis in axes]


def paper_table(entries: Sequence[Entry]) -> Table:
    """Return the table of our numbers beside those of the paper's Table 1."""
    header = ["planner", "task", "size", "ours %", "n", "paper %", "difference [95 %]", "notes"]
    lines: list[list[Cell | str]] = [
        [
            entry.planner,
            entry.task,
            str(entry.map_size),
            Cell(our_success(entry), "italic" if entry.diverged else ""),
            f"{entry.ours.n if entry.ours else 0}/{entry.expected}",
            f"{entry.paper.mean:.2f} ± {entry.paper.deviation:.2f}",
            difference(entry.difference),
            "; ".join(_notes(entry)),
        ]
        for entry in entries
    ]
    title = "Beside the paper's Table 1: mean ± std over seeds and K, ours minus the paper's with Welch's interval"
    return Table.of("paper", title, header, lines)


def our_success(entry: Entry) -> str:
    """Return our success rate in percent, or the word for why there is none."""
    return str(entry.ours) if entry.ours else "OOM" if entry.out_of_memory else MISSING


def _notes(entry: Entry) -> list[str]:
    words = [f"{entry.diverged} under 20 %"] if entry.diverged else []
    words += [f"{entry.out_of_memory} OOM"] if entry.out_of_memory else []
    return [*words, "of other code"] if entry.stale else words


def aggregates_table(found: Sequence[Aggregate]) -> Table:
    """Return the table of planners over all problems and seeds."""
    header = ["planner", "middle half % [95 %]", f"better than {found[0].planner} % [95 %]", "n"]
    lines = [
        [
            one.planner,
            _estimate(one.interquartile_mean, 1, ".1f"),
            MISSING if one.better_than_first is None else _estimate(one.better_than_first, 100, ".0f"),
            str(one.interquartile_mean.n),
        ]
        for one in found
    ]
    title = (
        f"Over the {found[0].problems} problems that all planners have (task, size, K): mean of the middle half of all "
        "trials (interquartile mean), and how often a seed beats one of the first planner, ties half (probability of "
        "improvement); intervals by bootstrap over the seeds of each problem, none where a problem has one"
    )
    return Table.of("aggregates", title, header, lines)


def _estimate(one: Estimate, scale: float, form: str) -> str:
    value = f"{scale * one.value:{form}}"
    if one.low is None or one.high is None:
        return value
    return f"{value} [{scale * one.low:{form}}, {scale * one.high:{form}}]"


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the table of planners against each other."""
    header = ["planner", "against", "task", "size", "difference [95 %]", "better %", "pairs"]
    lines: list[list[Cell | str]] = [
        [
            one.first,
            one.second,
            one.task or "all",
            "all" if one.map_size is None else str(one.map_size),
            difference(one.difference),
            MISSING if one.better is None else f"{100 * one.better.value:.0f}",
            f"{one.difference.n if one.difference else 0}/{one.expected}",
        ]
        for one in comparisons
    ]
    title = (
        "Success % of the first planner minus that of the second, paired by seed and K, with Student's interval over "
        "the pairs; how often a seed is better, ties half"
    )
    return Table.of("compared", title, header, lines)


def difference(one: Difference | None) -> Cell:
    """Return the cell of a difference, which looks better or worse where it is significant."""
    if one is None:
        return Cell(MISSING)
    return Cell(str(one), "" if not one.significant else "better" if one.value > 0 else "worse")
