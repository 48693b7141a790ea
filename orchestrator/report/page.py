"""The report of a sweep: one self-contained HTML page that needs no network, to be read from a link or a file."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from datagen.tasks.registry import dataset_id
from orchestrator.command import Command
from orchestrator.figures.parts import NothingToDraw
from orchestrator.figures.registry import FIGURES, K_ARE_DIFFERENT, draw, figures_of
from orchestrator.figures.style import inline_svg, style
from orchestrator.storage.layout import Storage
from orchestrator.storage.results import write_bytes
from orchestrator.storage.variants import every_trial, make_way
from orchestrator.sweep.specs import PlannedTrial, Scalar, SweepSpec
from orchestrator.tables.freshness import is_present
from orchestrator.tables.paper import beside_paper, paired_difference, paper, scale_differences
from orchestrator.tables.records import Run, cell_of, collect, grouped
from orchestrator.tables.rows import MISSING, Row, notes, rows, success
from orchestrator.words import counted, trial_name

_FOLDER = Path(__file__).parent
_RELOAD = '<meta http-equiv="refresh" content="60">\n'
_TEXT = ("planner", "task", "notes", "against", "what")


class Html(str):
    """Text that is HTML already."""


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


def report_path(sweep: SweepSpec, storage: Path) -> Path:
    """Return where a sweep's report is kept."""
    return Storage(storage).sweep(sweep.name).report


def write_report(
    sweep: SweepSpec,
    storage: Path,
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
    path = report_path(sweep, storage) if out is None else Path(out) / "report.html"
    page = Page(command, datetime.now(UTC), running)
    runs = collect(sweep, every_trial(sweep, Storage(storage)) if trials is None else trials, storage)
    content = encoded(report(sweep, runs, page))
    if out is None:
        make_way(sweep, Storage(storage), path.name)
    write_bytes(path, content)
    return path


def encoded(page: str) -> bytes:
    """Return the page's bytes; what a file's name has that is no text is written as an escape."""
    return page.encode(errors="backslashreplace")


def report(sweep: SweepSpec, runs: Sequence[Run], page: Page = Page()) -> str:
    """Return the report as HTML."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The icon is empty on purpose: browsers would ask a server for one.
        '<link rel="icon" href="data:,">\n'
        f"{_RELOAD if page.running else ''}"
        f"<title>{escape(sweep.name)}</title>\n<style>\n{_asset('report.css')}</style>\n</head>\n"
    )
    table = rows([run.trial for run in runs], {r.trial.trial_id: r.result for r in runs if r.result})
    sections = [
        _opening(sweep, runs, page),
        _beside_paper(sweep, runs),
        _figures(sweep, runs),
        _pairs(runs),
        _results(table),
        _trouble(runs),
        _missing(runs),
        _provenance(sweep, runs),
        _commands(page),
    ]
    body = "\n".join(section for section in sections if section)
    return f"{head}<body>\n{body}\n<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n"


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], caption: str = "", *, sortable: bool = True) -> str:
    """Return a table; everything that is not `Html` is escaped."""
    classes = [' class="text"' if name in _TEXT else "" for name in header]

    def cell(tag: str, text: str, column: int) -> str:
        kind = ' class="text wrap"' if tag == "td" and header[column] == "notes" else classes[column]
        return f"<{tag}{kind}>{text if isinstance(text, Html) else escape(text)}</{tag}>"

    head = "".join(cell("th", name, i) for i, name in enumerate(header))
    body = "\n".join("<tr>" + "".join(cell("td", word, i) for i, word in enumerate(line)) + "</tr>" for line in lines)
    # A caption inside the box would be as wide as the table, and cut off with it.
    note = f'\n<p class="caption">{escape(caption)}</p>' if caption else ""
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{note}"
    )


def _opening(sweep: SweepSpec, runs: Sequence[Run], page: Page) -> str:
    differences = scale_differences(runs)
    count = Counter(map(_state, runs))
    ended = count["completed"] + count["out of memory"]
    done = sum(run.result is not None for run in runs)
    tiles = [f'<div class="tile"><b>{ended}/{len(runs)}</b><span>trials done</span></div>']
    for state in ("out of memory", "diverged", "failed", "cancelled", "of other code"):
        if number := _special(runs, state):
            word = "under 20 %" if state == "diverged" and differences else state
            tiles.append(f'<div class="tile"><b>{number}</b><span>{word}</span></div>')
    if seconds := sum(run.result.train_seconds or 0.0 for run in runs if run.result):
        tiles.append(f'<div class="tile"><b>{_hours(seconds)}</b><span>of training</span></div>')
    when = f"{page.generated:%Y-%m-%d %H:%M} UTC" if page.generated else ""
    said = []
    if page.command is not None:  # else it is not known whether there was a profile
        said.append(f"profile {page.command.profile}" if page.command.profile else "no profile")
    said += ["still running, this page reloads itself"] if page.running else []
    said += [when] if when else []
    note = "" if not differences else (
        f'<div class="note"><b>Not the paper\'s scale:</b> {escape("; ".join(differences))}. '
        "Differences from the paper below are differences of scale too, and a trial under 20 % may be under-trained "
        "rather than diverged.</div>"
    )  # fmt: skip
    return (
        f"<header><h1>{escape(sweep.name)}</h1>\n"
        f'<p class="question">{escape(sweep.description)}</p>\n'
        f'<p class="muted">{escape(" · ".join(said))}</p>\n'
        f'<div class="bar"><i style="width: {100 * done / max(1, len(runs)):.1f}%"></i></div>\n'
        f'<div class="tiles">{"".join(tiles)}</div>{note}</header>'
    )


def _state(run: Run) -> str:
    if run.result is None:
        return "missing"
    words = {"COMPLETED": "completed", "OUT_OF_MEMORY": "out of memory", "FAILED": "failed", "CANCELLED": "cancelled"}
    return words[run.result.status]


def _special(runs: Sequence[Run], state: str) -> int:
    if state == "diverged":
        return sum(bool(run.result and run.result.trial_diverged) for run in runs)
    if state == "of other code":
        return sum(bool(run.result and run.result.final and not is_present(run.result.provenance)) for run in runs)
    return sum(_state(run) == state for run in runs)


def _hours(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _beside_paper(sweep: SweepSpec, runs: Sequence[Run]) -> str:
    entries = beside_paper(runs)
    claim = paper()["claims"].get(sweep.name)
    if not entries and claim is None:
        return ""
    parts = ["<section><h2>Beside the paper</h2>"]
    if claim is not None:
        parts.append(f"<p>What the paper finds: {escape(str(claim))}</p>")
    if entries:
        columns = list(dict.fromkeys((entry.task, entry.map_size) for entry in entries))
        header = ["planner", *(f"{_task(task)} {size}x{size}" for task, size in columns)]
        found = {(entry.planner, entry.task, entry.map_size): entry for entry in entries}
        lines = []
        for planner in dict.fromkeys(entry.planner for entry in entries):
            line = [planner]
            for task, size in columns:
                entry = found.get((planner, task, size))
                if entry is None:
                    line.append(MISSING)
                    continue
                theirs = f"{entry.paper.mean:.2f} ± {entry.paper.deviation:.2f}"
                if entry.ours is None:
                    ours = f"<b>{'OOM' if entry.out_of_memory else MISSING}</b>"
                    change = ""
                else:
                    ours = f"{entry.ours.mean:.1f} ± {entry.ours.deviation:.1f}"
                    ours = f"<b>{f'<i>{ours}</i>' if entry.diverged else ours}</b>"
                    ours += f' <span class="muted">{entry.ours.n}/{entry.expected}</span>'
                    sign = entry.difference
                    kind = ""
                    if sign is not None and sign.significant:
                        kind = "better" if sign.value > 0 else "worse"
                    change = f'<br><span class="{kind}">{escape(str(sign))}</span>'
                line.append(Html(f'<div>{ours}<br><span class="muted">paper {theirs}</span>{change}</div>'))
            lines.append(line)
        caption = (
            "Test success rate in percent, mean ± standard deviation over seeds and K; trials behind ours; the paper's "
            "Table 1; the difference with Welch's 95 % interval, coloured where it excludes zero. Italics: a trial "
            f"under 20 %. Source: {paper()['source']}"
        )
        parts.append(_table(header, lines, caption, sortable=False))
    return "\n".join([*parts, "</section>"])


def _task(task: str) -> str:
    return task.replace("_", " ")


def _results(table: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in table for name in row.axes))
    first = [name for name in ("planner", "task", "map_size", "k") if name in names]
    ordered = first + [name for name in names if name not in first]
    kept = [n for n in ordered if n in ("planner", "k") or len({str(row.axes.get(n)) for row in table}) > 1]
    header = [{"k": "K", "map_size": "size"}.get(name, name.rpartition(".")[2]) for name in kept]
    header += ["success %", "SPL %", "n", "forward ms", "backward ms", "peak MiB", "notes"]
    lines = [
        [
            *(str(row.axes.get(name, MISSING)) for name in kept),
            Html(f"<i>{escape(success(row))}</i>") if row.trial_diverged else success(row),
            _number(row.spl, 100.0),
            f"{row.used}/{row.expected}",
            _number(row.forward_seconds, 1e3),
            _number(row.backward_seconds, 1e3),
            _number(row.peak_bytes, 2.0**-20),
            "; ".join(notes(row)),
        ]
        for row in table
    ]
    caption = (
        "Mean ± standard deviation over seeds; n is the number of trials behind the numbers, of those planned; times "
        "are medians of a training step. Italics: a trial under 20 %; OOM: out of memory; a dash: no trial is done. "
        f"Stale: of other code than the present. Click a head to sort. {K_ARE_DIFFERENT}"
    )
    folded = _folded(counted(len(lines), "cell"), _table(header, lines, caption), len(lines) <= 60)
    return f"<section><h2>Results</h2>\n{folded}</section>"


def _folded(summary: str, content: str, opened: bool) -> str:
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>\n{content}</details>"


def _number(value: float | None, scale: float) -> str:
    return MISSING if value is None else f"{value * scale:.1f}"


def _pairs(runs: Sequence[Run]) -> str:
    """Return each implicit planner against its unrolled twin, seed by seed."""
    specs = {str(run.axis("planner")): run.trial.spec.planner for run in runs}
    lines = []
    for first, one in specs.items():
        for second, other in specs.items():
            twins = one.core == other.core and one.options == other.options
            if not (twins and one.adjoint != "unrolled" and other.adjoint == "unrolled"):
                continue
            for (task, size), own in grouped(runs, _problem).items():
                found = paired_difference(own, first, second)
                if found is not None:
                    kind = "" if not found.significant else "better" if found.value > 0 else "worse"
                    shown = Html(f'<span class="{kind}">{escape(str(found))}</span>')
                    lines.append([first, second, str(task), str(size), shown, str(found.n)])
    if not lines:
        return ""
    caption = (
        "Test success rate of the first planner minus that of the second in percentage points, paired by seed and K, "
        "with the 95 % interval (Student's t over pairs)."
    )
    header = ["planner", "against", "task", "size", "difference", "pairs"]
    return f"<section><h2>Implicit against unrolled, seed by seed</h2>\n{_table(header, lines, caption)}</section>"


def _problem(run: Run) -> tuple[Scalar, Scalar]:
    return run.axis("task"), run.axis("map_size")


def _figures(sweep: SweepSpec, runs: Sequence[Run]) -> str:
    parts = ["<section><h2>Figures</h2>"]
    for name in figures_of(sweep):
        drawing = FIGURES[name]
        try:
            figure = draw(name, runs)
        except NothingToDraw as error:
            parts.append(f'<p class="muted">{escape(str(error))}</p>')
            continue
        with style():
            picture = inline_svg(figure, f"figure-{name}", drawing.title)
        parts.append(
            f'<figure><h3>{escape(drawing.title)}</h3>\n<div class="scroll">{picture}</div>\n'
            f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</section>"])


def _trouble(runs: Sequence[Run]) -> str:
    """Return what diverged, ran out of memory or failed, and where."""
    lines = []
    low = "diverged or under-trained" if scale_differences(runs) else "trial diverged"
    for run in runs:
        result, what = run.result, [f"damaged, left out: {line}" for line in run.damaged]
        if result is not None and result.status in ("OUT_OF_MEMORY", "FAILED", "CANCELLED"):
            what.append(f"{result.status.replace('_', ' ').lower()}: {result.reason}".rstrip(": "))
        if result is not None and result.trial_diverged and result.test_success_rate is not None:
            what.append(f"{low}: success {100 * result.test_success_rate:.1f} %, under 20 %")
        if result is not None and result.forward_diverged:
            what.append("forward iteration diverged")
        if what:
            lines.append([trial_name(run.trial), "; ".join(what), Html(f"<code>{run.trial.trial_id}</code>")])
    if not lines:
        return ""
    folded = _folded(counted(len(lines), "trial"), _table(["what", "notes", "trial"], lines), len(lines) <= 20)
    return f"<section><h2>What diverged, ran out of memory or failed</h2>\n{folded}</section>"


def _missing(runs: Sequence[Run]) -> str:
    missing = [run for run in runs if run.result is None]
    if not missing:
        return ""
    lines = [
        [
            " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in cell),
            ", ".join(str(run.axis("seed")) for run in own),
        ]
        for cell, own in grouped(missing, cell_of).items()
    ]
    table = _table(["what", "missing seeds"], lines)
    folded = _folded(f"{counted(len(missing), 'trial')} in {counted(len(lines), 'cell')}", table, len(lines) <= 20)
    return f"<section><h2>Missing</h2>\n{folded}</section>"


def _provenance(sweep: SweepSpec, runs: Sequence[Run]) -> str:
    found = [run.result.provenance for run in runs if run.result]
    datasets = dict.fromkeys(dataset_id(run.trial.spec.data) for run in runs)

    def tallied(values: Iterable[str]) -> str:
        counts = Counter(value for value in values if value)
        several = len(counts) > 1
        return ", ".join(f"{value} ({number})" if several else value for value, number in counts.most_common())

    commits = (
        f"{p.git_commit[:12]}{' with uncommitted changes' if p.git_dirty else ''}" if p.git_commit else ""
        for p in found
    )
    libraries = sorted({f"{name} {version}" for p in found for name, version in p.versions.items()})
    items = {
        "code": tallied(f"{p.code}{'' if is_present(p) else ' (stale)'}" for p in found),
        "commit": tallied(commits),
        "libraries": ", ".join(libraries),
        "hosts": tallied(p.host for p in found),
        "devices": tallied(p.device_name for p in found),
        "memory limit": "none"
        if sweep.execution.memory_limit_gib is None
        else f"{sweep.execution.memory_limit_gib:g} GiB of tensors",
        "datasets": ", ".join(datasets),
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in items.items() if value)
    return f"<section><h2>Provenance</h2>\n<dl>{lines}</dl></section>"


def _commands(page: Page) -> str:
    if page.command is None:
        return ""  # which file the sweep is in, nobody has said
    lines = [shlex.join(page.command.words(verb)) for verb in ("run", "table", "figures", "report")]
    return "<section><h2>To reproduce it</h2>\n<pre><code>{}</code></pre></section>".format(escape("\n".join(lines)))
