"""The report of a sweep: one self-contained HTML page that needs no network, to be read from a link or a file."""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from datagen.tasks.registry import dataset_id
from orchestrator.command import Command
from orchestrator.figures.parts import NothingToDraw
from orchestrator.figures.registry import K_ARE_DIFFERENT, draw, drawing, figures_of
from orchestrator.figures.style import inline_svg, style
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import write_bytes
from orchestrator.storage.variants import every_trial, make_way
from orchestrator.sweep.search_space import SearchSpec
from orchestrator.sweep.specs import PlannedTrial, SweepSpec
from orchestrator.tables.columns import cells_table, comparisons_table, difference, our_success
from orchestrator.tables.comparison import compared_twins
from orchestrator.tables.freshness import is_present
from orchestrator.tables.paper import beside_paper, paper, scale_differences
from orchestrator.tables.records import TrialRecord, cell_of, collect, grouped
from orchestrator.tables.rows import rows
from orchestrator.tables.studies import best_runs, studies_of, studies_table
from orchestrator.tables.table import MISSING, Cell, Table
from orchestrator.words import counted, trial_name

OF_PLANNERS = (
    "Mean ± standard deviation over seeds; n is the number of trials behind the numbers, of those planned; times are "
    "medians of a training step. Italics: a trial under 20 %; OOM: out of memory; a dash: no trial is done. Stale: of "
    "other code than the present. Click a head to sort."
)
OF_SYSTEMS = (
    "Mean ± standard deviation over seeds, on test samples; an arrow says which way is better; n is the number of "
    "trials behind the numbers, of those planned; a dash: there is no number. Stale: of other code than the present. "
    "Click a head to sort."
)
"""How to read the table of results."""


@dataclass(frozen=True)
class Page:
    """What the report says beyond the runs.

    Attributes:
        command: What runs the sweep; None where that is not known.
        generated: When the page was made.
        running: True while the sweep runs: the page then reloads itself.
    """

    command: Command | None = None
    generated: datetime | None = None
    running: bool = False


def write_report(
    sweep: SweepSpec,
    storage: Storage,
    out: Path | None = None,
    *,
    trials: Sequence[PlannedTrial] | None = None,
    command: Command | None = None,
    running: bool = False,
) -> Path:
    """Write the report and return its path; the report that another variant of the sweep left there is kept beside it.

    Args:
        sweep: The sweep.
        storage: The storage directory.
        out: A folder; None is the sweep's own in the storage.
        trials: Those that were chosen; None for all.
        command: What runs the sweep; None where that is not known.
        running: True while the sweep runs.
    """
    path = storage.sweep(sweep.name).report if out is None else Path(out) / "report.html"
    page = Page(command, datetime.now(UTC), running)
    runs = collect(sweep, every_trial(sweep, storage) if trials is None else trials, storage)
    content = encoded(report(sweep, runs, page))
    if out is None:
        make_way(sweep, storage, path.name)
    write_bytes(path, content)
    return path


def encoded(page: str) -> bytes:
    """Return the page's bytes; what a file's name has that is no text is written as an escape."""
    return page.encode(errors="backslashreplace")


def report(sweep: SweepSpec, runs: Sequence[TrialRecord], page: Page = Page()) -> str:
    """Return the report as HTML; of a search, numbers of the test maps are of its best settings alone."""
    every, studies = runs, studies_of(sweep.search, runs) if sweep.search is not None else []
    missing = [run for run in runs if run.result is None]
    share = 100 * (len(runs) - len(missing)) / max(1, len(runs))
    if sweep.search is not None:
        runs = best_runs(studies, runs)
    scale = scale_differences(runs)
    entries = {(entry.planner, (entry.task, entry.map_size)): entry for entry in beside_paper(runs)}
    cells = rows([run.trial for run in runs], {run.trial.trial_id: run.result for run in runs if run.result})
    twins = compared_twins(runs)
    return _template().render(
        sweep=sweep,
        page=page,
        facts=_facts(page),
        share=share,
        tiles=_tiles(every, "under 20 %" if scale else "diverged"),
        scale=scale,
        claim=paper()["claims"].get(sweep.name),
        source=paper()["source"],
        entries=entries,
        planners=list(dict.fromkeys(planner for planner, _ in entries)),
        problems=list(dict.fromkeys(problem for _, problem in entries)),
        figures=[_figure(name, every, sweep.search) for name in figures_of(sweep)],
        twins=comparisons_table(twins) if twins else None,
        results=cells_table(sweep.name, cells),
        reading=OF_SYSTEMS if any(row.system for row in cells) else f"{OF_PLANNERS} {K_ARE_DIFFERENT}",
        trouble=_trouble(every, "diverged or under-trained" if scale else "trial diverged"),
        studies=studies_table(studies) if studies else None,
        missing=_missing(missing),
        missing_trials=len(missing),
        provenance=_provenance(sweep, every),
        commands=_commands(page),
    )


@functools.cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals |= {"our_success": our_success, "difference": difference, "counted": counted, "dash": MISSING}
    return environment.get_template("report.html")


def _facts(page: Page) -> list[str]:
    facts = []
    if page.command is not None:  # else it is not known whether there was a profile
        facts.append(f"profile {page.command.profile}" if page.command.profile else "no profile")
    facts += ["still running, this page reloads itself"] if page.running else []
    return [*facts, f"{page.generated:%Y-%m-%d %H:%M} UTC"] if page.generated else facts


def _tiles(runs: Sequence[TrialRecord], low: str) -> list[tuple[str, str]]:
    """Return the numbers that stand large above everything, each with what it counts.

    Args:
        runs: The sweep's runs.
        low: What a trial under 20 % is called.
    """
    results = [run.result for run in runs if run.result]
    count = Counter(result.status for result in results)
    tiles = [(f"{count['COMPLETED'] + count['OUT_OF_MEMORY']}/{len(runs)}", "trials done")]
    numbers = {
        "out of memory": count["OUT_OF_MEMORY"],
        low: sum(result.trial_diverged for result in results),
        "failed": count["FAILED"],
        "cancelled": count["CANCELLED"],
        "of other code": sum(result.final and not is_present(result.provenance) for result in results),
    }
    tiles += [(str(number), words) for words, number in numbers.items() if number]
    seconds = sum(result.train_seconds or 0.0 for result in results)
    return [*tiles, (_hours(seconds), "of training")] if seconds else tiles


def _hours(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@dataclass(frozen=True)
class _Figure:
    """A figure of the page; where there is nothing to draw, the caption says why and `svg` is empty."""

    caption: str
    title: str = ""
    svg: str = ""


def _figure(name: str, runs: Sequence[TrialRecord], search: SearchSpec | None) -> _Figure:
    line = drawing(name)
    try:
        figure = draw(name, runs, search=search)
    except NothingToDraw as error:
        return _Figure(str(error))
    with style():
        return _Figure(line.caption, line.title, inline_svg(figure, f"figure-{name}", line.title))


def _trouble(runs: Sequence[TrialRecord], low: str) -> Table:
    """Return what diverged, ran out of memory or failed, and where.

    Args:
        runs: The sweep's runs.
        low: What a trial under 20 % is called.
    """
    lines: list[list[Cell | str]] = []
    for run in runs:
        result, notes = run.result, [f"damaged, left out: {line}" for line in run.damaged]
        if result is not None and result.status != "COMPLETED":
            notes.append(f"{result.status.replace('_', ' ').lower()}: {result.reason}".rstrip(": "))
        if result is not None and result.trial_diverged and result.test_success_rate is not None:
            notes.append(f"{low}: success {100 * result.test_success_rate:.1f} %, under 20 %")
        if result is not None and result.trial_diverged and run.trial.spec.system is not None:
            notes.append("diverged: a number of an epoch was not finite")
        if result is not None and result.forward_diverged:
            notes.append("forward iteration diverged")
        if result is not None and result.backward_stalled:
            notes.append("adjoint iteration stalled")
        if notes:
            lines.append([trial_name(run.trial), "; ".join(notes), Cell(run.trial.trial_id, "code")])
    return Table.of("trouble", "What diverged, ran out of memory or failed", ["what", "notes", "trial"], lines)


def _missing(runs: Sequence[TrialRecord]) -> Table:
    lines = [
        [
            " ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in cell),
            ", ".join(str(run.axis("seed")) for run in members),
        ]
        for cell, members in grouped(runs, cell_of).items()
    ]
    return Table.of("missing", "Missing", ["what", "missing seeds"], lines)


def _provenance(sweep: SweepSpec, runs: Sequence[TrialRecord]) -> dict[str, str]:
    origins = [run.result.provenance for run in runs if run.result]

    def each(values: Iterable[str]) -> str:
        counts = Counter(value for value in values if value)
        several = len(counts) > 1
        return ", ".join(f"{value} ({number})" if several else value for value, number in counts.most_common())

    commits = (
        f"{origin.git_commit[:12]}{' with uncommitted changes' if origin.git_dirty else ''}"
        for origin in origins
        if origin.git_commit
    )
    limit = sweep.execution.memory_limit_gib
    return {
        "code": each(f"{origin.code}{'' if is_present(origin) else ' (stale)'}" for origin in origins),
        "commit": each(commits),
        "libraries": ", ".join(sorted({f"{name} {version}" for o in origins for name, version in o.versions.items()})),
        "hosts": each(origin.host for origin in origins),
        "devices": each(origin.device_name for origin in origins),
        "memory limit": "none" if limit is None else f"{limit:g} GiB of tensors",
        "datasets": ", ".join(dict.fromkeys(dataset_id(run.trial.spec.data) for run in runs)),
    }


def _commands(page: Page) -> list[str]:
    """Return the commands that make the page again; none where nobody has said which file the sweep is in."""
    verbs = ("run", "table", "figures", "report")
    return [] if page.command is None else [shlex.join(page.command.words(verb)) for verb in verbs]
