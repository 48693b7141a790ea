"""What `idp table` says of a sweep: its cells, the paper's numbers beside ours, and planners against each other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from datagen.tasks.registry import TASKS
from orchestrator.sweep.search_space import SearchSpec
from orchestrator.tables.aggregates import Aggregate, aggregates
from orchestrator.tables.columns import (
    WIDE,
    aggregates_table,
    cells_table,
    comparisons_table,
    further_table,
    headings_of,
    paper_table,
)
from orchestrator.tables.comparison import Comparison, compared
from orchestrator.tables.generalisation import Further, further
from orchestrator.tables.layout import layout_table
from orchestrator.tables.measures import measured_tables
from orchestrator.tables.paper import Entry, beside_paper, paper, scale_differences
from orchestrator.tables.records import TrialRecord, cell_of, grouped
from orchestrator.tables.rows import Row, rows
from orchestrator.tables.studies import BEST, Study, best_runs, studies_of, studies_table
from orchestrator.tables.table import Table, varying
from orchestrator.words import counted
from planners.specs import PlannerSpec


@dataclass(frozen=True)
class Summary:
    """Everything that is said of a sweep's results in numbers.

    Attributes:
        title: Name of the sweep.
        rows: One per cell: all seeds of a planner at one task, size and K.
        scale: In what the sweep differs from the paper's scale, in words; empty where it does not.
        entries: The cells of the paper's Table 1 that the sweep has, all seeds and K together.
        comparisons: Planners against each other, as asked for.
        aggregates: Planners over all problems and seeds together.
        further: What the trained planners do on the sweep's `test_on` maps.
        wide: Whether the columns that most readers do not need were asked for.
        training: How long the planners were trained at most, and which of their checkpoints was tested.
        damaged: What could not be read, a line per file.
        layout: Success in the paper's own layout; None where there is one planner alone.
        columns: Headings of the columns that were asked for; all where none was.
        studies: What a search has found; all else is then of each study's best suggestion alone.
    """

    title: str
    rows: list[Row]
    scale: list[str]
    entries: list[Entry]
    comparisons: list[Comparison]
    aggregates: Sequence[Aggregate] = ()
    further: Sequence[Further] = ()
    wide: bool = False
    training: str = ""
    damaged: Sequence[str] = ()
    layout: Table | None = None
    columns: Sequence[str] = ()
    studies: Sequence[Study] = ()

    def warnings(self) -> list[str]:
        """Return what must be known before any number is read."""
        words = []
        if self.scale:
            words.append(f"Not the paper's scale: {'; '.join(self.scale)}.")
        if self.training:
            words.append(self.training)
        if any(row.trial_diverged and not row.system for row in self.rows):
            words.append(
                "A trial under 20 % may be under-trained at this scale rather than diverged."
                if self.scale
                else "A trial under 20 % has diverged (the paper's italics)."
            )
        shared = sum(row.timed > 0 and not row.exclusive for row in self.rows)
        if shared:
            words.append(f"Times in {shared} of {len(self.rows)} rows are of trials that were not timed alone.")
        if any(row.stale for row in self.rows) or any(entry.stale for entry in self.entries):
            words.append(
                "Stale, or of other code: trained by another version of the code; where there is nothing newer, shown "
                "as it was; idp run --rerun stale trains it again."
            )
        if any(test.stale for row in self.further for test in row.tests):
            words.append(
                "Tests on further maps are in part of other code, shown as they were; idp run makes them again."
            )
        if self.wide:
            words.append(
                "95 % intervals of success: over seeds (Student), over the test maps (normal); of exact, the share of "
                "maps whose whole way is a shortest one, over the maps (Wilson)."
            )
        if self.wide and any(row.counted_by_distance for row in self.rows):
            words.append("The columns of steps: success of the starts whose shortest path has so many.")
        if self.damaged:
            words.append(f"Left out: {counted(len(self.damaged), 'damaged file')}, the first: {self.damaged[0]}.")
        if self.entries:
            words.append(f"The paper's numbers: Table 1 of {paper()['source']}.")
        return words

    def tables(self) -> list[Table]:
        """Return the tables, the paper's first; those that would be empty are left out."""
        cells = cells_table(f"{self.title}: {BEST}" if self.studies else self.title, self.rows, self.wide, self.columns)
        if self.studies:
            return [studies_table(self.studies), *([cells] if self.rows else []), *self._further_tables()]
        tables = [paper_table(self.entries)] if self.entries else []
        tables += [comparisons_table(self.comparisons)] if self.comparisons else []
        tables += [aggregates_table(self.aggregates)] if self.aggregates else []
        return [*tables, cells, *self._further_tables()]

    def _further_tables(self) -> list[Table]:
        measured = measured_tables(self.further, self.row_axes())
        return measured or ([further_table(self.further, self.row_axes())] if self.further else [])

    def row_axes(self) -> list[str]:
        """Return the axes that tell rows apart."""
        return varying([row.axes for row in self.rows])

    def document(self) -> dict[str, Any]:
        """Return all numbers, unrounded, as plain data."""
        cells = [asdict(row) for row in self.rows]
        for cell in cells:
            for name in ("parameters", "system", "metrics"):  # what most sweeps' rows have not
                if not cell[name]:
                    del cell[name]
        return {
            "title": self.title,
            "not_the_papers_scale": self.scale,
            "training": self.training,
            "damaged": list(self.damaged),
            **({"studies": [study.document() for study in self.studies]} if self.studies else {}),
            "rows": cells,
            "beside_paper": [asdict(entry) for entry in self.entries],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "aggregates": [asdict(one) for one in self.aggregates],
            "further_tests": [_plain(row) for row in self.further],
        }


def _plain(row: Further) -> dict[str, Any]:
    plain = asdict(row)
    for test in plain["tests"]:
        test |= {name: bins and bins.model_dump() for name, bins in test.items() if name in ("lengths", "detours")}
    return plain


def summarise(
    title: str,
    runs: Sequence[TrialRecord],
    *,
    wide: bool = False,
    compare: Iterable[tuple[str, str]] = (),
    columns: Iterable[str] = (),
    search: SearchSpec | None = None,
) -> Summary:
    """Return what there is to say.

    Args:
        title: Name of the sweep.
        runs: Its trials and their results.
        wide: Also count the planners' parameters.
        compare: Pairs of planners; the second is subtracted from the first.
        columns: Columns of the table of cells, by their headings or the first words of them; all where none is named.
        search: Of a sweep with one, whose runs then have their curves: of the test maps, only what its best settings
            do there is shown.

    Raises:
        SweepError: A planner to compare is not in the sweep, or there is no such column.
    """
    chosen = headings_of(columns)
    wide = wide or any(quantity.heading in chosen for quantity in WIDE)
    training, damaged = _training(runs), [line for run in runs for line in run.damaged]
    studies = studies_of(search, runs) if search is not None else []
    if search is not None:
        runs = best_runs(studies, runs)
    cells = rows([run.trial for run in runs], {run.trial.trial_id: run.result for run in runs if run.result})
    if wide:
        cells = [
            row if row.system else replace(row, parameters=count)
            for row, count in zip(cells, _parameters(runs), strict=True)
        ]
    return Summary(
        title,
        cells,
        scale_differences(runs),
        beside_paper(runs),
        [comparison for first, second in compare for comparison in compared(runs, first, second)],
        aggregates(runs),
        further(runs),
        wide,
        training,
        damaged,
        layout_table(runs),
        chosen,
        studies,
    )


def _training(runs: Sequence[TrialRecord]) -> str:
    """Return the budget in words; what differs between the sweep's trials is listed with slashes."""
    specs = [run.trial.spec.training for run in runs]
    words = []
    for field, unit in (
        ("epochs", "epochs"),
        ("most_steps", "steps"),
        ("most_seconds", "seconds"),
        ("most_applications", "applications of f per sample"),
    ):
        limits = dict.fromkeys(getattr(spec, field) for spec in specs)
        if set(limits) != {None}:
            unit = unit.removesuffix("s") if set(limits) == {1} else unit
            words.append(f"{'/'.join('no limit' if most is None else f'{most:,}' for most in limits)} {unit}")
    tested = {"last": "the last weights", "best": "the best on validation"}
    kinds = dict.fromkeys(tested[spec.tested_checkpoint] for spec in specs)
    first = " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"
    return f"Trained for {first}{', whichever is first' if len(words) > 1 else ''}; tested: {' or '.join(kinds)}."


def _parameters(runs: Sequence[TrialRecord]) -> list[int]:
    """Return the trained parameters of each row's planner, mapper included."""
    specs = [members[0].trial.spec for members in grouped(runs, cell_of).values()]
    return [
        0 if spec.system else count_parameters(spec.planner, len(TASKS[spec.data.task].moves.names)) for spec in specs
    ]


def count_parameters(planner: PlannerSpec, actions: int) -> int:
    """Return how many numbers a planner learns; K changes nothing about it."""
    return _count(planner.model_copy(update={"k_fwd": 1}), actions)


@functools.cache
def _count(planner: PlannerSpec, actions: int) -> int:
    from planners.planner import build_planner

    built = build_planner(planner, actions=actions, kernel="reference")
    return sum(weights.numel() for weights in built.parameters() if weights.requires_grad)
