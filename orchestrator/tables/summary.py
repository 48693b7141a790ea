"""What `idp table` says of a sweep: its cells, the paper's numbers beside ours, and planners against each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datagen.spec import nearest
from datagen.tasks.registry import TASKS
from orchestrator.sweep.specs import SweepError
from orchestrator.tables.generalisation import Further, further, sets_of_maps
from orchestrator.tables.paper import (
    Difference,
    Entry,
    beside_paper,
    paired_difference,
    pairs,
    paper,
    scale_differences,
)
from orchestrator.tables.records import Run, grouped
from orchestrator.tables.rows import DISTANCE_BIN_NAMES, MISSING, Row, notes, rows, success
from planners.specs import PlannerSpec

MIB = 2**20
_LABELS = {"k": "K", "map_size": "size"}
_LEFT = ("planner", "against", "task", "notes")


@dataclass(frozen=True)
class Comparison:
    """Two planners on the same problems, paired by seed, and by K where both have it.

    Attributes:
        first: Name of a planner in the sweep.
        second: Name of another.
        task: Name of the task; None for all tasks and sizes together.
        map_size: Rows of the map; None for all.
        difference: Success rate of the first minus that of the second, percentage points; None without a pair.
        expected: Pairs of the sweep.
    """

    first: str
    second: str
    task: str | None
    map_size: int | None
    difference: Difference | None
    expected: int


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Attributes:
        title: Stands above it.
        header: Names of the columns.
        cells: Its lines.
        italics: The cells, by line and column, behind which a trial diverged.
    """

    title: str
    header: list[str]
    cells: list[list[str]]
    italics: frozenset[tuple[int, int]] = frozenset()

    def is_text(self, column: int) -> bool:
        """True where the column holds words, which start at the left; numbers end at the right."""
        return self.header[column] in _LEFT


@dataclass(frozen=True)
class Summary:
    """Everything that is said of a sweep's results in numbers.

    Attributes:
        title: Name of the sweep.
        rows: One per cell: all seeds of a planner at one task, size and K.
        scale: In what the sweep differs from the paper's scale, in words; empty where it does not.
        entries: The cells of the paper's Table 1 that the sweep has, all seeds and K together.
        comparisons: Planners against each other, as asked for.
        further: What the trained planners do on the sweep's `test_on` maps.
        parameters: Trained parameters per row, as asked for.
        wide: Whether the columns that most readers do not need were asked for.
        training: How long the planners were trained at most, and which of their checkpoints was tested.
        damaged: What could not be read, a line per file.
    """

    title: str
    rows: list[Row]
    scale: list[str]
    entries: list[Entry]
    comparisons: list[Comparison]
    further: Sequence[Further] = ()
    parameters: list[int] | None = None
    wide: bool = False
    training: str = ""
    damaged: Sequence[str] = ()

    def warnings(self) -> list[str]:
        """Return what must be known before any number is read."""
        said = []
        if self.scale:
            said.append(f"Not the paper's scale: {'; '.join(self.scale)}.")
        if self.training:
            said.append(self.training)
        if any(row.trial_diverged for row in self.rows):
            said.append(
                "A trial under 20 % may be under-trained at this scale rather than diverged."
                if self.scale
                else "A trial under 20 % has diverged (the paper's italics)."
            )
        shared = sum(row.timed > 0 and not row.exclusive for row in self.rows)
        if shared:
            said.append(f"Times in {shared} of {len(self.rows)} rows are of trials that ran beside others.")
        if any(row.stale for row in self.rows) or any(entry.stale for entry in self.entries):
            said.append(
                "Stale, or of other code: trained by another version of the code; where there is nothing newer, shown "
                "as it was; idp run --rerun stale trains it again."
            )
        if self.wide and any(row.counted_by_distance for row in self.rows):
            said.append("The columns of steps: success of the starts whose shortest path has so many.")
        if self.damaged:
            said.append(f"{len(self.damaged)} damaged files are left out, the first: {self.damaged[0]}.")
        if self.entries:
            said.append(f"The paper's numbers: Table 1 of {paper()['source']}.")
        return said

    def grids(self) -> list[Grid]:
        """Return the tables as text, the paper's first; those that would be empty are left out."""
        found = []
        if self.entries:
            found.append(_entries_grid(self.entries))
        if self.comparisons:
            found.append(_comparisons_grid(self.comparisons))
        found.append(self._rows_grid())
        if self.further:
            found.append(self._further_grid())
        return found

    def row_axes(self) -> list[str]:
        """Return the axes that tell rows apart; one that never varies is left out, the planner and K are not."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.axes))
        first = [name for name in ("task", "map_size", "planner", "k") if name in names]
        return [
            name
            for name in first + [name for name in names if name not in first]
            if name in ("planner", "k") or len({str(row.axes.get(name, MISSING)) for row in self.rows}) > 1
        ]

    def _rows_grid(self) -> Grid:
        axes = self.row_axes()
        columns: dict[str, Callable[[int, Row], str]] = {
            "success %": lambda _, row: success(row),
            "SPL %": lambda _, row: _number(row.spl, 100, 1),
            "n": lambda _, row: f"{row.used}/{row.expected}",
            "forward ms": lambda _, row: _number(row.forward_seconds, 1e3, 1),
            "backward ms": lambda _, row: _number(row.backward_seconds, 1e3, 1),
            "peak MiB": lambda _, row: _number(row.peak_bytes, 1 / MIB, 1),
        }
        if self.wide:
            columns["training s"] = lambda _, row: _number(row.train_seconds, 1, 1)
            if self.parameters is not None:
                counts = self.parameters
                columns["parameters"] = lambda number, _: f"{counts[number]:,}"
            if any(row.counted_by_distance for row in self.rows):
                for place, name in enumerate(DISTANCE_BIN_NAMES):
                    columns[f"{name} steps %"] = functools.partial(_share, place)
        columns["notes"] = lambda _, row: "; ".join(notes(row))
        header = [*(_LABELS.get(name, name) for name in axes), *columns]
        cells = [
            [
                *(str(row.axes.get(name, MISSING)) for name in axes),
                *(written(number, row) for written in columns.values()),
            ]
            for number, row in enumerate(self.rows)
        ]
        italics = {(n, header.index("success %")) for n, row in enumerate(self.rows) if row.trial_diverged}
        return Grid(f"{self.title}, mean ± std over seeds", header, cells, frozenset(italics))

    def _further_grid(self) -> Grid:
        axes = self.row_axes()
        columns = sets_of_maps(self.further)
        cells = []
        for row in self.further:
            ks = sorted({test.k for test in row.tests})
            cells.append(
                [
                    *(str(row.axes.get(name, MISSING)) for name in axes),
                    str(ks[0]) if len(ks) == 1 else f"{ks[0]} to {ks[-1]}",
                    *(str(row.on(*column) or MISSING) for column in columns),
                    str(max(test.n for test in row.tests)),
                ]
            )
        names = [f"{name or f'{size}x{size}'} %" for size, name in columns]
        header = [*(_LABELS.get(name, name) for name in axes), "test K", *names, "n"]
        return Grid("Success on maps of other sizes, mean ± std over seeds", header, cells)

    def document(self) -> dict[str, Any]:
        """Return all numbers, unrounded, as plain data."""
        found = [asdict(row) for row in self.rows]
        for number, count in enumerate(self.parameters or []):
            found[number]["parameters"] = count
        return {
            "title": self.title,
            "not_the_papers_scale": self.scale,
            "training": self.training,
            "damaged": list(self.damaged),
            "rows": found,
            "beside_paper": [asdict(entry) for entry in self.entries],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "further_tests": [asdict(row) for row in self.further],
        }


def summarise(
    title: str, runs: Sequence[Run], *, wide: bool = False, compare: Iterable[tuple[str, str]] = ()
) -> Summary:
    """Return what there is to say.

    Args:
        title: Name of the sweep.
        runs: Its trials and their results.
        wide: Also count the planners' parameters.
        compare: Pairs of planners; the second is subtracted from the first.

    Raises:
        SweepError: A planner to compare is not in the sweep.
    """
    trials = [run.trial for run in runs]
    table = rows(trials, {run.trial.trial_id: run.result for run in runs if run.result})
    return Summary(
        title,
        table,
        scale_differences(runs),
        beside_paper(runs),
        [comparison for first, second in compare for comparison in _compared(runs, first, second)],
        further(runs),
        _parameters(runs) if wide else None,
        wide,
        _training(runs),
        [line for run in runs for line in run.damaged],
    )


def _training(runs: Sequence[Run]) -> str:
    """Return the budget in words; what differs between the sweep's trials is listed with slashes."""
    specs = [run.trial.spec.training for run in runs]
    words = []
    for field, unit in (
        ("epochs", "epochs"),
        ("most_steps", "steps"),
        ("most_seconds", "seconds"),
        ("most_applications", "applications of f per sample"),
    ):
        found = dict.fromkeys(getattr(spec, field) for spec in specs)
        if set(found) != {None}:
            unit = unit.removesuffix("s") if set(found) == {1} else unit
            words.append(f"{'/'.join('no limit' if most is None else f'{most:,}' for most in found)} {unit}")
    tested = {"last": "the last weights", "best": "the best on validation"}
    kinds = dict.fromkeys(tested[spec.tested_checkpoint] for spec in specs)
    first = " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"
    return f"Trained for {first}{', whichever is first' if len(words) > 1 else ''}; tested: {' or '.join(kinds)}."


def _compared(runs: Sequence[Run], first: str, second: str) -> list[Comparison]:
    known = {str(run.axis("planner")) for run in runs}
    for name in (first, second):
        if name not in known:
            raise SweepError(f"--compare: no planner {name!r} in the sweep; {nearest(name, known)}")
    both = [run for run in runs if run.axis("planner") in (first, second)]
    problems = grouped(both, lambda run: (str(run.axis("task")), int(str(run.axis("map_size")))))
    found = [_comparison(own, first, second, task, size) for (task, size), own in problems.items()]
    return found if len(found) == 1 else [*found, _comparison(both, first, second, None, None)]


def _comparison(runs: Sequence[Run], first: str, second: str, task: str | None, size: int | None) -> Comparison:
    expected = len(pairs(runs, first, second))
    return Comparison(first, second, task, size, paired_difference(runs, first, second), expected)


def _parameters(runs: Sequence[Run]) -> list[int]:
    """Return the trained parameters of each row's planner, mapper included."""
    cells = grouped(runs, lambda run: tuple((k, v) for k, v in run.trial.axes.items() if k != "seed"))
    return [
        count_parameters(own[0].trial.spec.planner, len(TASKS[own[0].trial.spec.data.task].moves.names))
        for own in cells.values()
    ]


def count_parameters(planner: PlannerSpec, actions: int) -> int:
    """Return how many numbers a planner learns; K changes nothing about it."""
    return _count(planner.model_copy(update={"k_fwd": 1}), actions)


@functools.cache
def _count(planner: PlannerSpec, actions: int) -> int:
    from planners.planner import build_planner

    built = build_planner(planner, actions=actions, kernel="reference")
    return sum(weights.numel() for weights in built.parameters() if weights.requires_grad)


def _entries_grid(entries: Sequence[Entry]) -> Grid:
    header = ["planner", "task", "size", "ours %", "n", "paper %", "difference [95 %]", "notes"]
    cells = []
    for entry in entries:
        ours = "OOM" if entry.out_of_memory else MISSING
        if entry.ours is not None:
            ours = f"{entry.ours.mean:.1f}" + (f" ± {entry.ours.deviation:.1f}" if entry.ours.n > 1 else "")
        said = []
        if entry.diverged:
            said.append(f"{entry.diverged} under 20 %")
        if entry.out_of_memory:
            said.append(f"{entry.out_of_memory} OOM")
        if entry.stale:
            said.append("of other code")
        cells.append(
            [
                entry.planner,
                entry.task,
                str(entry.map_size),
                ours,
                f"{entry.ours.n if entry.ours else 0}/{entry.expected}",
                f"{entry.paper.mean:.2f} ± {entry.paper.deviation:.2f}",
                MISSING if entry.difference is None else str(entry.difference),
                "; ".join(said),
            ]
        )
    italics = frozenset((number, 3) for number, entry in enumerate(entries) if entry.diverged)
    return Grid(
        "Beside the paper's Table 1: mean ± std over seeds and K, ours minus the paper's", header, cells, italics
    )


def _comparisons_grid(comparisons: Sequence[Comparison]) -> Grid:
    header = ["planner", "against", "task", "size", "difference [95 %]", "pairs"]
    cells = [
        [
            one.first,
            one.second,
            one.task or "all",
            "all" if one.map_size is None else str(one.map_size),
            MISSING if one.difference is None else str(one.difference),
            f"{one.difference.n if one.difference else 0}/{one.expected}",
        ]
        for one in comparisons
    ]
    return Grid("Success % of the first planner minus that of the second, paired by seed and K", header, cells)


def _share(place: int, _: int, row: Row) -> str:
    return _number(row.success_by_distance[place] if row.success_by_distance else None, 100, 1)


def _number(value: float | None, scale: float, digits: int) -> str:
    return MISSING if value is None else f"{value * scale:.{digits}f}"
