"""Results -> the table that people read; pure."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator.provenance import Provenance
from orchestrator.results import TrialResult
from orchestrator.specs import PlannedTrial, Scalar

Format = Literal["text", "md", "tex", "csv", "json"]
FORMATS: tuple[Format, ...] = ("text", "md", "tex", "csv", "json")
MISSING = "—"
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One cell of the paper's tables: all seeds of a planner at one task, size and K.

    Averages are over the `used` trials: COMPLETED, of the present code; where there is none of the present code, of
    the one older version with most trials, and `stale_used` says so. The two are never mixed. Times are over those
    of them that ran on one kind of device, the commonest.

    Attributes:
        axes: The place in the sweep: task, map_size, planner, k, and further axes but the seed.
        expected: Trials of the sweep in this cell.
        used: Trials behind the averages.
        success_rate: Mean test success rate, 0..1; None where there is none.
        success_rate_std: Sample standard deviation over seeds (n - 1), None for fewer than two.
        optimality: Mean, 0..1.
        spl: Mean, 0..1.
        forward_seconds: Mean over trials of the median seconds of a training step's forward pass.
        backward_seconds: The same for the backward pass.
        peak_bytes: Largest over trials.
        trial_diverged: Trials under 20 % (the paper's italics).
        forward_diverged: Trials whose forward iteration diverged at some step.
        outcomes: Number of trials by status; "MISSING" where there is no result.
        stale: COMPLETED or OUT_OF_MEMORY trials of other code.
        stale_used: True where the averages are of other code.
        timed: Trials behind the times.
        device: The device of the times.
    """

    axes: dict[str, Scalar]
    expected: int
    used: int = 0
    success_rate: float | None = None
    success_rate_std: float | None = None
    optimality: float | None = None
    spl: float | None = None
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    peak_bytes: int | None = None
    trial_diverged: int = 0
    forward_diverged: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    stale_used: bool = False
    timed: int = 0
    device: str = ""


def rows(trials: Iterable[PlannedTrial], results: Mapping[str, TrialResult], code: str) -> list[Row]:
    """Return the rows of the table, in the order of the sweep.

    Args:
        trials: The sweep.
        results: What there is, by trial id.
        code: Hash of the present code; results of other code are stale.
    """
    cells: dict[tuple[tuple[str, Scalar], ...], tuple[dict[str, Scalar], list[TrialResult | None]]] = {}
    for trial in trials:
        axes = {name: value for name, value in trial.axes.items() if name != "seed"}
        cell = cells.setdefault(tuple(axes.items()), (axes, []))
        cell[1].append(results.get(trial.trial_id))
    return [_row(axes, found, code) for axes, found in cells.values()]


def _row(axes: dict[str, Scalar], found: Sequence[TrialResult | None], code: str) -> Row:
    results = [result for result in found if result is not None]
    completed = [result for result in results if result.status == "COMPLETED"]
    fresh = [result for result in completed if result.provenance.made_by(code)]
    used = fresh or _of_one(completed, lambda result: result.provenance.code)
    timed = _of_one(used, lambda result: device_name(result.provenance))
    rates = _present(result.test_success_rate for result in used)
    return Row(
        axes=axes,
        expected=len(found),
        used=len(used),
        success_rate=_mean(rates),
        success_rate_std=statistics.stdev(rates) if len(rates) > 1 else None,
        optimality=_mean(_present(result.test_optimality for result in used)),
        spl=_mean(_present(result.test_spl for result in used)),
        forward_seconds=_mean(_present(result.forward_seconds for result in timed)),
        backward_seconds=_mean(_present(result.backward_seconds for result in timed)),
        peak_bytes=max((result.peak_bytes for result in timed if result.peak_bytes is not None), default=None),
        trial_diverged=sum(result.trial_diverged for result in used),
        forward_diverged=sum(result.forward_diverged for result in used),
        outcomes=dict(Counter("MISSING" if result is None else result.status for result in found)),
        stale=sum(result.final and not result.provenance.made_by(code) for result in results),
        stale_used=bool(used) and not fresh,
        timed=len(timed),
        device=device_name(timed[0].provenance) if timed else "",
    )


def device_name(provenance: Provenance) -> str:
    """Return the model of the device that did the work, so that times of different ones are never averaged."""
    return provenance.cpu or "cpu" if provenance.accelerator == "cpu" else provenance.accelerator


def _of_one(results: Sequence[TrialResult], kind: Any) -> list[TrialResult]:
    """Return the results of the commonest kind."""
    counts = Counter(kind(result) for result in results)
    return [result for result in results if kind(result) == counts.most_common(1)[0][0]]


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def notes(row: Row) -> list[str]:
    """Return what a reader must know about a row beyond its numbers, shortest first in importance."""
    said = []
    if row.trial_diverged:
        said.append(f"{row.trial_diverged}/{row.used} under 20 %")
    if row.forward_diverged:
        said.append(f"{row.forward_diverged}/{row.used} forward diverged")
    for status, word in (("OUT_OF_MEMORY", "OOM"), ("FAILED", "failed"), ("CANCELLED", "cancelled")):
        if row.outcomes.get(status):
            said.append(f"{row.outcomes[status]} {word}")
    if row.stale:
        said.append(f"{row.stale} stale{', shown' if row.stale_used else ', left out'}")
    if row.timed < row.used:
        said.append(f"times of {row.timed} on {row.device}")
    return said


def success(row: Row) -> str:
    """Return the success rate in percent as in the paper, "62.1 ± 1.3", or the word for why there is none."""
    if row.success_rate is None:
        return "OOM" if row.outcomes.get("OUT_OF_MEMORY") else MISSING
    mean = f"{100 * row.success_rate:.1f}"
    return mean if row.success_rate_std is None else f"{mean} ± {100 * row.success_rate_std:.1f}"


def _number(value: float | None, scale: float, digits: int) -> str:
    return MISSING if value is None else f"{value * scale:.{digits}f}"


def _grid(table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells as text; an axis that never varies is left out, the planner and K are not."""
    names = list(dict.fromkeys(name for row in table for name in row.axes))
    first = [name for name in ("task", "map_size", "planner", "k") if name in names]
    ordered = first + [name for name in names if name not in first]
    kept = [
        name
        for name in ordered
        if name in ("planner", "k") or len({str(row.axes.get(name, MISSING)) for row in table}) > 1
    ]
    labels = {"k": "K", "map_size": "size"}
    header = [labels.get(name, name) for name in kept]
    header += ["success %", "SPL %", "n", "forward ms", "backward ms", "peak MiB", "notes"]
    cells = [
        [
            *(str(row.axes.get(name, MISSING)) for name in kept),
            success(row),
            _number(row.spl, 100, 1),
            f"{row.used}/{row.expected}",
            _number(row.forward_seconds, 1e3, 1),
            _number(row.backward_seconds, 1e3, 1),
            _number(row.peak_bytes, 1 / MIB, 1),
            "; ".join(notes(row)),
        ]
        for row in table
    ]
    return header, cells


def render(table: Sequence[Row], format: Format, title: str = "") -> str:
    """Return the table as text of the given format, ending in a newline.

    Args:
        table: Its rows.
        format: One of `FORMATS`; md and tex set diverged entries in italics as the paper does.
        title: Stands above the table (text, md) or in the caption (tex).
    """
    if format == "json":
        return json.dumps({"title": title, "rows": [asdict(row) for row in table]}, indent=2) + "\n"
    if format == "csv":
        return _csv(table)
    header, cells = _grid(table)
    if format == "text":
        return _text(header, cells, title)
    column = header.index("success %")
    for row, line in zip(table, cells, strict=True):
        if row.trial_diverged and format == "md":
            line[column] = f"*{line[column]}*"
    if format == "md":
        return _markdown(header, cells, title)
    italics = {number for number, row in enumerate(table) if row.trial_diverged}
    return _tex(header, cells, title, column, italics)


def _text(header: list[str], cells: list[list[str]], title: str) -> str:
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    left = {i for i, name in enumerate(header) if name in ("planner", "task", "notes")}

    def line(words: list[str]) -> str:
        padded = (w.ljust(widths[i]) if i in left else w.rjust(widths[i]) for i, w in enumerate(words))
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([*([title] if title else []), line(header), rule, *map(line, cells)]) + "\n"


def _markdown(header: list[str], cells: list[list[str]], title: str) -> str:
    def line(words: Iterable[str]) -> str:
        return "| " + " | ".join(word.replace("|", r"\|") for word in words) + " |"

    rule = ["---" if name in ("planner", "task", "notes") else "---:" for name in header]
    return "\n".join([*([title, ""] if title else []), line(header), line(rule), *map(line, cells)]) + "\n"


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        MISSING: "---",
    }
)


def _tex(header: list[str], cells: list[list[str]], title: str, column: int, italics: set[int]) -> str:
    align = "".join("l" if name in ("planner", "task", "notes") else "r" for name in header)
    lines = []
    for number, words in enumerate(cells):
        written = [word.translate(_TEX) for word in words]
        if number in italics:
            written[column] = rf"\textit{{{written[column]}}}"
        lines.append("    " + " & ".join(written) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            *([rf"  \caption{{{title.translate(_TEX)}}}"] if title else []),
            rf"  \begin{{tabular}}{{{align}}}",
            r"    \hline",
            "    " + " & ".join(name.translate(_TEX) for name in header) + r" \\",
            r"    \hline",
            *lines,
            r"    \hline",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _csv(table: Sequence[Row]) -> str:
    """Return one line per row with unrounded numbers."""
    axes = list(dict.fromkeys(name for row in table for name in row.axes))
    numbers = [name for name in Row.__dataclass_fields__ if name not in ("axes", "outcomes")]
    statuses = ("COMPLETED", "OUT_OF_MEMORY", "FAILED", "CANCELLED", "MISSING")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, *numbers, *(status.lower() for status in statuses)])
    for row in table:
        values = [getattr(row, name) for name in numbers]
        counts = [row.outcomes.get(status, 0) for status in statuses]
        writer.writerow([*(row.axes.get(name) for name in axes), *values, *counts])
    return text.getvalue()
